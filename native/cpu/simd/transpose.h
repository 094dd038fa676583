// Lanes that change places: a square of them transposed, pairs of neighbours taken apart and put together.
#pragma once
#include "simd/simd.h"
#if !defined(__wasm__)
#include <utility>
#endif

namespace flashattn {

namespace detail {
#if defined(__wasm__)
FLASHATTN_INLINE Vec even_lanes(Vec a, Vec b) { return __builtin_shufflevector(a, b, 0, 2, 4, 6); }
FLASHATTN_INLINE Vec odd_lanes(Vec a, Vec b) { return __builtin_shufflevector(a, b, 1, 3, 5, 7); }
FLASHATTN_INLINE Vec lower_neighbours(Vec a, Vec b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
FLASHATTN_INLINE Vec upper_neighbours(Vec a, Vec b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }

FLASHATTN_INLINE void transpose_lanes(Vec (&m)[kLanes]) {
  const Vec a = __builtin_shufflevector(m[0], m[1], 0, 4, 1, 5), b = __builtin_shufflevector(m[2], m[3], 0, 4, 1, 5);
  const Vec c = __builtin_shufflevector(m[0], m[1], 2, 6, 3, 7), d = __builtin_shufflevector(m[2], m[3], 2, 6, 3, 7);
  m[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
  m[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
  m[2] = __builtin_shufflevector(c, d, 0, 1, 4, 5);
  m[3] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
}
#else
/** Swaps the upper right and the lower left quarter of every square of 2 * kSize lanes. */
template <int kSize, int... kLane>
FLASHATTN_INLINE void swap_quarters(Vec (&m)[kLanes], std::integer_sequence<int, kLane...>) {
#pragma GCC unroll 16
  for (int r = 0; r < kLanes; ++r) {
    if (r & kSize) continue;
    const Vec top = m[r], bottom = m[r + kSize];
    m[r] = __builtin_shufflevector(top, bottom, (kLane & kSize ? kLanes + kLane - kSize : kLane)...);
    m[r + kSize] = __builtin_shufflevector(top, bottom, (kLane & kSize ? kLanes + kLane : kLane + kSize)...);
  }
}

using Lanes = std::make_integer_sequence<int, kLanes>;

template <int kFirst, int... kLane>
FLASHATTN_INLINE Vec every_second(Vec a, Vec b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, (2 * kLane + kFirst)...);
}
template <int kFirst, int... kLane>
FLASHATTN_INLINE Vec neighbours(Vec a, Vec b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, (kFirst + kLane / 2 + kLane % 2 * kLanes)...);
}

/** Lanes 0, 2, 4, ... and 1, 3, 5, ... of a and b behind one another. */
FLASHATTN_INLINE Vec even_lanes(Vec a, Vec b) { return every_second<0>(a, b, Lanes{}); }
FLASHATTN_INLINE Vec odd_lanes(Vec a, Vec b) { return every_second<1>(a, b, Lanes{}); }
/** a0, b0, a1, b1, ...: the lower and the upper half of it. */
FLASHATTN_INLINE Vec lower_neighbours(Vec a, Vec b) { return neighbours<0>(a, b, Lanes{}); }
FLASHATTN_INLINE Vec upper_neighbours(Vec a, Vec b) { return neighbours<kLanes / 2>(a, b, Lanes{}); }

FLASHATTN_INLINE void transpose_lanes(Vec (&m)[kLanes]) {
  swap_quarters<1>(m, Lanes{});
  swap_quarters<2>(m, Lanes{});
  if constexpr (kLanes > 4) swap_quarters<4>(m, Lanes{});
  if constexpr (kLanes > 8) swap_quarters<8>(m, Lanes{});
}
#endif
}  // namespace detail

}  // namespace flashattn
