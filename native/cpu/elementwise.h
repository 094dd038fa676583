// Launches over flat memory: filling, converting, and the arithmetic peak that benchmarks compare with.
#pragma once
#include "backward.h"

namespace flashattn {

inline constexpr uint32_t kChunk = 1 << 14;  // elements an item handles

struct FillParams {
  uint32_t* data;  // [count]
  uint32_t count, bits;
};

struct ConvertParams {
  const uint8_t* from;  // [count]
  uint8_t* to;          // [count]
  DType from_dtype, to_dtype;
  uint32_t count;
};

struct PeakParams {
  int32_t items;
  uint32_t iterations;
  float* sink;  // [3]: two factors, and the sum that keeps the arithmetic from being optimised away
};

inline int chunks(uint32_t count) { return static_cast<int>((count + kChunk - 1) / kChunk); }

inline uint32_t chunk_length(uint32_t count, int item) {
  const uint32_t begin = item * kChunk;
  return count - begin < kChunk ? count - begin : kChunk;
}

FLASHATTN_CALLED void fill_item(const FillParams& p, int item) {
  uint32_t* data = p.data + size_t(item) * kChunk;
  const uint32_t n = chunk_length(p.count, item);
  for (uint32_t i = 0; i < n; ++i) data[i] = p.bits;
}

FLASHATTN_CALLED void convert_item(const ConvertParams& p, int item, BackwardWorkspace& ws) {
  const size_t begin = size_t(item) * kChunk;
  const uint32_t n = chunk_length(p.count, item);
  for (uint32_t i = 0; i < n; i += kMaxDim) {
    const int length = min(kMaxDim, static_cast<int>(n - i));
    load_row(ws.query, p.from + (begin + i) * element_size(p.from_dtype), p.from_dtype, length);
    store_row(p.to + (begin + i) * element_size(p.to_dtype), p.to_dtype, ws.query, length);
  }
}

inline constexpr int kPeakChains = 8;  // as many independent multiply-adds as the product keeps accumulators

/** 2 * kPeakChains * kLanes * iterations floating-point operations that depend on nothing but registers. */
FLASHATTN_CALLED void peak_item(const PeakParams& p) {
  Vec acc[kPeakChains];
#pragma clang loop unroll(full)
  for (int c = 0; c < kPeakChains; ++c) acc[c] = splat(1.0f + 0.001f * c);
  const Vec x = load_splat(p.sink), y = load_splat(p.sink + 1);
  for (uint32_t i = 0; i < p.iterations; i += 4) {
#pragma clang loop unroll(full)
    for (int unrolled = 0; unrolled < 4; ++unrolled) {
#pragma clang loop unroll(full)
      for (int c = 0; c < kPeakChains; ++c) acc[c] = multiply_add(x, y, acc[c]);
    }
  }
  Vec sum{};
#pragma clang loop unroll(full)
  for (int c = 0; c < kPeakChains; ++c) sum += acc[c];
  p.sink[2] = sum_lanes(sum);
}

}  // namespace flashattn
