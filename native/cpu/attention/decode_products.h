// The two products of decoding, with keys and values read where they lie. A run of columns is taken in blocks of up to
// four, so that what was read of a key or value meets four queries before it is forgotten.
#pragma once
#include "attention/tile.h"

namespace flashattn {

inline constexpr int kBlockColumns = 4;
// Keys that are read side by side, each a stream for the hardware to run ahead of. Rows of different keys may lie a power
// of two apart and fall into the same set of the cache: more of them would push each other out.
inline constexpr int kStepKeys = 8;

/** How rows of a dtype are read. */
template <DType kDType>
struct Elements {
  static constexpr size_t kSize = element_size(kDType);

  /** The v-th vector from an address on. */
  FLASHATTN_INLINE Vec read(const uint8_t* from, int v) {
    if constexpr (kDType == DType::Float32) {
      return load(reinterpret_cast<const float*>(from) + v * kLanes);
    } else {
      const UintVec bits = load_halves(reinterpret_cast<const uint16_t*>(from) + v * kLanes);
      return kDType == DType::Float16 ? widen_half(bits) : widen_bfloat(bits);
    }
  }
};

/** Calls f with the Elements of a dtype. */
template <class F>
FLASHATTN_INLINE void with_elements(DType dtype, F f) {
  if (dtype == DType::Float32)
    f(Elements<DType::Float32>{});
  else if (dtype == DType::Float16)
    f(Elements<DType::Float16>{});
  else
    f(Elements<DType::BFloat16>{});
}

/** Rows of keys or values, wherever they are: each so many bytes behind its address. */
struct SourceRows {
  const uint8_t* const* rows;  // [key]
  size_t offset;

  const uint8_t* operator[](int j) const { return rows[j] + offset; }
};

namespace detail {

#if !defined(__wasm__)
/** a's and b's sums of pairs of lanes that are kSize apart, side by side: those of b in the upper half of each square. */
template <int kSize, int... kLane>
FLASHATTN_INLINE Vec add_pairs(Vec a, Vec b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, (kLane & kSize ? kLanes + kLane - kSize : kLane)...) +
         __builtin_shufflevector(a, b, (kLane & kSize ? kLanes + kLane : kLane + kSize)...);
}

/** Lane i of the result is the sum of the lanes of sums[i]; kCount is a power of two. */
template <int kCount, int kSize = 1>
FLASHATTN_INLINE Vec fold_lanes(Vec* sums /* [kCount] */) {
  if constexpr (kSize == kLanes) {
    return sums[0];
  } else {
    constexpr bool kPairs = kSize < kCount;
#pragma GCC unroll 16
    for (int i = 0; i < kCount; i += 2 * kSize)
      sums[i] = add_pairs<kSize>(sums[i], sums[kPairs ? i + kSize : i], std::make_integer_sequence<int, kLanes>{});
    return fold_lanes<kCount, 2 * kSize>(sums);
  }
}
#endif

/**
 * to[i * stride] = the sum of the lanes of sums[i]. Lanes are added in one order, whatever kCount is: bits do not depend on how
 * many queries there are.
 */
template <int kCount>
FLASHATTN_INLINE void store_sums(Vec* sums /* [kCount] */, float* to, int stride) {
#if !defined(__wasm__)
  if constexpr (kCount == 3) {
    Vec padded[4] = {sums[0], sums[1], sums[2]};
    const Vec total = fold_lanes<4>(padded);
    for (int i = 0; i < kCount; ++i) to[i * stride] = total[i];
    return;
  } else if constexpr (kCount < kLanes) {
    static_assert((kCount & (kCount - 1)) == 0);
    const Vec total = fold_lanes<kCount>(sums);
    if (stride == 1) {
      __builtin_memcpy(to, &total, kCount * sizeof(float));
    } else {
      for (int i = 0; i < kCount; ++i) to[i * stride] = total[i];
    }
    return;
  }
#endif
  if constexpr (kCount % kLanes == 0) {
#pragma clang loop unroll(full)
    for (int i = 0; i < kCount; i += kLanes) {
      Vec lanes[kLanes];
#pragma clang loop unroll(full)
      for (int l = 0; l < kLanes; ++l) lanes[l] = sums[i + l];
      transpose_lanes(lanes);
#if defined(__wasm__)
      const Vec total = ((lanes[0] + lanes[1]) + lanes[2]) + lanes[3];  // the order of sum_lanes
#else
#pragma GCC unroll 4
      for (int step = 1; step < kLanes; step *= 2) {
#pragma GCC unroll 8
        for (int l = 0; l < kLanes; l += 2 * step) lanes[l] += lanes[l + step];
      }
      const Vec total = lanes[0];
#endif
      if (stride == 1) {
        store(to + i, total);
      } else {
#pragma clang loop unroll(full)
        for (int l = 0; l < kLanes; ++l) to[(i + l) * stride] = total[l];
      }
    }
  } else {
#pragma clang loop unroll(full)
    for (int i = 0; i < kCount; ++i) to[i * stride] = sum_lanes(sums[i]);
  }
}

/** scores[k][c] = key k . query c for kKeys x kColumns of them. */
template <class E, int kKeys, int kColumns>
FLASHATTN_INLINE void dot_block(const SourceRows& keys, int j, const float* queries /* [vector][column][kLanes] */,
                                int vectors, float* scores /* [key][kQueryTile] */) {
  Vec sum[kKeys][kColumns] = {};
  const uint8_t* row[kKeys];
#pragma clang loop unroll(full)
  for (int k = 0; k < kKeys; ++k) row[k] = keys[j + k];
#pragma clang loop unroll(disable)
  for (int v = 0; v < vectors; ++v) {
    Vec key[kKeys];
#pragma clang loop unroll(full)
    for (int k = 0; k < kKeys; ++k) {
      key[k] = E::read(row[k], 0);
      row[k] += kLanes * E::kSize;
      keep_as_pointer(row[k]);
    }
#pragma clang loop unroll(full)
    for (int c = 0; c < kColumns; ++c) {
      const Vec query = load(queries + c * kLanes);
#pragma clang loop unroll(full)
      for (int k = 0; k < kKeys; ++k) sum[k][c] = multiply_add(query, key[k], sum[k][c]);
    }
    queries += kColumns * kLanes;
    keep_as_pointer(queries);
  }
  if constexpr (kColumns == 1) {
    store_sums<kKeys>(&sum[0][0], scores, kQueryTile);
  } else {
#pragma clang loop unroll(full)
    for (int k = 0; k < kKeys; ++k) store_sums<kColumns>(sum[k], scores + k * kQueryTile, 1);
  }
}

/** out[c][d] (+)= sum_k weights[k][c] * value k[d] for kColumns x kVecs vectors of `out`. */
template <class E, int kColumns, int kVecs>
FLASHATTN_INLINE void weigh_block(const SourceRows& values, int j, int count, int d,
                                  const float* weights /* [key][kQueryTile] */, float* out /* [column][kRowStride] */,
                                  bool begins) {
  Vec sum[kColumns][kVecs] = {};
  if (!begins) {
#pragma clang loop unroll(full)
    for (int c = 0; c < kColumns; ++c) {
#pragma clang loop unroll(full)
      for (int v = 0; v < kVecs; ++v) sum[c][v] = load(out + c * kRowStride + d + v * kLanes);
    }
  }
  const uint8_t* const* rows = values.rows + j;
  const size_t offset = values.offset + d * E::kSize;
#pragma clang loop unroll(disable)
  for (int k = 0; k < count; ++k) {
    const uint8_t* const row = *rows + offset;
    Vec value[kVecs];
#pragma clang loop unroll(full)
    for (int v = 0; v < kVecs; ++v) value[v] = E::read(row, v);
    ++rows;
    keep_as_pointer(rows);
#pragma clang loop unroll(full)
    for (int c = 0; c < kColumns; ++c) {
      const Vec weight = load_splat(weights + c);
#pragma clang loop unroll(full)
      for (int v = 0; v < kVecs; ++v) sum[c][v] = multiply_add(weight, value[v], sum[c][v]);
    }
    weights += kQueryTile;
    keep_as_pointer(weights);
  }
#pragma clang loop unroll(full)
  for (int c = 0; c < kColumns; ++c) {
#pragma clang loop unroll(full)
    for (int v = 0; v < kVecs; ++v) store(out + c * kRowStride + d + v * kLanes, sum[c][v]);
  }
}

// Sums that stay in registers, as in product.h.
#if defined(__AVX512F__)
inline constexpr int kSums = 16;
#else
inline constexpr int kSums = 8;
#endif

template <class E, int kColumns>
FLASHATTN_CALLED void dot_keys(const SourceRows& keys, int j, int count, const float* queries, int vectors,
                               float* scores) {
  constexpr int kKeys = kSums / kColumns;
  const int end = j + count;
  for (; j + kKeys <= end; j += kKeys, scores += kKeys * kQueryTile)
    dot_block<E, kKeys, kColumns>(keys, j, queries, vectors, scores);
  for (; j < end; ++j, scores += kQueryTile) dot_block<E, 1, kColumns>(keys, j, queries, vectors, scores);
}

template <class E, int kColumns>
FLASHATTN_CALLED void weigh_keys(const SourceRows& values, int j, int count, const float* weights, int vectors,
                                 float* out, bool begins) {
  constexpr int kVecs = kSums / kColumns;
  int v = 0;
  for (; v + kVecs <= vectors; v += kVecs)
    weigh_block<E, kColumns, kVecs>(values, j, count, v * kLanes, weights, out, begins);
  for (; v < vectors; ++v) weigh_block<E, kColumns, 1>(values, j, count, v * kLanes, weights, out, begins);
}

template <int kCount>
struct Columns {
  static constexpr int count = kCount;
};

/** Calls f(first column, its number of columns as a type) for the blocks of a run. */
template <class F>
FLASHATTN_INLINE void for_each_block(int columns, F f) {
  static_assert(kBlockColumns == 4);
  int c = 0;
  for (; c + 4 <= columns; c += 4) f(c, Columns<4>{});
  if (columns - c == 3) f(c, Columns<3>{});
  if (columns - c == 2) f(c, Columns<2>{});
  if (columns - c == 1) f(c, Columns<1>{});
}

}  // namespace detail

/** Queries of a run as dot_run reads them: block after block, [vector][column of the block][kLanes]. */
inline float* run_query(float* run, int column, int columns, int vectors, int v) {
  const int first = column / kBlockColumns * kBlockColumns, width = min(kBlockColumns, columns - first);
  return run + (first * vectors + v * width + (column - first)) * kLanes;
}

/** scores[k][c] = key (j + k) . query c */
template <class E>
inline void dot_run(const SourceRows& keys, int j, int count, const float* queries /* see run_query */, int columns,
                    int vectors, float* scores /* [key][kQueryTile] */) {
  detail::for_each_block(columns, [&](int c, auto width) {
    detail::dot_keys<E, width.count>(keys, j, count, queries + c * vectors * kLanes, vectors, scores + c);
  });
}

/** out[c] += sum_k weights[k][c] * value (j + k), or = where the sum begins. */
template <class E>
inline void weigh_run(const SourceRows& values, int j, int count, const float* weights /* [key][kQueryTile] */,
                      int columns, int vectors, float* out /* [column][kRowStride] */, bool begins) {
  detail::for_each_block(columns, [&](int c, auto width) {
    detail::weigh_keys<E, width.count>(values, j, count, weights + c, vectors, out + c * kRowStride, begins);
  });
}

}  // namespace flashattn
