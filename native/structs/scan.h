// What all scans share: recurrences along a sequence, one for each channel, that keep a state.
#pragma once
#include "types.h"

namespace flashattn {

/**
 * Positions between two states that forward keeps for backward, which computes those between them again. 32: what is kept
 * is then 1 / 32 of the states, and the states of a block of positions fit the first two caches of a core, or the shared
 * memory of half a multiprocessor.
 */
inline constexpr int kScanBlock = 32;

/**
 * Channels that are scanned together: a cache line or two of a position, and a warp. Sums over channels are taken within
 * such a part first, so that they depend on no machine.
 */
inline constexpr int kScanChannels = 32;

/** Numbers of a state with its own axis, half as many complex ones: a core, and shared memory, keep all for kScanChannels. */
inline constexpr int kMostScanState = 256;

constexpr int scan_blocks(int length) { return (length + kScanBlock - 1) / kScanBlock; }

}  // namespace flashattn
