// Products of bfloat16: an instruction multiplies two neighbouring elements with two others and adds both products to a
// float32. A word holds such a pair, neighbours along the dim that is summed over, the first in its lower half; words stand
// where the float32 tiles have floats, so that the product of product.h runs over half as many steps.
//
// These instructions take what is below the normal float32 for zero, and scores meet their scale only afterwards. So tiles
// whose elements are all zero or of ordinary size go this way, and the others, those with NaN and Infinity among them, as
// float32.
#pragma once
#include "attention/tile.h"
#include "simd/tiles.h"

namespace flashattn {

#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
inline constexpr bool kHasPairs = true;
#else
inline constexpr bool kHasPairs = kHasTiles;
#endif

/** Key tiles are narrowed to multiples of so many keys. */
inline constexpr int kKeyUnit = kHasTiles ? 2 * kTileSide : 2;
static_assert(kKeyTile % kKeyUnit == 0 && kQueryTile % kTileSide == 0);

/** A tile of float32 as one of pairs. */
inline uint32_t* words_of(float* tile) { return reinterpret_cast<uint32_t*>(tile); }

/** The arithmetic of product.h on pairs. */
struct BFloat16Pairs {
  FLASHATTN_INLINE Vec multiply_add(Vec a, Vec b, Vec c) {
#if defined(__AVX512BF16__)
#if defined(__clang__)
    asm("" : "+v"(a), "+v"(b));  // clang 16 ends itself where an operand is a broadcast, if it sees that
#endif
    return (Vec)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    return (Vec)vbfdotq_f32((float32x4_t)c, (bfloat16x8_t)a, (bfloat16x8_t)b);
#else
    return a * b + c;  // never run
#endif
  }
};

template <class S>
struct PairsOf : S {
  using Arithmetic = BFloat16Pairs;
};

namespace detail {

typedef uint32_t UnalignedPairs __attribute__((vector_size(kLanes * 4), aligned(2), may_alias));
static_assert(alignof(UnalignedPairs) == 2);

inline constexpr uint32_t kLeastOrdinary = (127 - 60) << 7, kMostOrdinary = (127 + 40) << 7;  // 2^-60 and 2^40

/** Lanes whose pairs hold something that is neither zero nor of ordinary size. */
FLASHATTN_INLINE IntVec odd_sized(UintVec words) {
  const auto is_odd = [](UintVec magnitude) {
    return (IntVec)((magnitude != 0u) & ((magnitude < kLeastOrdinary) | (magnitude > kMostOrdinary)));
  };
  return is_odd(words & 0x7fffu) | is_odd((words >> 16) & 0x7fffu);
}

/** A row of n elements as words, padded with zeros to whole vectors. */
FLASHATTN_INLINE void load_words(uint32_t* to, const uint8_t* from, int n) {
  const int words = divide_up(n, 2), full = n / (2 * kLanes) * kLanes;
  for (int i = 0; i < full; i += kLanes) store_bits(to + i, *reinterpret_cast<const UnalignedPairs*>(from + 4 * i));
  if (full == words) return;
  uint32_t rest[kLanes] = {};
  __builtin_memcpy(rest, from + 4 * full, size_t(2 * n - 4 * full));
  store_bits(to + full, load_bits(rest));
}

}  // namespace detail

/** Rows as pairs along their dim. Returns whether all elements are ordinary. */
FLASHATTN_CALLED bool load_pairs(uint32_t* to /* [count][kRowStride] */, const TensorRef& from, int b, int begin,
                                 int count, int h, int dim) {
  IntVec odd{};
  const int words = divide_up(dim, 2);
  for (int r = 0; r < count; ++r, to += kRowStride) {
    detail::load_words(to, from.row(b, begin + r, h), dim);
    for (int d = 0; d < words; d += kLanes) odd |= detail::odd_sized(load_bits(to + d));
  }
  return !any(odd);
}

/** Rows as pairs of two rows after one another. Returns whether all elements are ordinary. */
FLASHATTN_CALLED bool load_row_pairs(uint32_t* to /* [count / 2][kRowStride] */, const TensorRef& from, int b,
                                     int begin, int count, int h, int dim) {
  IntVec odd{};
  for (int r = 0; r < count; r += 2, to += kRowStride) {
    const auto* upper = reinterpret_cast<const uint16_t*>(from.row(b, begin + r, h));
    const auto* lower = r + 1 < count ? reinterpret_cast<const uint16_t*>(from.row(b, begin + r + 1, h)) : nullptr;
    for (int d = 0; d < dim; d += kLanes) {
      UintVec first{}, second{};
      if (d + kLanes <= dim) {
        first = load_halves(upper + d);
        if (lower) second = load_halves(lower + d);
      } else {
        for (int lane = 0; lane < dim - d; ++lane) {
          first[lane] = upper[d + lane];
          if (lower) second[lane] = lower[d + lane];
        }
      }
      const UintVec words = first | (second << 16);
      odd |= detail::odd_sized(words);
      store_bits(to + d, words);
    }
  }
  return !any(odd);
}

/** columns[w][q] = rows[q][w]; queries past `count` are zero up to a whole vector. */
FLASHATTN_CALLED void transpose_pairs(uint32_t* columns /* [words][kQueryTile] */,
                                      const uint32_t* rows /* [count][kRowStride] */, int count, int words) {
  for (int q = 0; q < count; q += kLanes) {
    for (int w = 0; w < words; w += kLanes) {
      Vec m[kLanes];
      for (int r = 0; r < kLanes; ++r) m[r] = q + r < count ? (Vec)load_bits(rows + (q + r) * kRowStride + w) : Vec{};
      detail::transpose_lanes(m);
      for (int r = 0; r < kLanes; ++r) store_bits(columns + (w + r) * kQueryTile + q, (UintVec)m[r]);
    }
  }
}

namespace detail {

/** Two rows of probabilities as pairs. */
FLASHATTN_INLINE UintVec pair_of(const float* first, const float* second) {
  const UintVec upper = second ? narrow_bfloat(load(second)) : UintVec{};
  return narrow_bfloat(load(first)) | (upper << 16);
}

}  // namespace detail

/** Probabilities, rounded, become pairs of two keys after one another, in place. */
FLASHATTN_CALLED void pair_scores(int keys, int query_vectors, float* scores /* [key][query] */) {
  uint32_t* words = words_of(scores);
  for (int j = 0; j < keys; j += 2, words += kQueryTile) {
    const float* first = scores + j * kQueryTile;
    for (int v = 0; v < query_vectors * kLanes; v += kLanes)
      store_bits(words + v, detail::pair_of(first + v, j + 1 < keys ? first + kQueryTile + v : nullptr));
  }
}

/** The same, as rows of queries: what tiles need. Past the last key they are zero up to a whole tile. */
FLASHATTN_CALLED void pair_score_rows(int keys, int query_vectors, const float* scores /* [key][query] */,
                                      uint32_t* rows /* [query][kKeyTile / 2] */) {
  const int pairs = divide_up(keys, 2);
  for (int v = 0; v < query_vectors * kLanes; v += kLanes) {
    for (int j = 0; j < round_up(pairs, kLanes); j += kLanes) {
      Vec m[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        const float* first = scores + 2 * (j + lane) * kQueryTile + v;
        const bool whole = 2 * (j + lane) + 1 < keys;
        m[lane] = j + lane < pairs ? (Vec)detail::pair_of(first, whole ? first + kQueryTile : nullptr) : Vec{};
      }
      detail::transpose_lanes(m);
      for (int lane = 0; lane < kLanes; ++lane) store_bits(rows + (v + lane) * (kKeyTile / 2) + j, (UintVec)m[lane]);
    }
  }
}

}  // namespace flashattn
