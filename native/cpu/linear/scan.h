// What the scans share. An item is a sequence and up to kScanChannels of its channels, a lane is a channel; so no item waits
// for another. A block of positions is in the workspace as float32 while it is walked over.
#pragma once
#include "simd/functions.h"
#include "simd/rows.h"
#include "simd/sums.h"
#include "structs/scan.h"

namespace flashattn {

/** [positions, channels] of a block; beyond the channels that there are, up to whole vectors, zeros. */
using ScanTile = float[kScanBlock * kScanChannels];

namespace detail {

static_assert(kScanChannels % kLanes == 0);

/** Where an item lies: some channels of one sequence, all of one group. */
struct ScanPart {
  int batch, group, part;  // which part of the group
  int first, count;        // channels
  int vectors;

  ScanPart(int channels, int groups, int item) {
    const int in_group = channels / groups, parts = divide_up(in_group, kScanChannels);
    part = item % parts;
    group = item / parts % groups;
    batch = item / parts / groups;
    first = group * in_group + part * kScanChannels;
    count = min(kScanChannels, in_group - part * kScanChannels);
    vectors = divide_up(count, kLanes);
  }
};

inline int scan_items(int batch, int channels, int groups) {
  return groups < 1 ? 0 : batch * groups * divide_up(channels / groups, kScanChannels);
}

/** Some positions of a sequence: a block. */
struct ScanBlock {
  int index, first, count;

  ScanBlock(int length, int index)
      : index(index),
        first(index * kScanBlock),
        count(min(kScanBlock, length - index * kScanBlock)) {}
};

inline uint8_t* scan_row(const TensorRef& tensor, const ScanPart& at, int position) {
  return tensor.row(at.batch, static_cast<size_t>(position), 0) + int64_t{at.first} * element_size(tensor.dtype);
}

/** `ahead`: how many positions behind these are read next. Rows lie too far apart for the processor to see that by itself. */
FLASHATTN_CALLED void read_tile(float* tile, const TensorRef& tensor, const ScanPart& at, const ScanBlock& block,
                                int ahead) {
  const int64_t jump = ahead * tensor.seq * element_size(tensor.dtype);
  for (int t = 0; t < block.count; ++t) {
    const uint8_t* const row = scan_row(tensor, at, block.first + t);
    // May be beyond the tensor.
    const uintptr_t next = reinterpret_cast<uintptr_t>(row) + static_cast<uintptr_t>(jump);
    prefetch<kScanChannels>(reinterpret_cast<const float*>(next));
    load_row(tile + t * kScanChannels, row, tensor.dtype, at.count);
  }
}

/** Unless nobody wants it. */
FLASHATTN_CALLED void write_tile(const TensorRef& tensor, const float* tile, const ScanPart& at,
                                 const ScanBlock& block) {
  if (!tensor.data) return;
  for (int t = 0; t < block.count; ++t)
    store_row(scan_row(tensor, at, block.first + t), tensor.dtype, tile + t * kScanChannels, at.count);
}

inline void clear(float* to, int n) { fill(to, 0, n); }
template <class... Arrays>
inline void clear_all(int n, Arrays... arrays) {
  (clear(arrays, n), ...);
}

/** to = from[0, count), or zeros where there is none. */
inline void read_or_clear(float* to, const float* from, int count) {
  if (from)
    load_row(to, from, DType::Float32, count);
  else
    clear(to, round_up(count, kLanes));
}

/** to [state, kScanChannels] = the part of an array [channels, state], or zeros where there is none. */
FLASHATTN_CALLED void read_states(float* to, const float* from, const ScanPart& at, int state) {
  for (int n = 0; n < state; ++n) {
    float* const row = to + n * kScanChannels;
    for (int c = 0; c < at.count; ++c) row[c] = from ? from[int64_t{at.first + c} * state + n] : 0;
    for (int c = at.count; c < at.vectors * kLanes; ++c) row[c] = 0;
  }
}

FLASHATTN_CALLED void write_states(float* to /* [channels, state] */, const float* from, const ScanPart& at,
                                   int state) {
  for (int n = 0; n < state; ++n)
    for (int c = 0; c < at.count; ++c) to[int64_t{at.first + c} * state + n] = from[n * kScanChannels + c];
}

/** `rows` rows of an array [batch, outer, rows, channels] of states, of one of the outer. */
inline int64_t kept_row(const ScanPart& at, int outer, int which, int rows, int channels) {
  return ((int64_t{at.batch} * outer + which) * rows) * channels + at.first;
}

FLASHATTN_CALLED void keep_rows(float* to, int channels, const float* from /* [rows, kScanChannels] */, int rows,
                                int count) {
  for (int n = 0; n < rows; ++n) store_row(to + int64_t{n} * channels, DType::Float32, from + n * kScanChannels, count);
}

FLASHATTN_CALLED void take_rows(float* to /* [rows, kScanChannels] */, const float* from, int channels, int rows,
                                int count) {
  for (int n = 0; n < rows; ++n) load_row(to + n * kScanChannels, from + int64_t{n} * channels, DType::Float32, count);
}

/** As many elements of a state as fit the registers with their factors: a number that the compiler knows. */
template <int kSize>
struct Whole {
  constexpr operator int() const { return kSize; }
};

/** f(n, count) for elements [n, n + count) of a state, kSize of them at a time. */
template <int kSize, class F>
FLASHATTN_INLINE void for_each_chunk(int state, F f) {
  int n = 0;
  for (; n + kSize <= state; n += kSize) f(n, Whole<kSize>{});
  if (n < state) f(n, state - n);
}

/** f(j) for j = 0 to count - 1. */
template <int kSize, class F>
FLASHATTN_INLINE void each(Whole<kSize>, F f) {
#pragma clang loop unroll(full)
  for (int j = 0; j < kSize; ++j) f(j);
}
template <class F>
FLASHATTN_INLINE void each(int count, F f) {
  for (int j = 0; j < count; ++j) f(j);
}

/** e^x: Infinity above 88, 0 below 2^-80. */
FLASHATTN_INLINE Vec decay_of(Vec x) { return select(x > splat(88.0f), splat(kInfinity), natural_exp(x)); }

/** The sum over sequences of a row that each of them has, `stride` apart. */
FLASHATTN_INLINE Vec sum_of_sequences(const float* from, int64_t stride, int batch, int lanes) {
  LongSum sum;
  for (int b = 0; b < batch; ++b) {
    float part[kLanes];
    load_row(part, from + b * stride, DType::Float32, lanes);
    sum.add(load(part));
  }
  return sum.lanes();
}

}  // namespace detail

}  // namespace flashattn
