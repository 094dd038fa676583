// Attention across heads, forward: the tile loop holds all heads of a tile of pairs, as mixtures of them need.
//
// Mixing probabilities needs the whole softmax, so a tile of queries meets its keys twice: for the sums of powers, and for the
// values. Where the powers of all keys fit the second cache they are kept in between; otherwise they are computed again.
#pragma once
#include "attention/mixed_heads.h"
#include "attention/softmax.h"

namespace flashattn {

struct alignas(kCacheLine) HeadMixingWorkspace {
  KeyRows key;      // of one head
  QueryRows query;  // of one head
  uint32_t hidden[kMixedKeys * kQueryTile];
  float shrink[kQueryTile];
  float spare[kHeadTile];
  TileAhead ahead;
};

namespace detail {

/** Parts of an array, each of whole cache lines. */
struct Parts {
  float* at;

  float* take(size_t floats) {
    float* const part = at;
    at += (floats + 15) / 16 * 16;
    return part;
  }
};

/** The tensor from element d of each row on. */
inline TensorRef from_element(const TensorRef& t, int d) {
  TensorRef part = t;
  part.data = static_cast<uint8_t*>(static_cast<void*>(t.data)) + size_t(d) * element_size(t.dtype);
  return part;
}

/** Calls f(first, count) for the parts of a head dim that rows of a tile hold. */
template <class F>
FLASHATTN_INLINE void for_parts(int dim, F f) {
  for (int d = 0; d < dim; d += kMaxDim) f(d, min(kMaxDim, dim - d));
}

inline size_t columns_floats(int dim) { return size_t(round_up(dim, 16)) * kQueryTile; }

/** Rows of queries of one head become columns [dim][kQueryTile]. */
FLASHATTN_CALLED void load_columns(const TensorRef& from, const MixedPlace& at, int h, int dim, float factor,
                                   float* rows, float* columns) {
  for_parts(dim, [&](int d, int count) {
    load_rows(rows, from_element(from, d), at.b, at.queries.begin, at.query_count(), h, count);
    transpose_rows(columns + size_t(d) * kQueryTile, rows, at.query_count(), count, factor);
  });
}

/** tile = rows of keys, or values, times columns of queries, or of gradients. */
FLASHATTN_CALLED void multiply_rows_columns(const MixedPlace& at, const TensorRef& from, int h, int dim,
                                            const float* columns, float* tile, HeadMixingWorkspace& ws) {
  for_parts(dim, [&](int d, int count) {
    load_rows(ws.key, from_element(from, d), at.b, at.keys.begin, at.key_count(), h, count);
    float* const to = d == 0 ? tile : ws.spare;
    product<KeyRowsTimesQueryColumns, Accumulate::No>(at.key_count(), at.vectors(), count, ws.key,
                                                      columns + size_t(d) * kQueryTile, to, kQueryTile);
    if (d == 0) return;
    for (int i = 0; i < at.key_count() * kQueryTile; i += kLanes) store(tile + i, load(tile + i) + load(to + i));
  });
}

/** sums += A B, without hidden pairs where B is not finite: A is zero there, which hides no NaN. */
template <class S>
FLASHATTN_INLINE void add_product(bool partial, int rows, int inner, const float* a, const uint32_t* hidden,
                                  const float* b, int dim, float* sums, size_t row) {
  if (partial && !all_finite(b, inner, dim))
    product_visible<S>(rows, divide_up(dim, kLanes), inner, a, hidden, b, sums, row);
  else
    product<S, Accumulate::Yes>(rows, divide_up(dim, kLanes), inner, a, b, sums, row);
}

/** Where the scale goes that makes products larger; see query_factor. */
inline float mixed_query_factor(const HeadMixingParams& p) { return __builtin_fabsf(p.scale) < 1 ? p.scale : 1.0f; }

FLASHATTN_CALLED void scale_tiles(const MixedPlace& at, float* tiles, int heads, float factor) {
  for (int h = 0; h < heads; ++h, tiles += kHeadTile)
    for (int row = 0; row < at.key_count() * kQueryTile; row += kQueryTile)
      for (int v = row; v < row + at.vectors() * kLanes; v += kLanes) store(tiles + v, load(tiles + v) * splat(factor));
}

/** products of q and k of all heads, 0 where they are hidden */
FLASHATTN_CALLED void multiply_queries(const MixedPlace& at, bool partial, const float* columns, float* products,
                                       HeadMixingWorkspace& ws) {
  const HeadMixingParams& p = at.p;
  for (int h = 0; h < p.heads; ++h)
    multiply_rows_columns(at, p.key, h, p.head_dim, columns + h * columns_floats(p.head_dim),
                          products + size_t(h) * kHeadTile, ws);
  if (__builtin_fabsf(p.scale) >= 1 && p.scale != 1) scale_tiles(at, products, p.heads, p.scale);
  if (partial) hide(at, ws.hidden, products, p.heads, 0);
}

/** Logits of all heads of the softmax, -Infinity where they are hidden. Without a mixture they are made of `products` in place. */
FLASHATTN_CALLED void mix_logits(const MixedPlace& at, bool partial, const Mixture& m, const float* products,
                                 float* logits, HeadMixingWorkspace& ws) {
  if (m.exists()) mix_heads(at, m, products, logits);
  if (partial) hide(at, ws.hidden, logits, m.out, -kInfinity);
}

/** Logits become probabilities. */
FLASHATTN_CALLED void probabilities(const MixedPlace& at, int heads, const float* reference, const float* inverse,
                                    size_t row /* from head to head */, float* tiles) {
  for (int h = 0; h < heads; ++h, tiles += kHeadTile)
    for (int v = 0; v < at.vectors() * kLanes; v += kLanes) {
      const Vec shift = load(reference + h * row + v), factor = load(inverse + h * row + v);
      for (int j = 0; j < at.key_count(); ++j) {
        float* const to = tiles + j * kQueryTile + v;
        store(to, natural_exp(load(to) - shift) * factor);
      }
    }
}

/** Weights of values from probabilities, 0 where they are hidden; the probabilities themselves without a mixture. */
FLASHATTN_CALLED float* mix_weights(const MixedPlace& at, bool partial, const Mixture& m, float* probability,
                                    float* weights, HeadMixingWorkspace& ws) {
  if (!m.exists()) return probability;
  mix_heads(at, m, probability, weights);
  if (partial) hide(at, ws.hidden, weights, m.out, 0);
  return weights;
}

/** Loads the matrices of the queries of a tile, where they have some of their own. */
inline void load_mixture(const MixedPlace& at, const Mixture& m) {
  if (!m.mix.own) return;
  load_matrices(m.own, m.mix.matrix + (size_t(at.b) * at.p.queries + at.queries.begin) * m.elements(), at.query_count(),
                m.elements());
}

inline Mixture mixture(const HeadMix& mix, int in, int out, Parts& parts) {
  return {mix, in, out, mix.own ? parts.take(size_t(in) * out * kQueryTile) : nullptr};
}

/** Numbers of the queries of a tile from there on, a head is padded_queries from the next. */
inline size_t mixed_row(const MixedPlace& at) {
  return size_t(at.b) * at.p.softmax_heads * at.p.padded_queries() + at.queries.begin;
}
inline float* reference_rows(const MixedPlace& at) { return at.p.rows + mixed_row(at); }
inline float* inverse_rows(const MixedPlace& at) {
  return at.p.rows + size_t(at.p.batch) * at.p.softmax_heads * at.p.padded_queries() + mixed_row(at);
}
inline float* delta_rows(const MixedPlace& at) { return at.p.deltas + mixed_row(at); }

/** Calls f(place, keys of the next tile) for the tiles of keys that a tile of queries sees. */
template <class F>
FLASHATTN_INLINE void for_mixed_keys(MixedPlace at, F f) {
  const Range visible = at.band.visible_keys(at.queries, at.p.keys);
  for (int j = visible.begin, t = 0; j < visible.end; j += kMixedKeys, ++t) {
    at.keys = {j, min(j + kMixedKeys, visible.end)};
    f(at, t);
  }
}

/** What a walker keeps for one tile of queries. */
struct MixedQueries {
  const HeadMixingParams& p;
  Mixture logits, weights;
  float* columns;               // [heads][dim][kQueryTile]
  float* out;                   // [value heads][query][padded value dim]
  float *products, *powers, *mixed;  // tiles
  RunningSoftmax* softmax;      // [softmax heads]
  float *reference, *inverse;   // [softmax heads][kQueryTile]
  float* kept;                  // [kept tiles][softmax heads][kHeadTile]
  float* kept_reference;        // [kept tiles][softmax heads][kQueryTile]

  MixedQueries(const HeadMixingParams& params, Parts parts)
      : p(params),
        logits(mixture(p.logits, p.heads, p.softmax_heads, parts)),
        weights(mixture(p.weights, p.softmax_heads, p.value_heads, parts)) {
    columns = parts.take(p.heads * columns_floats(p.head_dim));
    out = parts.take(size_t(p.value_heads) * kQueryTile * value_row());
    products = parts.take(size_t(p.heads) * kHeadTile);
    powers = parts.take(size_t(p.softmax_heads) * kHeadTile);
    mixed = parts.take(size_t(p.value_heads) * kHeadTile);
    softmax = reinterpret_cast<RunningSoftmax*>(parts.take(p.softmax_heads * sizeof(RunningSoftmax) / sizeof(float)));
    reference = parts.take(size_t(p.softmax_heads) * kQueryTile);
    inverse = parts.take(size_t(p.softmax_heads) * kQueryTile);
    kept_reference = parts.take(size_t(p.kept_tiles) * p.softmax_heads * kQueryTile);
    kept = parts.take(size_t(p.kept_tiles) * p.softmax_heads * kHeadTile);
  }

  size_t value_row() const { return round_up(p.value_dim, 16); }
  bool keeps() const { return p.kept_tiles > 0; }
  float* tile_powers(int t) const { return keeps() ? kept + size_t(t) * p.softmax_heads * kHeadTile : powers; }
};

FLASHATTN_CALLED void start_queries(const MixedPlace& at, MixedQueries& q, HeadMixingWorkspace& ws) {
  const HeadMixingParams& p = at.p;
  for (int h = 0; h < p.heads; ++h)
    load_columns(p.query, at, h, p.head_dim, mixed_query_factor(p), ws.query, q.columns + h * columns_floats(p.head_dim));
  load_mixture(at, q.logits);
  load_mixture(at, q.weights);
  for (int h = 0; h < p.softmax_heads; ++h) {
    fill(q.softmax[h].reference, -kInfinity, kQueryTile);
    fill(q.softmax[h].sum, 0, kQueryTile);
    fill(q.softmax[h].rest, 0, kQueryTile);
  }
  fill(q.out, 0, int(p.value_heads * kQueryTile * q.value_row()));
}

/** Logits of a tile, in `to`. */
FLASHATTN_CALLED void compute_logits(const MixedPlace& at, bool partial, const MixedQueries& q, float* to,
                                     HeadMixingWorkspace& ws) {
  multiply_queries(at, partial, q.columns, q.logits.exists() ? q.products : to, ws);
  mix_logits(at, partial, q.logits, q.products, to, ws);
}

FLASHATTN_CALLED void sum_powers(const MixedPlace& at, int t, MixedQueries& q, HeadMixingWorkspace& ws) {
  const bool partial = at.partial();
  if (partial) mark_hidden(at, ws.hidden);
  float* const powers = q.tile_powers(t);
  compute_logits(at, partial, q, powers, ws);
  for (int h = 0; h < at.p.softmax_heads; ++h) {
    online_softmax(at.key_count(), at.vectors(), q.softmax[h], powers + size_t(h) * kHeadTile, ws.shrink);
    if (!q.keeps()) continue;
    float* const seen_from = q.kept_reference + (size_t(t) * at.p.softmax_heads + h) * kQueryTile;
    for (int v = 0; v < at.vectors() * kLanes; v += kLanes) store(seen_from + v, load(q.softmax[h].reference + v));
  }
}

/** Rows without a key are seen from Infinity, so that every power is 0. */
FLASHATTN_CALLED void finish_softmax(const MixedPlace& at, MixedQueries& q) {
  const HeadMixingParams& p = at.p;
  for (int h = 0; h < p.softmax_heads; ++h) {
    for (int i = 0; i < kQueryTile; ++i) {
      const float sum = q.softmax[h].sum[i] + q.softmax[h].rest[i];
      const bool empty = i >= at.query_count() || sum == 0;
      q.reference[h * kQueryTile + i] = empty ? kInfinity : q.softmax[h].reference[i];
      q.inverse[h * kQueryTile + i] = empty ? 0 : 1 / sum;
    }
    if (!p.rows) continue;
    const size_t row = size_t(h) * p.padded_queries();
    for (int i = 0; i < kQueryTile; i += kLanes) {
      store(reference_rows(at) + row + i, load(q.reference + h * kQueryTile + i));
      store(inverse_rows(at) + row + i, load(q.inverse + h * kQueryTile + i));
    }
  }
}

/** Kept powers become probabilities: they were seen from what was the largest logit then. */
FLASHATTN_CALLED void finish_powers(const MixedPlace& at, int t, const MixedQueries& q, float* powers) {
  for (int h = 0; h < at.p.softmax_heads; ++h, powers += kHeadTile)
    for (int v = 0; v < at.vectors() * kLanes; v += kLanes) {
      const Vec then = load(q.kept_reference + (size_t(t) * at.p.softmax_heads + h) * kQueryTile + v);
      const Vec now = load(q.reference + h * kQueryTile + v), inverse = load(q.inverse + h * kQueryTile + v);
      // Where nothing had been seen powers are 0; -Infinity less itself would be NaN.
      const Vec factor = select(then == splat(-kInfinity), Vec{}, natural_exp(then - now) * inverse);
      for (int j = 0; j < at.key_count(); ++j) {
        float* const to = powers + j * kQueryTile + v;
        store(to, load(to) * factor);
      }
    }
}

FLASHATTN_CALLED void add_values(const MixedPlace& at, int t, MixedQueries& q, HeadMixingWorkspace& ws) {
  const HeadMixingParams& p = at.p;
  const bool partial = at.partial();
  if (partial) mark_hidden(at, ws.hidden);
  float* const powers = q.tile_powers(t);
  if (q.keeps()) {
    finish_powers(at, t, q, powers);
  } else {
    compute_logits(at, partial, q, powers, ws);
    probabilities(at, p.softmax_heads, q.reference, q.inverse, kQueryTile, powers);
  }
  const float* const weights = mix_weights(at, partial, q.weights, powers, q.mixed, ws);
  for (int g = 0; g < p.value_heads; ++g)
    for_parts(p.value_dim, [&](int d, int count) {
      load_rows(ws.key, from_element(p.value, d), at.b, at.keys.begin, at.key_count(), g, count);
      add_product<ScoresTimesKeyRows>(partial, at.query_count(), at.key_count(), weights + size_t(g) * kHeadTile,
                                      ws.hidden, ws.key, count, q.out + g * kQueryTile * q.value_row() + d,
                                      q.value_row());
    });
}

FLASHATTN_CALLED void attend_across_heads(MixedPlace at, MixedQueries& q, HeadMixingWorkspace& ws) {
  const HeadMixingParams& p = at.p;
  start_queries(at, q, ws);
  for_mixed_keys(at, [&](const MixedPlace& tile, int t) { sum_powers(tile, t, q, ws); });
  finish_softmax(at, q);
  for_mixed_keys(at, [&](const MixedPlace& tile, int t) { add_values(tile, t, q, ws); });
  for (int g = 0; g < p.value_heads; ++g)
    for (int i = 0; i < at.query_count(); ++i)
      store_row(p.out.row(at.b, at.queries.begin + i, g), p.out.dtype,
                q.out + (size_t(g) * kQueryTile + i) * q.value_row(), p.value_dim);
}

inline Range mixed_query_tile(const HeadMixingParams& p, int t) {
  return {t * kQueryTile, min((t + 1) * kQueryTile, p.queries)};
}

}  // namespace detail

inline int head_mixing_items(const HeadMixingParams& p) { return min(p.walkers, p.batch * p.query_tiles()); }

FLASHATTN_CALLED void head_mixing_item(const HeadMixingParams& p, int walker, HeadMixingWorkspace& ws) {
  const int tiles = p.query_tiles();
  detail::MixedQueries q(p, {p.memory + walker * p.walker_floats});
  for (int t = walker; t < p.batch * tiles; t += p.walkers) {
    MixedPlace at(p, t / tiles);
    // Under a causal mask late queries see the most keys: the longest go first.
    at.queries = detail::mixed_query_tile(p, tiles - 1 - t % tiles);
    detail::attend_across_heads(at, q, ws);
  }
}

}  // namespace flashattn
