// The arithmetic peak that benchmarks compare with: multiply-adds that depend on nothing but registers.
#pragma once
#include "simd/product.h"
#include "structs/copy.h"

namespace flashattn {

inline constexpr int kPeakChains = 8;  // as many independent multiply-adds as the product keeps accumulators

inline int peak_items(const PeakParams& p) { return p.items; }

namespace detail {

/** `iterations` times kPeakChains multiply-adds; `sink` is [4], as in PeakParams. */
template <class Arithmetic>
FLASHATTN_CALLED void multiply_adds(float* sink, int iterations) {
  Vec acc[kPeakChains];
#pragma clang loop unroll(full)
  for (int c = 0; c < kPeakChains; ++c) acc[c] = splat(1.0f + 0.001f * c);
  const Vec x = load_splat(sink), y = load_splat(sink + 1);
  for (int i = 0; i < iterations; i += 4) {
#pragma clang loop unroll(full)
    for (int unrolled = 0; unrolled < 4; ++unrolled) {
#pragma clang loop unroll(full)
      for (int c = 0; c < kPeakChains; ++c) acc[c] = Arithmetic::multiply_add(x, y, acc[c]);
    }
  }
  Vec sum{};
#pragma clang loop unroll(full)
  for (int c = 0; c < kPeakChains; ++c) sum += acc[c];
  sink[2] = sum_lanes(sum);
}

}  // namespace detail

/** 2 * kPeakChains * kLanes * iterations floating-point operations. */
inline void peak_item(const PeakParams& p, int) { detail::multiply_adds<Floats>(p.sink, p.iterations); }

}  // namespace flashattn
