// Rotary positions: Su et al., "RoFormer" (2021). Rows of queries and keys are turned as they are loaded into a tile, and their
// gradients turned back as they are stored: what is turned is never in memory.
#pragma once
#include "attention/pairs.h"
#include "attention/place.h"

namespace flashattn {

enum class Turn { Forth, Back };

namespace detail {

/** x + iy times cos + i sin, or times the conjugate of that: the inverse of a turn, and the gradient of any factor. */
template <Turn kTurn>
FLASHATTN_INLINE void turn(Vec& x, Vec& y, const float* cos, const float* sin) {
  const Vec c = load(cos), s = kTurn == Turn::Forth ? load(sin) : -load(sin), of_x = x;
  x = multiply_add(of_x, c, -(y * s));
  y = multiply_add(y, c, of_x * s);
}

template <Turn kTurn>
inline void turn(float& x, float& y, float cos, float sin) {
  const float s = kTurn == Turn::Forth ? sin : -sin, of_x = x;
  x = of_x * cos - y * s;
  y = y * cos + of_x * s;
}

template <Turn kTurn>
FLASHATTN_CALLED void turn_row(float* row /* [2 * pairs and more] */, const float* cos, const float* sin /* [pairs] */,
                               int pairs, bool interleaved) {
  const int whole = pairs / kLanes * kLanes;
  if (interleaved) {
    for (int i = 0; i < whole; i += kLanes) {
      float* const at = row + 2 * i;
      const Vec a = load(at), b = load(at + kLanes);
      Vec x = even_lanes(a, b), y = odd_lanes(a, b);
      turn<kTurn>(x, y, cos + i, sin + i);
      store(at, lower_neighbours(x, y));
      store(at + kLanes, upper_neighbours(x, y));
    }
    for (int i = whole; i < pairs; ++i) turn<kTurn>(row[2 * i], row[2 * i + 1], cos[i], sin[i]);
  } else {
    for (int i = 0; i < whole; i += kLanes) {
      Vec x = load(row + i), y = load(row + pairs + i);
      turn<kTurn>(x, y, cos + i, sin + i);
      store(row + i, x);
      store(row + pairs + i, y);
    }
    for (int i = whole; i < pairs; ++i) turn<kTurn>(row[i], row[pairs + i], cos[i], sin[i]);
  }
}

/** Rows of positions from `position` on. */
template <Turn kTurn>
inline void turn_rows(const RotaryParams& r, const RotaryAngles& angles, int position, int count,
                      float* rows /* [count][kRowStride] */) {
  for (int i = 0; i < count; ++i) {
    const size_t at = size_t(position + i) * r.pairs;
    turn_row<kTurn>(rows + i * kRowStride, angles.cos + at, angles.sin + at, r.pairs, r.interleaved);
  }
}

/** Rows as pairs, each turned in `row`. Returns whether all elements are ordinary. */
FLASHATTN_CALLED bool load_turned_pairs(const RotaryParams& r, const RotaryAngles& angles, int position,
                                        uint32_t* to /* [count][kRowStride] */, const TensorRef& from, int b, int begin,
                                        int count, int h, int dim) {
  alignas(kCacheLine) float row[kMaxDim + kLanes] = {};
  IntVec odd{};
  for (int i = 0; i < count; ++i, to += kRowStride) {
    load_row(row, from.row(b, begin + i, h), from.dtype, dim);
    turn_rows<Turn::Forth>(r, angles, position + i, 1, row);
    for (int d = 0; d < dim; d += 2 * kLanes) {
      const Vec first = load(row + d), second = d + kLanes < dim ? load(row + d + kLanes) : Vec{};
      const UintVec words = narrow_bfloat(even_lanes(first, second)) | (narrow_bfloat(odd_lanes(first, second)) << 16);
      odd |= odd_sized(words);
      store_bits(to + d / 2, words);
    }
  }
  return !any(odd);
}

/** Queries without a key see nothing, and have no position. */
inline bool turns(const AttentionParams& p, const Sequence& s) { return p.rotary.pairs > 0 && s.key_length > 0; }

}  // namespace detail

/** The queries of a place, as the scores take them. */
inline void load_query_rows(float* to /* [query][kRowStride] */, const Place& at, const Sequence& s) {
  const AttentionParams& p = at.p;
  load_rows(to, p.query, at.b, s.query_begin + at.queries.begin, at.query_count(), at.h, p.head_dim);
  if (detail::turns(p, s))
    detail::turn_rows<Turn::Forth>(p.rotary, p.rotary.query, at.queries.begin + at.diagonal, at.query_count(), to);
}

/** Keys or values of a place. */
inline void load_kv_rows(float* to /* [key][kRowStride] */, const TensorRef& from, const Place& at, const Sequence& s,
                         int kv_head, int dim) {
  const PageParams& pages = at.p.pages;
  if (!pages.size) return load_rows(to, from, at.b, s.key_begin + at.keys.begin, at.key_count(), kv_head, dim);
  for (int r = 0; r < at.key_count(); ++r)
    load_rows(to + r * kRowStride, from, 0, int(pages.row(at.b, s.key_begin + at.keys.begin + r)), 1, kv_head, dim);
}

/** Keys of a place, which are at `to`, become what the scores take. Those in pages have been turned before. */
inline void turn_key_rows(float* to /* [key][kRowStride] */, const Place& at) {
  const RotaryParams& r = at.p.rotary;
  if (r.pairs && r.key.cos) detail::turn_rows<Turn::Forth>(r, r.key, at.keys.begin, at.key_count(), to);
}

/** The keys of a place, as the scores take them. */
inline void load_key_rows(float* to /* [key][kRowStride] */, const Place& at, const Sequence& s, int kv_head) {
  load_kv_rows(to, at.p.key, at, s, kv_head, at.p.head_dim);
  turn_key_rows(to, at);
}

/** The same as pairs. Returns whether all elements are ordinary. */
inline bool load_query_pairs(uint32_t* to /* [query][kRowStride] */, const Place& at, const Sequence& s) {
  const AttentionParams& p = at.p;
  const int begin = s.query_begin + at.queries.begin, count = at.query_count();
  return detail::turns(p, s) ? detail::load_turned_pairs(p.rotary, p.rotary.query, at.queries.begin + at.diagonal, to,
                                                         p.query, at.b, begin, count, at.h, p.head_dim)
                             : load_pairs(to, p.query, at.b, begin, count, at.h, p.head_dim);
}

inline bool load_key_pairs(uint32_t* to /* [key][kRowStride] */, const Place& at, const Sequence& s, int kv_head) {
  const AttentionParams& p = at.p;
  const int begin = s.key_begin + at.keys.begin, count = at.key_count();
  return detail::turns(p, s) ? detail::load_turned_pairs(p.rotary, p.rotary.key, at.keys.begin, to, p.key, at.b, begin,
                                                         count, kv_head, p.head_dim)
                             : load_pairs(to, p.key, at.b, begin, count, kv_head, p.head_dim);
}

/** The gradient of turned queries [begin, ...) of a sequence becomes that of the queries. */
inline void turn_query_gradient_back(const AttentionParams& p, const Sequence& s, int begin, int count,
                                     float* rows /* [count][kRowStride] */) {
  if (detail::turns(p, s))
    detail::turn_rows<Turn::Back>(p.rotary, p.rotary.query, begin + diagonal_of(p, s), count, rows);
}

inline void turn_key_gradient_back(const AttentionParams& p, int begin, int count,
                                   float* rows /* [count][kRowStride] */) {
  if (p.rotary.pairs) detail::turn_rows<Turn::Back>(p.rotary, p.rotary.key, begin, count, rows);
}

}  // namespace flashattn
