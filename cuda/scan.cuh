// What the scans share: recurrences along a sequence, whose threads walk over its positions and are channels of it.
#pragma once
#include "flat.cuh"
#include "structs/scan.h"
#include "sum.cuh"
#include "vector.cuh"

namespace flashattn {

FLASHATTN_DEVICE uint32_t shared_float(int at) {
  return ptx::shared_base() + static_cast<uint32_t>(at) * static_cast<uint32_t>(sizeof(float));
}

/** The element of a channel at a position; `index` counts channels of a group. */
FLASHATTN_DEVICE int64_t scan_place(const TensorRef& tensor, int batch, int position, int group, int index) {
  return batch * tensor.batch + position * tensor.seq + group * tensor.head + index;
}

FLASHATTN_DEVICE float load_scanned(const TensorRef& tensor, int64_t place) {
  float x = 0;
  with_element(tensor.dtype, [&](auto element) {
    using Element = decltype(element);
    const void* const data = tensor.data;
    x = Element::load(ptx::load_global(static_cast<const typename Element::Storage*>(data) + place));
  });
  return x;
}

/** Unless nobody wants it. */
FLASHATTN_DEVICE void store_scanned(const TensorRef& tensor, int64_t place, float x) {
  void* const data = tensor.data;
  if (data == nullptr) return;
  with_element(tensor.dtype, [&](auto element) {
    using Element = decltype(element);
    ptx::store_global(static_cast<typename Element::Storage*>(data) + place, Element::store(x));
  });
}

// Where a thread is a channel, it has so many positions at hand: their loads are under way together.
inline constexpr int kAhead = 8;
static_assert(kScanBlock % kAhead == 0);

FLASHATTN_DEVICE int positions_at_hand(int length, int position) {
  return length - position < kAhead ? length - position : kAhead;
}

/** x = the positions from `place` on, zero beyond `count`. */
FLASHATTN_DEVICE void load_ahead(float (&x)[kAhead], const TensorRef& tensor, int64_t place, int count) {
  with_element(tensor.dtype, [&](auto element) {
    using Element = decltype(element);
    const void* const data = tensor.data;
    const auto* const from = static_cast<const typename Element::Storage*>(data) + place;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) x[i] = i < count ? Element::load(ptx::load_global(from + i * tensor.seq)) : 0.0f;
  });
}

/** Unless nobody wants it. */
FLASHATTN_DEVICE void store_ahead(const TensorRef& tensor, int64_t place, const float (&x)[kAhead], int count) {
  void* const data = tensor.data;
  if (data == nullptr) return;
  with_element(tensor.dtype, [&](auto element) {
    using Element = decltype(element);
    auto* const to = static_cast<typename Element::Storage*>(data) + place;
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (i < count) ptx::store_global(to + i * tensor.seq, Element::store(x[i]));
  });
}

/** Threads of a block where each is a channel: few, so that many multiprocessors have some. */
inline constexpr int kChannelThreads = 64;

/** A thread that is a channel of a sequence. */
struct ScanChannel {
  int batch, channel;
  bool exists;

  FLASHATTN_DEVICE ScanChannel(int sequences, int channels) {
    const int64_t thread = static_cast<int64_t>(ptx::block().x) * kChannelThreads + ptx::thread();
    batch = static_cast<int>(thread / channels);
    channel = static_cast<int>(thread % channels);
    exists = batch < sequences;
  }
};

/** A shared array [positions of a block, threads] of which a thread has its own column. */
FLASHATTN_DEVICE uint32_t own_column(int array, int position) {
  return shared_float((array * kScanBlock + position) * kChannelThreads + ptx::thread());
}

inline constexpr int kColumnBytes = kScanBlock * kChannelThreads * static_cast<int>(sizeof(float));

template <class Params>
cudaError_t launch_channels(const char* name, void (*kernel)(Params), int64_t threads, int columns, cudaStream_t stream,
                            const Params& params) {
  if (threads == 0) return cudaSuccess;
  const dim3 grid(static_cast<uint32_t>((threads + kChannelThreads - 1) / kChannelThreads));
  return launched(name, ptx::launch(kernel, name, grid, kChannelThreads, columns * kColumnBytes, stream, params));
}

// Where states have an axis of their own, a block is a part of a group: a lane is a channel, and warps share its state.
inline constexpr int kStateWarps = 4;
inline constexpr int kStateThreads = kStateWarps * kScanChannels;
/** Positions of a block that a warp loads and stores: each kStateWarps-th. */
inline constexpr int kOwnPositions = kScanBlock / kStateWarps;
inline constexpr int kTileFloats = kScanBlock * kScanChannels;

struct ScanPart {
  int batch, group, part;  // which part of the group
  int first;               // channel
  int lane, warp;
  bool exists;  // the channel of this lane

  FLASHATTN_DEVICE ScanPart(int channels, int groups) {
    const int in_group = channels / groups, parts = (in_group + kScanChannels - 1) / kScanChannels;
    const int block = static_cast<int>(ptx::block().x);
    part = block % parts;
    group = block / parts % groups;
    batch = block / parts / groups;
    first = group * in_group + part * kScanChannels;
    lane = ptx::thread() % kScanChannels;
    warp = ptx::thread() / kScanChannels;
    exists = part * kScanChannels + lane < in_group;
  }
  FLASHATTN_DEVICE int channel() const { return first + lane; }
};

inline int64_t scan_parts(int batch, int channels, int groups) {
  const int in_group = channels / groups;
  return int64_t{batch} * groups * ((in_group + kScanChannels - 1) / kScanChannels);
}

template <class Params>
cudaError_t launch_parts(const char* name, void (*kernel)(Params), int64_t parts, int floats, cudaStream_t stream,
                         const Params& params) {
  if (parts == 0) return cudaSuccess;
  return launched(name, ptx::launch(kernel, name, dim3(static_cast<uint32_t>(parts)), kStateThreads,
                                    floats * static_cast<int>(sizeof(float)), stream, params));
}

/** A place of a tile [positions, channels]. */
FLASHATTN_DEVICE uint32_t tile_place(int tile, int position, int lane) {
  return shared_float(tile + position * kScanChannels + lane);
}

/** *sum - *lost += x, of memory that is this thread's own. */
FLASHATTN_DEVICE void add_to_global(float* sum, float* lost, float x) {
  float total = ptx::load_global(sum), cut = ptx::load_global(lost);
  add_compensated(total, cut, x);
  ptx::store_global(sum, total);
  ptx::store_global(lost, cut);
}

/** The sum of `count` numbers `stride` apart, less those that lie `lost` behind them; 0: there are none. */
FLASHATTN_DEVICE float sum_apart(const float* from, int64_t stride, int count, int64_t lost) {
  float sum = 0, cut = 0;
  for (int i = 0; i < count; ++i) {
    add_compensated(sum, cut, ptx::load_global(from + i * stride));
    if (lost != 0) add_compensated(sum, cut, -ptx::load_global(from + i * stride + lost));
  }
  return sum - cut;
}

}  // namespace flashattn
