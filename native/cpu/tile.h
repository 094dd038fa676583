// Tiles: how a worker keeps queries, keys and scores in its cache, and how rows get there.
//
// Score tiles are transposed, [key][query]: vector lanes are queries, so softmax is vertical, row sums need no
// shuffles, and a query's running state is one lane. Rows of keys and values are copied once per tile: in the tensor
// they may be kilobytes apart (all heads lie between two keys) and fall into the same few cache sets.
#pragma once
#include "element.h"
#include "product.h"
#include "structs/attention.h"
#if !defined(__wasm__)
#include <utility>
#endif

namespace flashattn {

inline constexpr int kQueryTile = 32;
// The wider the vectors, the less time the products of a tile take beside what happens once for it: to load it, and to
// take up and put down the sums of the other side.
inline constexpr int kKeyTile = kLanes > 4 ? 128 : 64;
inline constexpr int kMaxTilesPerItem = kLanes > 4 ? 8 : 4;  // query tiles that share each loaded key tile
inline constexpr int kMaxDim = 256;
// One constant stride for every head dim lets the product run without a multiplication or a template per head dim.
// The extra floats spread the rows over the sets of the cache; with a whole vector of them rows begin with a cache line
// where vectors are as long as one.
inline constexpr int kRowStride = kMaxDim + kLanes;

// A vector that straddles two cache lines is read twice: arrays of a workspace have whole lines and stand before anything
// smaller.
inline constexpr size_t kCacheLine = 64;

using QueryRows = float[kQueryTile * kRowStride];  // [query][dim]
using KeyRows = float[kKeyTile * kRowStride];      // [key][dim]
using QueryColumns = float[kMaxDim * kQueryTile];  // [dim][query]
using ScoreTile = float[kKeyTile * kQueryTile];    // [key][query]

// The three ways in which a product reads them (see product.h).
using KeyRowsTimesQueryColumns = Strides<kRowStride, 1, kQueryTile>;        // [key, dim] x [dim, query]
using ScoresTimesKeyRows = Strides<1, kQueryTile, kRowStride>;              // [query, key] x [key, dim]
using ScoresTransposedTimesQueryRows = Strides<kQueryTile, 1, kRowStride>;  // [key, query] x [query, dim]

static_assert(sizeof(QueryRows) % kCacheLine == 0 && sizeof(KeyRows) % kCacheLine == 0);

/** Rows [begin, begin + count) of one head, as float32, padded with zeros to whole vectors. */
FLASHATTN_CALLED void load_rows(float* to /* [count][kRowStride] */, const TensorRef& from, int b, int begin, int count,
                                int h, int dim) {
  for (int r = 0; r < count; ++r) load_row(to + r * kRowStride, from.row(b, begin + r, h), from.dtype, dim);
}

namespace detail {
#if defined(__wasm__)
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

FLASHATTN_INLINE void transpose_lanes(Vec (&m)[kLanes]) {
  using Lanes = std::make_integer_sequence<int, kLanes>;
  swap_quarters<1>(m, Lanes{});
  swap_quarters<2>(m, Lanes{});
  if constexpr (kLanes > 4) swap_quarters<4>(m, Lanes{});
  if constexpr (kLanes > 8) swap_quarters<8>(m, Lanes{});
}
#endif
}  // namespace detail

/** columns[d][q] = rows[q][d] * factor; queries past `count` are zero up to a whole vector. */
FLASHATTN_CALLED void transpose_rows(float* columns /* [dim][kQueryTile] */,
                                     const float* rows /* [count][kRowStride] */, int count, int dim, float factor) {
  const Vec f = splat(factor);
  for (int q = 0; q < count; q += kLanes) {
    for (int d = 0; d < dim; d += kLanes) {
      Vec m[kLanes];
      for (int r = 0; r < kLanes; ++r) m[r] = q + r < count ? load(rows + (q + r) * kRowStride + d) * f : Vec{};
      detail::transpose_lanes(m);
      for (int r = 0; r < kLanes; ++r) store(columns + (d + r) * kQueryTile + q, m[r]);
    }
  }
}

inline bool all_finite(const float* rows /* [count][kRowStride] */, int count, int dim) {
  IntVec special{};
  for (int r = 0; r < count; ++r)
    for (int d = 0; d < dim; d += kLanes)
      special |= ((UintVec)load(rows + r * kRowStride + d) & 0x7fffffffu) > 0x7f7fffffu;
  return !any(special);
}

/** Whether loaded rows are finite: looked at when first asked, remembered until the next rows are loaded. */
struct Finite {
  bool known = false, finite = false;

  bool check(const float* rows, int count, int dim) {
    if (!known) *this = {true, all_finite(rows, count, dim)};
    return finite;
  }
};

inline void fill(float* to, float value, int n) {
  for (int i = 0; i < n; i += kLanes) store(to + i, splat(value));
}

inline void clear_rows(float* rows /* [count][kRowStride] */, int count, int dim) {
  for (int r = 0; r < count; ++r) fill(rows + r * kRowStride, 0.0f, dim);
}

}  // namespace flashattn
