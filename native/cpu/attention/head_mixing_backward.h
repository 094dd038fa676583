// Attention across heads, backward.
//
// A first walk over tiles of queries sums P dP over all keys, which every gradient of a logit needs, and with it what the
// mixture of probabilities is to blame for. A second one, over ranges of keys, adds the gradients of queries into a buffer of
// its own for each range; the last launch adds these up in order. Neither ranges nor walkers depend on the number of threads.
#pragma once
#include "attention/head_mixing.h"

namespace flashattn {

namespace detail {

/** Sums of single numbers over the vectors of queries: sums[e] = the sum of the lanes of columns[e]. */
FLASHATTN_CALLED void sum_columns(float* sums, const float* columns /* [elements][kQueryTile] */, int elements) {
  for (int e = 0; e < elements; ++e) {
    Vec sum{};
    for (int v = 0; v < kQueryTile; v += kLanes) sum += load(columns + size_t(e) * kQueryTile + v);
    sums[e] = sum_lanes(sum);
  }
}

/** Gradients of weights become those of probabilities, 0 where they are hidden. */
FLASHATTN_CALLED void mix_weights_back(const MetTile& met, const Mixture& m, const float* d_weights,
                                       float* d_probability) {
  if (m.exists()) mix_heads_back(met.at, m, d_weights, d_probability);
  if (met.partial()) hide(met.at, met.hidden, d_probability, m.in, 0);
}

/** What a walker over tiles of queries keeps for one of them. */
struct MixedDeltas {
  const HeadMixingParams& p;
  Mixture logits, weights;
  float *columns, *d_columns;                                 // [heads][dim][kQueryTile], of queries and of d_out
  float *products, *probability, *d_weights, *d_probability;  // tiles
  float* d_matrix;                                            // [value heads * softmax heads][kQueryTile], of weights
  float* d_bias;                                              // [value heads][kQueryTile]

  MixedDeltas(const HeadMixingParams& params, Parts& parts)
      : p(params),
        logits(mixture(p.logits, p.heads, p.softmax_heads, parts)),
        weights(mixture(p.weights, p.softmax_heads, p.value_heads, parts)) {
    columns = parts.take(p.heads * columns_floats(p.head_dim));
    d_columns = parts.take(p.value_heads * columns_floats(p.value_dim));
    products = parts.take(size_t(p.heads) * kHeadTile);
    probability = parts.take(size_t(p.softmax_heads) * kHeadTile);
    d_weights = parts.take(size_t(p.value_heads) * kHeadTile);
    d_probability = parts.take(size_t(p.softmax_heads) * kHeadTile);
    d_matrix = parts.take(size_t(weights.elements()) * kQueryTile);
    d_bias = parts.take(size_t(p.value_heads) * kQueryTile);
  }
};

inline float* products_of(const MixedDeltas& q) { return q.logits.exists() ? q.products : q.probability; }
inline float* d_weights_of(const MixedDeltas& q) { return q.weights.exists() ? q.d_weights : q.d_probability; }

/** Products of queries and keys, and of gradients and values, of all query tiles of a group. */
FLASHATTN_CALLED void multiply_group(const MixedPlace& loaded, const MixedPlace& next, const MetTile* met, int count,
                                     MixedDeltas* q, HeadMixingWorkspace& ws) {
  const HeadMixingParams& p = loaded.p;
  for (int h = 0; h < p.heads; ++h) {
    ws.ahead = {
        h + 1 < p.heads ? rows_ahead(p.key, loaded, h + 1, p.head_dim) : rows_ahead(p.value, loaded, 0, p.value_dim),
        {}};
    multiply_head(
        loaded, met, count, p.key, h, p.head_dim, ws,
        [&](int i) { return q[i].columns + h * columns_floats(p.head_dim); },
        [&](int i) { return products_of(q[i]) + size_t(h) * kHeadTile; });
  }
  for (int g = 0; g < p.value_heads; ++g) {
    ws.ahead = {g + 1 < p.value_heads ? rows_ahead(p.value, loaded, g + 1, p.value_dim)
                                      : rows_ahead(p.key, next, 0, p.head_dim),
                {}};
    multiply_head(
        loaded, met, count, p.value, g, p.value_dim, ws,
        [&](int i) { return q[i].d_columns + g * columns_floats(p.value_dim); },
        [&](int i) { return d_weights_of(q[i]) + size_t(g) * kHeadTile; });
  }
}

FLASHATTN_CALLED void add_deltas(const MetTile& met, MixedDeltas& q) {
  const MixedPlace& at = met.at;
  const HeadMixingParams& p = at.p;
  const size_t row = p.padded_queries();
  float *const delta = delta_rows(at), *const d_weights = d_weights_of(q);
  mix_logits(met, q.logits, products_of(q), q.probability);
  probabilities(at, p.softmax_heads, reference_rows(at), inverse_rows(at), row, q.probability);
  if (met.partial()) hide(at, met.hidden, d_weights, p.value_heads, 0);
  if (p.weights.d_matrix) add_matrix_gradients(at, q.weights, d_weights, q.probability, q.d_matrix);
  for (int g = 0; p.weights.d_bias && g < p.value_heads; ++g)
    for (int v = 0; v < at.vectors() * kLanes; v += kLanes) {
      Vec sum = load(q.d_bias + g * kQueryTile + v);
      for (int j = 0; j < at.key_count(); ++j) sum += load(d_weights + size_t(g) * kHeadTile + j * kQueryTile + v);
      store(q.d_bias + g * kQueryTile + v, sum);
    }
  mix_weights_back(met, q.weights, d_weights, q.d_probability);
  for (int h = 0; h < p.softmax_heads; ++h)
    for (int v = 0; v < at.vectors() * kLanes; v += kLanes) {
      const size_t tile = size_t(h) * kHeadTile + v;
      Vec sum{};
      for (int j = 0; j < at.key_count(); ++j)
        sum = multiply_add(load(q.probability + tile + j * kQueryTile), load(q.d_probability + tile + j * kQueryTile),
                           sum);
      store(delta + h * row + v, load(delta + h * row + v) + sum);
    }
}

inline int key_tiles(const HeadMixingParams& p) { return divide_up(p.keys, kMixedKeys); }
inline int key_units(const HeadMixingParams& p) { return p.batch * p.key_splits; }

/** What a walker over ranges of keys keeps for one tile of them. */
struct MixedKeys {
  const HeadMixingParams& p;
  Mixture logits, weights;
  float *key, *value;                                         // rows of all heads
  float *query, *d_out;                                       // rows of all heads, of the query tile that is met
  float* columns;                                             // of one head
  float *d_key, *d_value;                                     // [heads][key][padded dim]
  float *products, *probability, *d_weights, *d_probability;  // tiles
  float* d_matrix;                    // [softmax heads * heads][kQueryTile], of logits, where queries share one
  float *logits_keys, *weights_keys;  // [key][key elements][kLanes]

  MixedKeys(const HeadMixingParams& params, Parts&& parts)
      : p(params),
        logits(mixture(p.logits, p.heads, p.softmax_heads, parts)),
        weights(mixture(p.weights, p.softmax_heads, p.value_heads, parts)) {
    key = parts.take(p.heads * head_rows(kMixedKeys, p.head_dim));
    value = parts.take(p.value_heads * head_rows(kMixedKeys, p.value_dim));
    query = parts.take(p.heads * head_rows(kQueryTile, p.head_dim));
    d_out = parts.take(p.value_heads * head_rows(kQueryTile, p.value_dim));
    columns = parts.take(columns_floats(max(p.head_dim, p.value_dim)));
    d_key = parts.take(p.heads * sum_rows(p.head_dim));
    d_value = parts.take(p.value_heads * sum_rows(p.value_dim));
    products = parts.take(size_t(p.heads) * kHeadTile);
    probability = parts.take(size_t(p.softmax_heads) * kHeadTile);
    d_weights = parts.take(size_t(p.value_heads) * kHeadTile);
    d_probability = parts.take(size_t(p.softmax_heads) * kHeadTile);
    d_matrix = parts.take(size_t(logits.elements()) * kQueryTile);
    logits_keys = parts.take(size_t(kMixedKeys) * logits.key_elements() * kLanes);
    weights_keys = parts.take(size_t(kMixedKeys) * weights.key_elements() * kLanes);
  }

  /** Rows of one head, in parts of kMaxDim: [part][row][kRowStride]. */
  static size_t head_rows(int rows, int dim) { return size_t(divide_up(dim, kMaxDim)) * rows * kRowStride; }
  static size_t sum_rows(int dim) { return size_t(kMixedKeys) * round_up(dim, 16); }
  static size_t part(int rows, int d) { return size_t(d / kMaxDim) * rows * kRowStride; }
};

FLASHATTN_CALLED void load_head_rows(const TensorRef& from, int b, Range range, int h, int dim, int rows, float* to) {
  for_parts(dim, [&](int d, int count) {
    load_rows(to + MixedKeys::part(rows, d), from_element(from, d), b, range.begin, range.end - range.begin, h, count);
  });
}

/** tile = loaded rows of keys times rows of queries, both of one head. */
FLASHATTN_CALLED void multiply_loaded(const MixedPlace& at, int skipped, const float* keys, const float* queries,
                                      int dim, float factor, float* columns, float* tile, HeadMixingWorkspace& ws) {
  for_parts(dim, [&](int d, int count) {
    transpose_rows(columns, queries + MixedKeys::part(kQueryTile, d), at.query_count(), count, factor);
    float* const to = d == 0 ? tile : ws.spare;
    product<KeyRowsTimesQueryColumns, Accumulate::No>(at.key_count(), at.vectors(), count,
                                                      keys + MixedKeys::part(kMixedKeys, d) + skipped * kRowStride,
                                                      columns, to, kQueryTile, nullptr, ws.ahead);
    if (d > 0) add_floats(tile, to, at.key_count() * kQueryTile);
  });
}

/** A tile of queries meets loaded keys; `next` are the queries that will. */
FLASHATTN_CALLED void meet_mixed_queries(const MixedPlace& loaded, Range next, MixedKeys& k, float* d_query,
                                         float* d_matrix, HeadMixingWorkspace& ws) {
  const HeadMixingParams& p = loaded.p;
  const MetTile met(loaded, loaded.queries, ws.hidden[0]);
  if (!met.met()) return;
  const MixedPlace& at = met.at;
  const int skipped = met.skipped, queries = at.query_count(), keys = at.key_count();
  const bool partial = met.partial();
  load_mixture(at, k.logits);
  load_mixture(at, k.weights);

  float* const products = k.logits.exists() ? k.products : k.probability;
  for (int h = 0; h < p.heads; ++h) {
    float* const rows = k.query + h * MixedKeys::head_rows(kQueryTile, p.head_dim);
    load_head_rows(p.query, at.b, at.queries, h, p.head_dim, kQueryTile, rows);
    ws.ahead = {RowsAhead(p.query, at.b, next.begin, max(0, next.end - next.begin), h, p.head_dim), {}};
    multiply_loaded(at, skipped, k.key + h * MixedKeys::head_rows(kMixedKeys, p.head_dim), rows, p.head_dim,
                    mixed_query_factor(p), k.columns, products + size_t(h) * kHeadTile, ws);
  }
  mix_logits(met, k.logits, products, k.probability);
  const size_t row = p.padded_queries();
  probabilities(at, p.softmax_heads, reference_rows(at), inverse_rows(at), row, k.probability);

  float* const d_weights = k.weights.exists() ? k.d_weights : k.d_probability;
  for (int g = 0; g < p.value_heads; ++g) {
    float* const rows = k.d_out + g * MixedKeys::head_rows(kQueryTile, p.value_dim);
    load_head_rows(p.d_out, at.b, at.queries, g, p.value_dim, kQueryTile, rows);
    ws.ahead = {RowsAhead(p.d_out, at.b, next.begin, max(0, next.end - next.begin), g, p.value_dim), {}};
    multiply_loaded(at, skipped, k.value + g * MixedKeys::head_rows(kMixedKeys, p.value_dim), rows, p.value_dim, 1,
                    k.columns, d_weights + size_t(g) * kHeadTile, ws);
  }
  if (partial) hide(at, met.hidden, d_weights, p.value_heads, 0);
  if (k.weights.key_elements())
    add_key_gradients(at, k.weights, d_weights, k.probability,
                      k.weights_keys + size_t(skipped) * k.weights.key_elements() * kLanes);
  mix_weights_back(met, k.weights, d_weights, k.d_probability);
  const float* const weights = mix_weights(met, k.weights, k.probability, k.d_weights);
  for (int g = 0; g < p.value_heads; ++g)
    for_parts(p.value_dim, [&](int d, int count) {
      const size_t to = g * MixedKeys::sum_rows(p.value_dim) + skipped * round_up(p.value_dim, 16) + d;
      const float* const rows = k.d_out + g * MixedKeys::head_rows(kQueryTile, p.value_dim);
      add_product<ScoresTransposedTimesQueryRows>(partial, keys, queries, weights + size_t(g) * kHeadTile, met.hidden,
                                                  rows + MixedKeys::part(kQueryTile, d), count, k.d_value + to,
                                                  round_up(p.value_dim, 16));
    });

  // Gradients of logits: P (dP - delta).
  for (int h = 0; h < p.softmax_heads; ++h)
    for (int v = 0; v < at.vectors() * kLanes; v += kLanes) {
      const Vec delta = load(delta_rows(at) + h * row + v);
      const size_t tile = size_t(h) * kHeadTile + v;
      for (int j = 0; j < keys; ++j) {
        float* const to = k.d_probability + tile + j * kQueryTile;
        store(to, load(k.probability + tile + j * kQueryTile) * (load(to) - delta));
      }
    }
  if (partial) hide(at, met.hidden, k.d_probability, p.softmax_heads, 0);
  float* d_products = k.d_probability;
  if (k.logits.exists()) {
    if (p.logits.d_matrix) add_matrix_gradients(at, k.logits, k.d_probability, products, d_matrix);
    if (k.logits.key_elements())
      add_key_gradients(at, k.logits, k.d_probability, products,
                        k.logits_keys + size_t(skipped) * k.logits.key_elements() * kLanes);
    d_products = products;
    mix_heads_back(at, k.logits, k.d_probability, d_products);
    if (partial) hide(at, met.hidden, d_products, p.heads, 0);
  }
  const int width = round_up(p.head_dim, 16);
  for (int h = 0; h < p.heads; ++h)
    for_parts(p.head_dim, [&](int d, int count) {
      const float* const d_scores = d_products + size_t(h) * kHeadTile;
      const float* const query = k.query + h * MixedKeys::head_rows(kQueryTile, p.head_dim);
      add_product<ScoresTransposedTimesQueryRows>(
          partial, keys, queries, d_scores, met.hidden, query + MixedKeys::part(kQueryTile, d), count,
          k.d_key + h * MixedKeys::sum_rows(p.head_dim) + skipped * width + d, width);
      const float* const key = k.key + h * MixedKeys::head_rows(kMixedKeys, p.head_dim);
      add_product<ScoresTimesKeyRows>(partial, queries, keys, d_scores, met.hidden,
                                      key + MixedKeys::part(kMixedKeys, d) + skipped * kRowStride, count,
                                      d_query + h * width + d, size_t(p.heads) * width);
    });
}

/** Sums over queries of what a key is mixed by become gradients. */
FLASHATTN_CALLED void store_key_gradients(const MixedPlace& at, const Mixture& m, const float* sums) {
  const HeadMix& mix = m.mix;
  for (int j = 0; j < at.key_count(); ++j) {
    const size_t key = size_t(at.b) * at.p.keys + at.keys.begin + j;
    const auto put = [&](float* to, int count) {
      for (int i = 0; i < count; ++i, sums += kLanes) to[i] = sum_lanes(load(sums));
    };
    put(mix.d_down + key * mix.rank * m.in, mix.rank * m.in);
    put(mix.d_up + key * mix.rank * m.out, mix.rank * m.out);
    if (mix.diagonal) put(mix.d_diagonal + key * m.out, m.out);
  }
}

/** Gradients of the keys of a tile, of all heads. */
FLASHATTN_CALLED void finish_mixed_keys(const MixedPlace& at, MixedKeys& k) {
  const HeadMixingParams& p = at.p;
  const auto store_rows_of = [&](const TensorRef& to, int h, int dim, const float* rows) {
    for (int j = 0; j < at.key_count(); ++j)
      store_head_row(to, at.b, at.keys.begin + j, h, rows + size_t(j) * round_up(dim, 16), dim);
  };
  if (p.scale != 1)
    for (size_t i = 0; i < p.heads * MixedKeys::sum_rows(p.head_dim); i += kLanes)
      store(k.d_key + i, load(k.d_key + i) * splat(p.scale));
  for (int h = 0; h < p.heads; ++h)
    store_rows_of(p.d_key, h, p.head_dim, k.d_key + h * MixedKeys::sum_rows(p.head_dim));
  for (int g = 0; g < p.value_heads; ++g)
    store_rows_of(p.d_value, g, p.value_dim, k.d_value + g * MixedKeys::sum_rows(p.value_dim));
  store_key_gradients(at, k.logits, k.logits_keys);
  store_key_gradients(at, k.weights, k.weights_keys);
}

/** The gradients of queries that one range of keys has a part in, [padded queries, heads, padded head dim]. */
inline float* d_query_part(const HeadMixingParams& p, int b, int split) {
  return p.d_query_sum + (size_t(b) * p.key_splits + split) * p.padded_queries() * p.heads * round_up(p.head_dim, 16);
}

/** And of their matrices of logits, [query tiles][softmax heads * heads][kQueryTile]. */
inline float* d_matrix_part(const HeadMixingParams& p, int b, int split) {
  return p.logits.sums + (size_t(b) * p.key_splits + split) * p.padded_queries() * (size_t(p.softmax_heads) * p.heads);
}

/** The sums of all walkers, in order. */
FLASHATTN_CALLED void add_walkers(float* to, const float* sums /* [walkers][elements] */, int walkers, int elements) {
  for (int e = 0; e < elements; ++e) {
    double sum = 0;
    for (int w = 0; w < walkers; ++w) sum += sums[size_t(w) * elements + e];
    to[e] = static_cast<float>(sum);
  }
}

}  // namespace detail

namespace detail {

/** What a group of query tiles is blamed for. */
FLASHATTN_CALLED void add_group_deltas(const MixedPlace& at, MixedDeltas* q, HeadMixingWorkspace& ws) {
  const HeadMixingParams& p = at.p;
  const QueryGroup group{at.queries};
  MixedPlace tile = at;
  for (int i = 0; i < group.count(); ++i) {
    tile.queries = group[i];
    for (int h = 0; h < p.heads; ++h)
      load_columns(p.query, tile, h, p.head_dim, mixed_query_factor(p), ws.query,
                   q[i].columns + h * columns_floats(p.head_dim));
    for (int g = 0; g < p.value_heads; ++g)
      load_columns(p.d_out, tile, g, p.value_dim, 1, ws.query, q[i].d_columns + g * columns_floats(p.value_dim));
    load_mixture(tile, q[i].logits);
    load_mixture(tile, q[i].weights);
    for (int h = 0; h < p.softmax_heads; ++h) fill(delta_rows(tile) + size_t(h) * p.padded_queries(), 0, kQueryTile);
  }
  for_met_keys(at, group, ws, [&](const MixedPlace& loaded, const MixedPlace& next, int, const MetTile* met) {
    multiply_group(loaded, next, met, group.count(), q, ws);
    for (int i = 0; i < group.count(); ++i)
      if (met[i].met()) add_deltas(met[i], q[i]);
  });
  if (!p.weights.own || !p.weights.d_matrix) return;
  for (int i = 0; i < group.count(); ++i) {
    const int elements = q[i].weights.elements();
    store_matrices(p.weights.d_matrix + (size_t(at.b) * p.queries + group[i].begin) * elements, q[i].d_matrix,
                   group[i].end - group[i].begin, elements);
    fill(q[i].d_matrix, 0, elements * kQueryTile);
  }
}

}  // namespace detail

/** P dP summed over keys, and the gradients of the matrix and the bias of weights. */
FLASHATTN_CALLED void head_mixing_deltas(const HeadMixingParams& p, int walker, HeadMixingWorkspace& ws) {
  detail::Parts parts{p.memory + walker * p.walker_floats};
  detail::MixedDeltas q[kMixedGroup] = {{p, parts}, {p, parts}};
  const int elements = q[0].weights.elements();
  for (detail::MixedDeltas& tile : q) {
    fill(tile.d_matrix, 0, elements * kQueryTile);
    fill(tile.d_bias, 0, p.value_heads * kQueryTile);
  }
  for (int g = walker; g < p.batch * detail::query_groups(p); g += p.walkers)
    detail::add_group_deltas(detail::query_group(p, g), q, ws);
  if (p.weights.d_matrix && !p.weights.own) {
    detail::add_floats(q[0].d_matrix, q[1].d_matrix, elements * kQueryTile);
    detail::sum_columns(p.weights.sums + size_t(walker) * elements, q[0].d_matrix, elements);
  }
  if (!p.weights.d_bias) return;
  detail::add_floats(q[0].d_bias, q[1].d_bias, p.value_heads * kQueryTile);
  float* const biases = p.weights.sums + size_t(head_mixing_items(p)) * elements;
  detail::sum_columns(biases + size_t(walker) * p.value_heads, q[0].d_bias, p.value_heads);
}

inline int head_mixing_key_items(const HeadMixingParams& p) { return min(p.walkers, detail::key_units(p)); }

FLASHATTN_CALLED void head_mixing_keys(const HeadMixingParams& p, int walker, HeadMixingWorkspace& ws) {
  detail::MixedKeys k(p, {p.memory + walker * p.walker_floats});
  const int elements = k.logits.elements();
  const size_t row = size_t(p.heads) * round_up(p.head_dim, 16);
  fill(k.d_matrix, 0, elements * kQueryTile);
  for (int unit = walker; unit < detail::key_units(p); unit += p.walkers) {
    const int split = unit % p.key_splits;
    MixedPlace at(p, unit / p.key_splits);
    float* const d_query = detail::d_query_part(p, at.b, split);
    __builtin_memset(d_query, 0, p.padded_queries() * row * sizeof(float));
    const bool own = p.logits.own && p.logits.d_matrix;
    float* const d_matrices = own ? detail::d_matrix_part(p, at.b, split) : nullptr;
    if (own) __builtin_memset(d_matrices, 0, size_t(p.padded_queries()) * elements * sizeof(float));
    // Under a causal mask late keys are seen by few: ranges take turns.
    for (int tile = split; tile < detail::key_tiles(p); tile += p.key_splits) {
      at.keys = {tile * kMixedKeys, min((tile + 1) * kMixedKeys, p.keys)};
      for (int h = 0; h < p.heads; ++h)
        detail::load_head_rows(p.key, at.b, at.keys, h, p.head_dim, kMixedKeys,
                               k.key + h * detail::MixedKeys::head_rows(kMixedKeys, p.head_dim));
      for (int g = 0; g < p.value_heads; ++g)
        detail::load_head_rows(p.value, at.b, at.keys, g, p.value_dim, kMixedKeys,
                               k.value + g * detail::MixedKeys::head_rows(kMixedKeys, p.value_dim));
      __builtin_memset(k.d_key, 0, p.heads * detail::MixedKeys::sum_rows(p.head_dim) * sizeof(float));
      __builtin_memset(k.d_value, 0, p.value_heads * detail::MixedKeys::sum_rows(p.value_dim) * sizeof(float));
      fill(k.logits_keys, 0, kMixedKeys * k.logits.key_elements() * kLanes);
      fill(k.weights_keys, 0, kMixedKeys * k.weights.key_elements() * kLanes);
      const Range seeing = at.band.seeing_queries(at.keys, p.queries);
      for (int t = seeing.begin / kQueryTile; t * kQueryTile < seeing.end; ++t) {
        at.queries = mixed_query_tile(p, t);
        detail::meet_mixed_queries(at, mixed_query_tile(p, t + 1), k, d_query + size_t(t) * kQueryTile * row,
                                   own ? d_matrices + size_t(t) * kQueryTile * elements : k.d_matrix, ws);
      }
      detail::finish_mixed_keys(at, k);
    }
  }
  if (p.logits.d_matrix && !p.logits.own)
    detail::sum_columns(p.logits.sums + size_t(walker) * elements, k.d_matrix, elements);
}

/** One for each tile of queries, and one for what all of them share. */
inline int finish_head_mixing_items(const HeadMixingParams& p) { return p.batch * p.query_tiles() + 1; }

FLASHATTN_CALLED void finish_head_mixing(const HeadMixingParams& p, int item, HeadMixingWorkspace& ws) {
  if (item == p.batch * p.query_tiles()) {
    const int logits = p.heads * p.softmax_heads, weights = p.softmax_heads * p.value_heads;
    const int walkers = head_mixing_items(p);
    if (p.logits.d_matrix && !p.logits.own)
      detail::add_walkers(p.logits.d_matrix, p.logits.sums, head_mixing_key_items(p), logits);
    if (p.weights.d_matrix && !p.weights.own) detail::add_walkers(p.weights.d_matrix, p.weights.sums, walkers, weights);
    if (p.weights.d_bias)
      detail::add_walkers(p.weights.d_bias, p.weights.sums + size_t(walkers) * weights, walkers, p.value_heads);
    return;
  }
  MixedPlace at(p, item / p.query_tiles());
  at.queries = mixed_query_tile(p, item % p.query_tiles());
  const int width = round_up(p.head_dim, 16);
  for (int i = at.queries.begin; i < at.queries.end; ++i)
    for (int h = 0; h < p.heads; ++h)
      detail::for_parts(p.head_dim, [&](int first, int count) {
        for (int d = 0; d < count; d += kLanes) {
          Vec sum{};
          for (int split = 0; split < p.key_splits; ++split)
            sum += load(detail::d_query_part(p, at.b, split) + (size_t(i) * p.heads + h) * width + first + d);
          store(ws.query + d, sum * splat(p.scale));
        }
        detail::store_head_row(detail::from_element(p.d_query, first), at.b, i, h, ws.query, count);
      });
  if (!p.logits.own || !p.logits.d_matrix) return;
  const int elements = p.heads * p.softmax_heads;
  const size_t tile = size_t(at.queries.begin) * elements;
  float* const sums = detail::d_matrix_part(p, at.b, 0) + tile;
  for (int split = 1; split < p.key_splits; ++split) {
    const float* const part = detail::d_matrix_part(p, at.b, split) + tile;
    for (int e = 0; e < elements * kQueryTile; e += kLanes) store(sums + e, load(sums + e) + load(part + e));
  }
  store_matrices(p.logits.d_matrix + (size_t(at.b) * p.queries + at.queries.begin) * elements, sums, at.query_count(),
                 elements);
}

}  // namespace flashattn
