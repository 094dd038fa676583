// Attention across heads, forward: the tile loop holds all heads of a tile of pairs, as mixtures of them need.
//
// Mixing probabilities needs the whole softmax, so a tile of queries meets its keys twice: for the sums of powers, and for the
// values. The powers of all keys are kept in between where a cache holds them; otherwise they are computed again.
#pragma once
#include "attention/mixed_heads.h"
#include "attention/softmax.h"

namespace flashattn {

// Query tiles that share each loaded tile of keys.
inline constexpr int kMixedGroup = 2;

struct alignas(kCacheLine) HeadMixingWorkspace {
  KeyRows key;      // of one head
  QueryRows query;  // of one head
  uint32_t hidden[kMixedGroup][kMixedKeys * kQueryTile];
  float shrink[kQueryTile];
  float ones[kQueryTile];
  float spare[kHeadTile];
  TileAhead ahead;
};

/** Tile t of queries. */
inline Range mixed_query_tile(const HeadMixingParams& p, int t) {
  return {t * kQueryTile, min((t + 1) * kQueryTile, p.queries)};
}

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

FLASHATTN_CALLED void store_head_row(const TensorRef& to, int b, int i, int h, const float* row, int dim) {
  store_row(to.row(b, i, h), to.dtype, row, dim);
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

/** One of the query tiles that meet loaded keys. */
struct MetTile {
  MixedPlace at;  // the keys that one of its queries sees
  int skipped;    // loaded keys before them
  const uint32_t* hidden;

  MetTile(const MixedPlace& loaded, Range queries, uint32_t* marks) : at(loaded), skipped(0), hidden(marks) {
    at.queries = queries;
    const Range visible = at.band.visible_keys(queries, loaded.keys.end);
    at.keys = {max(loaded.keys.begin, visible.begin), visible.end};
    skipped = at.keys.begin - loaded.keys.begin;
    if (met() && partial()) mark_hidden(at, marks);
  }

  bool met() const { return at.key_count() > 0; }
  bool partial() const { return at.partial(); }
};

/** sums += others */
FLASHATTN_CALLED void add_floats(float* sums, const float* others, int floats) {
  for (int i = 0; i < floats; i += kLanes) store(sums + i, load(sums + i) + load(others + i));
}

/** Rows of one head that will be loaded next. */
inline RowsAhead rows_ahead(const TensorRef& from, const MixedPlace& at, int h, int dim) {
  return RowsAhead(from, at.b, at.keys.begin, max(0, at.key_count()), h, dim);
}

/**
 * The products of one head: rows of the loaded keys, or of their values, times columns of each query tile that meets them, or of
 * its gradients. `columns_of` and `tile_of` say where those are and where products go, by the number of the tile.
 */
template <class Columns, class Tile>
FLASHATTN_INLINE void multiply_head(const MixedPlace& loaded, const MetTile* met, int count, const TensorRef& from,
                                    int h, int dim, HeadMixingWorkspace& ws, Columns columns_of, Tile tile_of) {
  for_parts(dim, [&](int d, int part) {
    load_rows(ws.key, from_element(from, d), loaded.b, loaded.keys.begin, loaded.key_count(), h, part);
    for (int i = 0; i < count; ++i) {
      const MixedPlace& at = met[i].at;
      if (!met[i].met()) continue;
      float* const to = d == 0 ? tile_of(i) : ws.spare;
      product<KeyRowsTimesQueryColumns, Accumulate::No>(
          at.key_count(), at.vectors(), part, ws.key + met[i].skipped * kRowStride,
          columns_of(i) + size_t(d) * kQueryTile, to, kQueryTile, nullptr, ws.ahead);
      if (d > 0) add_floats(tile_of(i), to, at.key_count() * kQueryTile);
    }
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

/** Products of queries and keys become logits of all heads of the softmax, -Infinity where they are hidden; products are 0 there. */
FLASHATTN_CALLED void mix_logits(const MetTile& met, const Mixture& m, float* products, float* logits) {
  const MixedPlace& at = met.at;
  const HeadMixingParams& p = at.p;
  if (__builtin_fabsf(p.scale) >= 1 && p.scale != 1) scale_tiles(at, products, p.heads, p.scale);
  if (met.partial() && m.exists()) hide(at, met.hidden, products, p.heads, 0);
  if (m.exists()) mix_heads(at, m, products, logits);
  if (met.partial()) hide(at, met.hidden, logits, m.out, -kInfinity);
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
FLASHATTN_CALLED float* mix_weights(const MetTile& met, const Mixture& m, float* probability, float* weights) {
  if (!m.exists()) return probability;
  mix_heads(met.at, m, probability, weights);
  if (met.partial()) hide(met.at, met.hidden, weights, m.out, 0);
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

/**
 * Calls f(keys, next keys, number) for the tiles of keys that a group of query tiles sees; `next` are those of the tile behind,
 * none after the last.
 */
template <class F>
FLASHATTN_INLINE void for_mixed_keys(MixedPlace at, F f) {
  const Range visible = at.band.visible_keys(at.queries, at.p.keys);
  for (int j = visible.begin, t = 0; j < visible.end; j += kMixedKeys, ++t) {
    MixedPlace next = at;
    at.keys = {j, min(j + kMixedKeys, visible.end)};
    next.keys = {at.keys.end, min(at.keys.end + kMixedKeys, visible.end)};
    f(at, next, t);
  }
}

/** Query tiles that share loaded keys. */
struct QueryGroup {
  Range queries;

  int count() const { return divide_up(queries.end - queries.begin, kQueryTile); }
  Range operator[](int i) const {
    return {queries.begin + i * kQueryTile, min(queries.begin + (i + 1) * kQueryTile, queries.end)};
  }
};

/** Groups of a launch in the order in which walkers take turns: under a causal mask late queries see the most keys. */
inline int query_groups(const HeadMixingParams& p) { return divide_up(p.query_tiles(), kMixedGroup); }
inline MixedPlace query_group(const HeadMixingParams& p, int number) {
  const int groups = query_groups(p), g = groups - 1 - number % groups;
  MixedPlace at(p, number / groups);
  at.queries = {g * kMixedGroup * kQueryTile, min((g + 1) * kMixedGroup * kQueryTile, p.queries)};
  return at;
}

/** What a walker keeps for one tile of queries. */
struct MixedQueries {
  const HeadMixingParams& p;
  Mixture logits, weights;
  float* columns;                    // [heads][dim][kQueryTile]
  float* out;                        // [value heads][query][padded value dim]
  float *products, *powers, *mixed;  // tiles
  RunningSoftmax* softmax;           // [softmax heads]
  float *reference, *inverse;        // [softmax heads][kQueryTile]
  float* kept;                       // [kept tiles][softmax heads][kHeadTile]
  float* kept_reference;             // [kept tiles][softmax heads][kQueryTile]

  MixedQueries(const HeadMixingParams& params, Parts& parts)
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
    load_columns(p.query, at, h, p.head_dim, mixed_query_factor(p), ws.query,
                 q.columns + h * columns_floats(p.head_dim));
  load_mixture(at, q.logits);
  load_mixture(at, q.weights);
  for (int h = 0; h < p.softmax_heads; ++h) {
    fill(q.softmax[h].reference, -kInfinity, kQueryTile);
    fill(q.softmax[h].sum, 0, kQueryTile);
    fill(q.softmax[h].rest, 0, kQueryTile);
  }
  fill(q.out, 0, int(p.value_heads * kQueryTile * q.value_row()));
}

/** Products of a tile, or its logits where these are not mixed. */
inline float* products_of(const MixedQueries& q, float* logits) { return q.logits.exists() ? q.products : logits; }

/** Logits of all query tiles of a group and the loaded keys. */
FLASHATTN_CALLED void compute_logits(const MixedPlace& loaded, const MixedPlace& next, int t, const MetTile* met,
                                     int count, MixedQueries* q, HeadMixingWorkspace& ws) {
  const HeadMixingParams& p = loaded.p;
  for (int h = 0; h < p.heads; ++h) {
    ws.ahead = {h + 1 < p.heads ? rows_ahead(p.key, loaded, h + 1, p.head_dim) : rows_ahead(p.key, next, 0, p.head_dim),
                {}};
    multiply_head(
        loaded, met, count, p.key, h, p.head_dim, ws,
        [&](int i) { return q[i].columns + h * columns_floats(p.head_dim); },
        [&](int i) { return products_of(q[i], q[i].tile_powers(t)) + size_t(h) * kHeadTile; });
  }
  for (int i = 0; i < count; ++i)
    if (met[i].met()) mix_logits(met[i], q[i].logits, products_of(q[i], q[i].tile_powers(t)), q[i].tile_powers(t));
}

FLASHATTN_CALLED void sum_powers(const MetTile& met, int t, MixedQueries& q, HeadMixingWorkspace& ws) {
  const MixedPlace& at = met.at;
  for (int h = 0; h < at.p.softmax_heads; ++h) {
    online_softmax(at.key_count(), at.vectors(), q.softmax[h], q.tile_powers(t) + size_t(h) * kHeadTile, ws.shrink);
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

/** Weights of the values of a tile. */
FLASHATTN_CALLED const float* compute_weights(const MetTile& met, int t, MixedQueries& q) {
  float* const powers = q.tile_powers(t);
  if (q.keeps())
    finish_powers(met.at, t, q, powers);
  else
    probabilities(met.at, met.at.p.softmax_heads, q.reference, q.inverse, kQueryTile, powers);
  return mix_weights(met, q.weights, powers, q.mixed);
}

/** out += weights times loaded rows of values, of one head. */
FLASHATTN_CALLED void add_values(const MetTile& met, const float* weights, int dim, float* out, size_t out_row,
                                 HeadMixingWorkspace& ws) {
  const MixedPlace& at = met.at;
  const float* const value = ws.key + met.skipped * kRowStride;
  if (met.partial() && !all_finite(value, at.key_count(), dim))
    return product_visible<ScoresTimesKeyRows>(at.query_count(), divide_up(dim, kLanes), at.key_count(), weights,
                                               met.hidden, value, out, out_row);
  product<ScoresTimesKeyRows, Accumulate::Scaled>(at.query_count(), divide_up(dim, kLanes), at.key_count(), weights,
                                                  value, out, out_row, ws.ones, ws.ahead);
}

FLASHATTN_CALLED void add_group_values(const MixedPlace& loaded, const MixedPlace& next, int t, const MetTile* met,
                                       int count, MixedQueries* q, HeadMixingWorkspace& ws) {
  const HeadMixingParams& p = loaded.p;
  const float* weights[kMixedGroup] = {};
  for (int i = 0; i < count; ++i)
    if (met[i].met()) weights[i] = compute_weights(met[i], t, q[i]);
  for (int g = 0; g < p.value_heads; ++g) {
    ws.ahead = {g + 1 < p.value_heads ? rows_ahead(p.value, loaded, g + 1, p.value_dim)
                : q[0].keeps()        ? rows_ahead(p.value, next, 0, p.value_dim)
                                      : rows_ahead(p.key, next, 0, p.head_dim),
                {}};
    for_parts(p.value_dim, [&](int d, int part) {
      load_rows(ws.key, from_element(p.value, d), loaded.b, loaded.keys.begin, loaded.key_count(), g, part);
      for (int i = 0; i < count; ++i)
        if (met[i].met())
          add_values(met[i], weights[i] + size_t(g) * kHeadTile, part, q[i].out + g * kQueryTile * q[i].value_row() + d,
                     q[i].value_row(), ws);
    });
  }
}

/** Calls f(keys, next keys, number, tiles that meet them) for the tiles of keys that a group sees. */
template <class F>
FLASHATTN_INLINE void for_met_keys(const MixedPlace& at, const QueryGroup& group, HeadMixingWorkspace& ws, F f) {
  static_assert(kMixedGroup == 2);
  for_mixed_keys(at, [&](const MixedPlace& loaded, const MixedPlace& next, int t) {
    const MetTile met[kMixedGroup] = {{loaded, group[0], ws.hidden[0]}, {loaded, group[1], ws.hidden[1]}};
    f(loaded, next, t, met);
  });
}

FLASHATTN_CALLED void attend_across_heads(const MixedPlace& at, MixedQueries* q, HeadMixingWorkspace& ws) {
  const HeadMixingParams& p = at.p;
  const QueryGroup group{at.queries};
  MixedPlace tile = at;
  for (int i = 0; i < group.count(); ++i) {
    tile.queries = group[i];
    start_queries(tile, q[i], ws);
  }
  for_met_keys(at, group, ws, [&](const MixedPlace& loaded, const MixedPlace& next, int t, const MetTile* met) {
    compute_logits(loaded, next, t, met, group.count(), q, ws);
    for (int i = 0; i < group.count(); ++i)
      if (met[i].met()) sum_powers(met[i], t, q[i], ws);
  });
  for (int i = 0; i < group.count(); ++i) {
    tile.queries = group[i];
    finish_softmax(tile, q[i]);
  }
  for_met_keys(at, group, ws, [&](const MixedPlace& loaded, const MixedPlace& next, int t, const MetTile* met) {
    if (!q[0].keeps()) compute_logits(loaded, next, t, met, group.count(), q, ws);
    add_group_values(loaded, next, t, met, group.count(), q, ws);
  });
  for (int i = 0; i < group.count(); ++i)
    for (int g = 0; g < p.value_heads; ++g)
      for (int r = group[i].begin; r < group[i].end; ++r)
        store_head_row(p.out, at.b, r, g, q[i].out + (size_t(g) * kQueryTile + r - group[i].begin) * q[i].value_row(),
                       p.value_dim);
}

}  // namespace detail

inline int head_mixing_items(const HeadMixingParams& p) { return min(p.walkers, p.batch * detail::query_groups(p)); }

FLASHATTN_CALLED void head_mixing_item(const HeadMixingParams& p, int walker, HeadMixingWorkspace& ws) {
  detail::Parts parts{p.memory + walker * p.walker_floats};
  detail::MixedQueries q[kMixedGroup] = {{p, parts}, {p, parts}};
  fill(ws.ones, 1, kQueryTile);
  for (int g = walker; g < p.batch * detail::query_groups(p); g += p.walkers)
    detail::attend_across_heads(detail::query_group(p, g), q, ws);
}

}  // namespace flashattn
