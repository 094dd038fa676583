// Tiles: how a worker keeps queries, keys and scores in its cache, and how rows get there.
//
// Score tiles are transposed, [key][query]: vector lanes are queries, so softmax is vertical, row sums need no
// shuffles, and a query's running state is one lane. Rows of keys and values are copied once per tile: in the tensor
// they may be kilobytes apart (all heads lie between two keys) and fall into the same few cache sets.
#pragma once
#include "simd/element.h"
#include "simd/product.h"
#include "simd/rows.h"
#include "simd/transpose.h"
#include "structs/attention.h"

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

/**
 * Rows that will be loaded next, asked for a few lines at a time while something else is computed: they lie apart, so that
 * no processor guesses where they are, and one that is asked for all at once waits for them.
 */
struct RowsAhead {
  const uint8_t* row = nullptr;
  size_t stride = 0;
  int rows = 0, bytes = 0, at = 0;

  RowsAhead() = default;
  RowsAhead(const TensorRef& from, int b, int begin, int count, int h, int dim)
      : row(from.row(b, begin, h)),
        stride(size_t(from.seq) * element_size(from.dtype)),
        rows(count),
        bytes(dim * element_size(from.dtype)) {}

  /** Asks for the next line. Returns false when there is none left. */
  bool ask() {
    if (rows <= 0) return false;
    __builtin_prefetch(row + at, 0, 2);
    at += kCacheLine;
    if (at < bytes) return true;
    at = 0;
    row += stride;
    --rows;
    return true;
  }
};

/** Rows of the next tile, of two tensors. */
struct TileAhead {
  static constexpr int kLines = 16;  // as many as a processor waits for at a time
  RowsAhead first, second;

  FLASHATTN_INLINE void step([[maybe_unused]] TileAhead& ahead) {
#if !defined(__wasm__)
    for (int line = 0; line < kLines && (ahead.first.ask() || ahead.second.ask()); ++line) {
    }
#endif
  }
};

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

inline void clear_rows(float* rows /* [count][kRowStride] */, int count, int dim) {
  for (int r = 0; r < count; ++r) fill(rows + r * kRowStride, 0.0f, dim);
}

}  // namespace flashattn
