// From Q K^T to logits: softcap, bias, relative positions, ALiBi, score_mod and the mask, on one score tile [key][query].
//
// Logits are float32 in their natural unit, so that they reach as far as their inputs do: a finite one, however low, is
// a logit like any other, and only -Infinity hides. What leaves the range of float32 on its way (q.k, or a sum of its
// terms) is infinite, as it is in any float32 arithmetic: -Infinity hides the key, +Infinity makes the row NaN.
#pragma once
#include "attention/score_mod.h"
#include "simd/math.h"
#include "simd/philox.h"

namespace flashattn {

// The scale is applied where it cannot overflow what fits in the end: to the queries when it makes them smaller, to their
// products with the keys when it makes those larger. One of the two factors is 1.
inline float query_factor(float scale) { return __builtin_fabsf(scale) < 1 ? scale : 1.0f; }
inline float product_factor(float scale) { return __builtin_fabsf(scale) < 1 ? 1.0f : scale; }
inline float query_factor(const AttentionParams& p) { return query_factor(p.scale); }
inline float product_factor(const AttentionParams& p) { return product_factor(p.scale); }

namespace detail {

/**
 * Visits the tile's elements, visible or not, one by one: f(score, query position, key position). Leaves out those among
 * both the first `done_queries` queries and the first `done_keys` keys.
 */
template <class F>
inline void for_each_score(const Place& at, float* scores, int done_queries, int done_keys, F f) {
  for (int j = 0; j < at.key_count(); ++j)
    for (int i = j < done_keys ? done_queries : 0; i < at.query_count(); ++i)
      f(scores[j * kQueryTile + i], at.queries.begin + i, at.keys.begin + j);
}

FLASHATTN_CALLED void apply_softcap(const Place& at, float* scores, float* slopes) {
  const Vec cap = splat(at.p.softcap);
  for_each_vector(at, scores, [&](float* s, IntVec, int) {
    const Vec t = tanh(load(s) / cap);
    if (slopes) store(slopes + (s - scores), splat(1.0f) - t * t);
    store(s, cap * t);
  });
}

/** A bias of -Infinity hides a key, and its NaN with it. */
FLASHATTN_INLINE Vec biased(Vec score, Vec bias) { return select(bias == splat(-kInfinity), bias, score + bias); }

/** Adds a square of kLanes queries x kLanes keys whose rows are contiguous in the bias. */
FLASHATTN_INLINE void add_bias_square(float* scores /* [key][query] */, const float* bias, size_t query_stride) {
  Vec square[kLanes];
#pragma clang loop unroll(full)
  for (int i = 0; i < kLanes; ++i) square[i] = load(bias + i * query_stride);
  transpose_lanes(square);
#pragma clang loop unroll(full)
  for (int j = 0; j < kLanes; ++j) store(scores + j * kQueryTile, biased(load(scores + j * kQueryTile), square[j]));
}

FLASHATTN_CALLED void add_bias(const Place& at, float* scores) {
  const BiasParams& bias = at.p.bias;
  const float* base = bias.data + at.b * size_t(bias.batch) + at.h * size_t(bias.head);
  // Where keys are contiguous, whole squares are transposed in registers; the rest goes one by one.
  const bool contiguous = bias.key == 1;
  const int square_keys = contiguous ? at.key_count() / kLanes * kLanes : 0;
  const int square_queries = contiguous ? at.query_count() / kLanes * kLanes : 0;
  for (int j = 0; j < square_keys; j += kLanes)
    for (int i = 0; i < square_queries; i += kLanes)
      add_bias_square(scores + j * kQueryTile + i,
                      base + (at.queries.begin + i) * size_t(bias.query) + at.keys.begin + j, bias.query);
  for_each_score(at, scores, square_queries, square_keys, [&](float& s, int i, int j) {
    const float b = base[i * size_t(bias.query) + j * size_t(bias.key)];
    s = b == -kInfinity ? b : s + b;
  });
}

FLASHATTN_CALLED void add_alibi(const Place& at, float* scores) {
  const Vec slope = splat(-at.p.alibi.slopes[at.b * size_t(at.p.alibi.batch) + at.h]);
  for_each_vector(at, scores, [&](float* s, IntVec i, int j) {
    const IntVec offset = i + (at.diagonal - j), sign = offset >> 31;
    const IntVec distance = (offset ^ sign) - sign;
    store(s, multiply_add(slope, __builtin_convertvector(distance, Vec), load(s)));
  });
}

}  // namespace detail

FLASHATTN_CALLED void scale_scores(int keys, int query_vectors, float* scores /* [key][query] */, float factor) {
  for (int row = 0; row < keys * kQueryTile; row += kQueryTile)
    for (int v = 0; v < query_vectors * kLanes; v += kLanes)
      store(scores + row + v, load(scores + row + v) * splat(factor));
}
inline void scale_scores(const Place& at, float* scores, float factor) {
  scale_scores(at.key_count(), at.query_vectors(), scores, factor);
}

inline int relative_bucket(const RelativeParams& r, int i, int j) {
  const int query = r.query_position ? r.query_position[i] : i, key = r.key_position ? r.key_position[j] : j;
  return r.buckets[key - query + r.origin];
}

/** Tiles that receive the derivatives of what scores go through. */
struct ScoreSlopes {
  float *softcap = nullptr, *mod = nullptr;
};

/** In: q.k, `factor` times smaller than it is to be. Out: logits. */
FLASHATTN_CALLED void finish_scores(const Place& at, float* scores, float factor, ScoreRows& ws,
                                    ScoreSlopes slopes = {}) {
  const AttentionParams& p = at.p;
  if (factor != 1) scale_scores(at, scores, factor);
  if (p.softcap > 0) detail::apply_softcap(at, scores, slopes.softcap);
  if (p.bias.data) detail::add_bias(at, scores);
  if (p.relative.table)
    detail::for_each_score(at, scores, 0, 0, [&](float& s, int i, int j) {
      s += p.relative.table[relative_bucket(p.relative, i, j) * p.heads + at.h];
    });
  if (p.alibi.slopes) detail::add_alibi(at, scores);
  if (p.score_mod.program) modify_scores(at, scores, ws, slopes.mod);
}

/** Whether scores that the mask shows may be -Infinity, which hides. */
inline bool scores_hide(const AttentionParams& p) { return p.bias.data || p.score_mod.program; }

/** Masked scores become -Infinity, whatever they were. */
FLASHATTN_CALLED void hide_scores(const Place& at, float* scores) {
  const Vec hidden = splat(-kInfinity);
  if (at.band.cover(at.queries, at.keys) == Cover::Partial) {
    detail::for_each_vector(at, scores, [&](float* s, IntVec i, int j) {
      const IntVec distance = j - i;
      store(s, select((distance >= at.band.low) & (distance <= at.band.high), load(s), hidden));
    });
  }
  if (!at.bits.words) return;
  for (int v = 0; v < at.query_vectors() * kLanes; v += kLanes) {
    UintVec visible{};
    for (int j = at.keys.begin; j < at.keys.end; ++j) {
      const int bit = j - at.bits.key;
      if (bit % 32 == 0 || j == at.keys.begin) visible = at.bits.gather(at.queries.begin + v, at.queries.end, bit / 32);
      float* s = scores + (j - at.keys.begin) * kQueryTile + v;
      store(s, select((IntVec)(visible << (31 - bit % 32)) < 0, load(s), hidden));
    }
  }
}

/** Which pairs a guarded product must skip: those hidden by the mask, or by a bias or score_mod of -Infinity. */
inline void mark_hidden(int keys, int query_vectors, const float* scores, uint32_t* hidden /* both [key][query] */) {
  for (int row = 0; row < keys * kQueryTile; row += kQueryTile)
    for (int v = 0; v < query_vectors * kLanes; v += kLanes)
      store_bits(hidden + row + v, (UintVec)(load(scores + row + v) == splat(-kInfinity)));
}
inline void mark_hidden(const Place& at, const float* scores, uint32_t* hidden) {
  mark_hidden(at.key_count(), at.query_vectors(), scores, hidden);
}

/** Dropout factors of a tile: 0 or 1 / (1 - p). One Philox call yields four consecutive keys of a query. */
FLASHATTN_CALLED void dropout_factors(const Place& at, float* factors /* [key][query] */) {
  const DropoutParams& d = at.p.dropout;
  const uint32_t stream = static_cast<uint32_t>(at.b * at.p.heads + at.h);
  for (int j = at.keys.begin & ~3; j < at.keys.end; j += 4) {
    for (int v = 0; v < at.query_vectors(); ++v) {
      const UintVec i = (UintVec)iota(at.queries.begin + v * kLanes);
      const Philox random =
          philox(UintVec{} + uint32_t(j) / 4, i, UintVec{} + stream, UintVec{}, d.seed_low, d.seed_high);
      for (int w = 0; w < 4; ++w) {
        if (j + w < at.keys.begin || j + w >= at.keys.end) continue;
        const IntVec kept = random.word[w] >= d.threshold;
        store(factors + (j + w - at.keys.begin) * kQueryTile + v * kLanes,
              (Vec)((UintVec)splat(d.keep_scale) & (UintVec)kept));
      }
    }
  }
}

FLASHATTN_CALLED void multiply_scores(const Place& at, float* scores, const float* factors) {
  for (int row = 0; row < at.key_count() * kQueryTile; row += kQueryTile)
    for (int v = 0; v < at.query_vectors() * kLanes; v += kLanes)
      store(scores + row + v, load(scores + row + v) * load(factors + row + v));
}

}  // namespace flashattn
