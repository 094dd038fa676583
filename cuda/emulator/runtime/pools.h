// Memory pools: what is freed into one stays reserved for it and is missing to all others.
#pragma once
#include <cstddef>

namespace emulator {

/** Bytes that pools hold of the device without using them. */
size_t idle_bytes();
/** Called when memory is freed: where it is from a pool, the pool keeps it. */
void give_to_pool(const void* data);
/** Called when the device is waited for: pools give back what is beyond their thresholds. */
void shrink_pools();

}  // namespace emulator
