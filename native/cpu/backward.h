// FlashAttention backward: Dao, "FlashAttention-2" (2023), algorithm 2.
//
// An item is one key/value head over a range of its keys: it alone writes their gradients, and it adds the query
// gradients of its key range into a partial buffer of its own, so no two workers ever write the same address and
// every sum has a fixed order. Three launches: backward_rows, backward_item, then finish_query_gradients.
#pragma once
#include "forward.h"
#include "rows.h"

namespace flashattn {

struct BackwardWorkspace {
  KeyRows key, value, d_key, d_value;
  QueryRows query, d_out;
  QueryColumns query_columns, d_out_columns;
  ScoreTile probability, d_score, softcap_slope, factors;
  uint32_t hidden[kKeyTile * kQueryTile];
  float lse[kQueryTile];  // in units of log 2; +Infinity for empty rows, so that every probability is 0
  float delta[kQueryTile];
  bool keys_finite;  // key and value
  bool rows_finite;  // delta, and lse is no NaN
};

namespace detail {

/** Calls f(b, h, row of lse, row of the tensor) for the rows of one item of a row-wise launch. */
template <class F>
inline void for_rows(const AttentionParams& p, int item, F f) {
  const int chunks = divide_up(p.query_length, kRowsPerItem);
  const int begin = item % chunks * kRowsPerItem, h = item / chunks % p.heads, b = item / chunks / p.heads;
  const Sequence s = p.sequence(b);
  for (int i = begin; i < min(begin + kRowsPerItem, s.query_length); ++i)
    f(b, h, p.lse_row(b, h, s.query_begin + i), s.query_begin + i);
}

FLASHATTN_CALLED void load_keys(const Place& at, const Sequence& s, BackwardWorkspace& ws) {
  const AttentionParams& p = at.p;
  const int kv_head = at.h / p.group(), keys = at.key_count();
  load_rows(ws.key, p.key, at.b, s.key_begin + at.keys.begin, keys, kv_head, p.head_dim);
  load_rows(ws.value, p.value, at.b, s.key_begin + at.keys.begin, keys, kv_head, p.value_dim);
  ws.keys_finite = all_finite(ws.key, keys, p.head_dim) && all_finite(ws.value, keys, p.value_dim);
}

FLASHATTN_CALLED void load_queries(const Place& at, const Sequence& s, BackwardWorkspace& ws) {
  const AttentionParams& p = at.p;
  const int row = s.query_begin + at.queries.begin, rows = at.query_count();
  load_rows(ws.query, p.query, at.b, row, rows, at.h, p.head_dim);
  load_rows(ws.d_out, p.d_out, at.b, row, rows, at.h, p.value_dim);
  transpose_rows(ws.query_columns, ws.query, rows, p.head_dim, query_factor(p));
  transpose_rows(ws.d_out_columns, ws.d_out, rows, p.value_dim, 1.0f);
  const size_t at_row = p.lse_row(at.b, at.h, row);
  ws.rows_finite = true;
  for (int r = 0; r < round_up(rows, kLanes); ++r) {
    const float lse = r < rows ? p.lse[at_row + r] : -kInfinity;
    ws.lse[r] = lse == -kInfinity ? kInfinity : lse * kLog2E;
    ws.delta[r] = r < rows ? p.delta[at_row + r] : 0.0f;
    ws.rows_finite &= lse == lse && ws.delta[r] - ws.delta[r] == 0;
  }
}

/**
 * Recomputes a tile's probabilities P and forms dS = P * (dP - delta), both [key][query], P without dropout.
 * Keys were loaded from position `loaded` on. Returns whether products over this tile must skip the pairs marked in
 * ws.hidden.
 */
FLASHATTN_CALLED bool score_gradients(const Place& at, int loaded, BackwardWorkspace& ws) {
  const AttentionParams& p = at.p;
  const int keys = at.key_count(), vectors = at.query_vectors();
  const size_t skipped = size_t(at.keys.begin - loaded) * kRowStride;
  const bool partial = at.cover() == Cover::Partial;

  product<KeyRowsTimesQueryColumns, Accumulate::No>(keys, vectors, p.head_dim, ws.key + skipped, ws.query_columns,
                                                    ws.probability, kQueryTile);
  finish_scores(at, ws.probability, ws.softcap_slope);
  if (partial) hide_scores(at, ws.probability);
  const bool guarded = (partial || p.bias.data) &&
                       !(ws.keys_finite && ws.rows_finite && all_finite(ws.query, at.query_count(), p.head_dim) &&
                         all_finite(ws.d_out, at.query_count(), p.value_dim));
  if (guarded) mark_hidden(at, ws.probability, ws.hidden);

  product<KeyRowsTimesQueryColumns, Accumulate::No>(keys, vectors, p.value_dim, ws.value + skipped, ws.d_out_columns,
                                                    ws.d_score, kQueryTile);
  if (p.dropout.threshold) {
    dropout_factors(at, ws.factors);
    multiply_scores(at, ws.d_score, ws.factors);
  }
  for (int row = 0; row < keys * kQueryTile; row += kQueryTile) {
    for (int v = 0; v < vectors * kLanes; v += kLanes) {
      const Vec probability = exp2(load(ws.probability + row + v) - load(ws.lse + v));
      Vec d_score = probability * (load(ws.d_score + row + v) - load(ws.delta + v));
      if (guarded) d_score = (Vec)((UintVec)d_score & ~load_bits(ws.hidden + row + v));
      store(ws.probability + row + v, probability);
      store(ws.d_score + row + v, d_score);
    }
  }
  return guarded;
}

template <class S>
inline void accumulate(bool guarded, int rows, int dim, int inner, const float* a, const uint32_t* hidden,
                       const float* b, float* c, size_t c_row) {
  const int vectors = divide_up(dim, kLanes);
  if (guarded)
    product_visible<S>(rows, vectors, inner, a, hidden, b, c, c_row);
  else
    product<S, Accumulate::Yes>(rows, vectors, inner, a, b, c, c_row);
}

FLASHATTN_CALLED void add_relative_gradient(const Place& at, const float* d_score,
                                            float* d_table /* [bucket_count] */) {
  for (int j = at.keys.begin; j < at.keys.end; ++j)
    for (int i = at.queries.begin; i < at.queries.end; ++i)
      d_table[relative_bucket(at.p.relative, i, j)] += d_score[(j - at.keys.begin) * kQueryTile + i - at.queries.begin];
}

/** One query tile meets the loaded key tile: adds to ws.d_key, ws.d_value and the rows of `d_query`. */
FLASHATTN_CALLED void meet_queries(const Place& loaded, BackwardWorkspace& ws, float* d_query, int d_query_row,
                                   float* d_table) {
  const Place at = loaded.narrowed();
  if (at.key_count() <= 0) return;
  const AttentionParams& p = at.p;
  const int keys = at.key_count(), queries = at.query_count();
  const size_t skipped = size_t(at.keys.begin - loaded.keys.begin) * kRowStride;
  const bool guarded = score_gradients(at, loaded.keys.begin, ws);
  if (d_table) add_relative_gradient(at, ws.d_score, d_table);
  if (p.softcap > 0) multiply_scores(at, ws.d_score, ws.softcap_slope);
  if (p.dropout.threshold) multiply_scores(at, ws.probability, ws.factors);

  accumulate<ScoresTransposedTimesQueryRows>(guarded, keys, p.value_dim, queries, ws.probability, ws.hidden, ws.d_out,
                                             ws.d_value + skipped, kRowStride);
  accumulate<ScoresTransposedTimesQueryRows>(guarded, keys, p.head_dim, queries, ws.d_score, ws.hidden, ws.query,
                                             ws.d_key + skipped, kRowStride);
  accumulate<ScoresTimesKeyRows>(guarded, queries, p.head_dim, keys, ws.d_score, ws.hidden, ws.key + skipped, d_query,
                                 d_query_row);
}

inline void store_rows(const TensorRef& to, int b, int begin, int count, int h, int dim, const float* rows) {
  for (int r = 0; r < count; ++r) store_row(to.row(b, begin + r, h), to.dtype, rows + r * kRowStride, dim);
}

}  // namespace detail

inline int row_items(const AttentionParams& p) { return p.batch * p.heads * divide_up(p.query_length, kRowsPerItem); }

/** delta = sum_d d_out * out - d_lse: what softmax's Jacobian subtracts from every dP of the row. */
FLASHATTN_CALLED void backward_rows(const AttentionParams& p, int item, BackwardWorkspace& ws) {
  detail::for_rows(p, item, [&](int b, int h, size_t row, int i) {
    load_row(ws.query, p.out.row(b, i, h), p.out.dtype, p.value_dim);
    load_row(ws.d_out, p.d_out.row(b, i, h), p.d_out.dtype, p.value_dim);
    Vec sum{};
    for (int d = 0; d < p.value_dim; d += kLanes) sum = multiply_add(load(ws.query + d), load(ws.d_out + d), sum);
    p.delta[row] = sum_lanes(sum) - (p.d_lse ? p.d_lse[row] : 0.0f);
  });
}

inline int backward_items(const AttentionParams& p) { return p.batch * p.kv_heads * p.key_splits; }

FLASHATTN_CALLED void backward_item(const AttentionParams& p, int item, BackwardWorkspace& ws) {
  const int split = item % p.key_splits, kv_head = item / p.key_splits % p.kv_heads;
  const int b = item / p.key_splits / p.kv_heads;
  const Sequence s = p.sequence(b);
  const int tiles = divide_up(s.key_length, kKeyTile);
  const Range key_tiles{tiles * split / p.key_splits, tiles * (split + 1) / p.key_splits};
  const int d_query_row = round_up(p.head_dim, kLanes), first_head = kv_head * p.group();

  const auto d_query_at = [&](int h, int i) {  // [lse rows, padded head dim]
    return p.d_query_sum + (split * size_t(p.lse_rows) + p.lse_row(b, h, s.query_begin + i)) * d_query_row;
  };
  const auto d_table_at = [&](int h) -> float* {  // [bucket_count]
    if (!p.d_relative_partial) return nullptr;
    return p.d_relative_partial + ((split * size_t(p.batch) + b) * p.heads + h) * p.relative.bucket_count;
  };
  for (int h = first_head; h < first_head + p.group(); ++h) {
    __builtin_memset(d_query_at(h, 0), 0, size_t(s.query_length) * d_query_row * sizeof(float));
    if (float* d_table = d_table_at(h)) __builtin_memset(d_table, 0, p.relative.bucket_count * sizeof(float));
  }

  for (int tile = key_tiles.begin; tile < key_tiles.end; ++tile) {
    Place at(p, s, b, first_head);
    at.keys = {tile * kKeyTile, min((tile + 1) * kKeyTile, s.key_length)};
    detail::load_keys(at, s, ws);
    clear_rows(ws.d_key, at.key_count(), p.head_dim);
    clear_rows(ws.d_value, at.key_count(), p.value_dim);
    const Range seeing = at.band.seeing_queries(at.keys, s.query_length);
    for (at.h = first_head; at.h < first_head + p.group(); ++at.h) {
      for_query_tiles(p, b, at.h, at.keys.begin, seeing, [&](Range queries, const BlockBits& bits) {
        at.queries = queries;
        at.bits = bits;
        detail::load_queries(at, s, ws);
        detail::meet_queries(at, ws, d_query_at(at.h, queries.begin), d_query_row, d_table_at(at.h));
      });
    }
    const Vec scale = splat(p.scale);
    for (int r = 0; r < at.key_count(); ++r)
      for (int d = r * kRowStride; d < r * kRowStride + p.head_dim; d += kLanes)
        store(ws.d_key + d, load(ws.d_key + d) * scale);
    detail::store_rows(p.d_key, b, s.key_begin + at.keys.begin, at.key_count(), kv_head, p.head_dim, ws.d_key);
    detail::store_rows(p.d_value, b, s.key_begin + at.keys.begin, at.key_count(), kv_head, p.value_dim, ws.d_value);
  }
}

/** d_query = scale * the sum over key splits, in their order. */
FLASHATTN_CALLED void finish_query_gradients(const AttentionParams& p, int item, BackwardWorkspace& ws) {
  const int width = round_up(p.head_dim, kLanes);
  detail::for_rows(p, item, [&](int b, int h, size_t row, int i) {
    for (int d = 0; d < width; d += kLanes) {
      Vec sum{};
      for (int split = 0; split < p.key_splits; ++split)
        sum += load(p.d_query_sum + (split * size_t(p.lse_rows) + row) * width + d);
      store(ws.query + d, sum * splat(p.scale));
    }
    store_row(p.d_query.row(b, i, h), p.d_query.dtype, ws.query, p.head_dim);
  });
}

}  // namespace flashattn
