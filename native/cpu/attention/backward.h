// FlashAttention backward: Dao, "FlashAttention-2" (2023), algorithm 2.
//
// An item is one key/value head over a range of its keys: it alone writes their gradients, and it adds the query
// gradients of its key range into a partial buffer of its own, so no two workers ever write the same address and
// every sum has a fixed order. Three launches: backward_rows, backward_item, then finish_query_gradients.
#pragma once
#include "attention/forward.h"
#include "attention/row_terms.h"

namespace flashattn {

struct alignas(kCacheLine) BackwardWorkspace {
  KeyRows key, value;
  KeyRows d_key, d_value;  // sums of the running block of query tiles
  QueryRows query, d_out;
  QueryColumns query_columns, d_out_columns;
  ScoreTile probability, d_score, softcap_slope, mod_slope, factors;
  uint32_t hidden[kKeyTile * kQueryTile];
  float reference[kQueryTile], log_sum[kQueryTile], delta[kQueryTile];  // RowTerms
  RunningSoftmax softmax;
  float shrink[kQueryTile];
  KeyRows d_key_total, d_value_total;  // sums of older blocks
  BlockCounter block;
  bool has_log_sum;  // log_sum is not 0 throughout
  bool keys_finite;  // key and value
  bool rows_finite;  // delta, and the reference is no NaN
  TileAhead ahead;
  ScoreRows score_rows;
};

static_assert(offsetof(BackwardWorkspace, d_value_total) % kCacheLine == 0);

/** Keys that are met at a time. Under a block mask they are of one block, whose list tells which queries see them. */
inline int backward_key_tile(int block_size) { return block_size ? min(kKeyTile, block_size) : kKeyTile; }

/** A total beside the running block, unless a split is one block at most. */
inline int d_query_planes(int key_length, int key_tile, int key_splits) {
  return divide_up(divide_up(key_length, key_tile), key_splits) > kBlockTiles ? 2 : 1;
}
inline int d_query_planes(const AttentionParams& p) {
  return d_query_planes(p.key_length, backward_key_tile(p.block_mask.block_size), p.key_splits);
}

namespace detail {

FLASHATTN_CALLED void load_keys(const Place& at, const Sequence& s, BackwardWorkspace& ws) {
  const AttentionParams& p = at.p;
  const int kv_head = at.h / p.group(), keys = at.key_count();
  load_key_rows(ws.key, at, s, kv_head);
  load_rows(ws.value, p.value, at.b, s.key_begin + at.keys.begin, keys, kv_head, p.value_dim);
  ws.keys_finite = all_finite(ws.key, keys, p.head_dim) && all_finite(ws.value, keys, p.value_dim);
}

FLASHATTN_CALLED void load_queries(const Place& at, const Sequence& s, BackwardWorkspace& ws) {
  const AttentionParams& p = at.p;
  const int row = s.query_begin + at.queries.begin, rows = at.query_count();
  load_query_rows(ws.query, at, s);
  load_rows(ws.d_out, p.d_out, at.b, row, rows, at.h, p.value_dim);
  transpose_rows(ws.query_columns, ws.query, rows, p.head_dim, query_factor(p));
  transpose_rows(ws.d_out_columns, ws.d_out, rows, p.value_dim, 1.0f);
  const RowTerms terms(p, p.lse_row(at.b, at.h, row));
  ws.has_log_sum = false;
  ws.rows_finite = true;
  for (int r = 0; r < round_up(rows, kLanes); ++r) {
    ws.reference[r] = r < rows ? terms.reference[r] : kInfinity;
    ws.log_sum[r] = r < rows ? terms.log_sum[r] : 0.0f;
    ws.delta[r] = r < rows ? terms.delta[r] : 0.0f;
    ws.has_log_sum |= ws.log_sum[r] != 0;
    ws.rows_finite &= ws.reference[r] == ws.reference[r] && ws.delta[r] - ws.delta[r] == 0;
  }
}

/**
 * Recomputes a tile's probabilities P and forms dS = P * (dP - delta) * factor, both [key][query], P without dropout, dS of
 * what score_mod is given.
 * Keys were loaded from position `loaded` on. Returns whether products over this tile must skip the pairs marked in
 * ws.hidden.
 */
FLASHATTN_CALLED bool score_gradients(const Place& at, int loaded, float factor, BackwardWorkspace& ws) {
  const AttentionParams& p = at.p;
  const int keys = at.key_count(), vectors = at.query_vectors();
  const size_t skipped = size_t(at.keys.begin - loaded) * kRowStride;
  const bool partial = at.cover() == Cover::Partial;

  product<KeyRowsTimesQueryColumns, Accumulate::No>(keys, vectors, p.head_dim, ws.key + skipped, ws.query_columns,
                                                    ws.probability, kQueryTile, nullptr, ws.ahead);
  finish_scores(at, ws.probability, product_factor(at.p), ws.score_rows, {ws.softcap_slope, ws.mod_slope});
  if (partial) hide_scores(at, ws.probability);
  if (partial && p.score_mod.program) hide_slopes(at, ws.probability, ws.mod_slope);
  const bool guarded = (partial || scores_hide(p)) &&
                       !(ws.keys_finite && ws.rows_finite && all_finite(ws.query, at.query_count(), p.head_dim) &&
                         all_finite(ws.d_out, at.query_count(), p.value_dim));
  if (guarded) mark_hidden(at, ws.probability, ws.hidden);

  product<KeyRowsTimesQueryColumns, Accumulate::No>(keys, vectors, p.value_dim, ws.value + skipped, ws.d_out_columns,
                                                    ws.d_score, kQueryTile, nullptr, ws.ahead);
  if (p.dropout.threshold) {
    dropout_factors(at, ws.factors);
    multiply_scores(at, ws.d_score, ws.factors);
  }
  const bool has_log_sum = ws.has_log_sum;  // stores to the tile may alias the member
  for (int row = 0; row < keys * kQueryTile; row += kQueryTile) {
    for (int v = 0; v < vectors * kLanes; v += kLanes) {
      Vec exponent = load(ws.probability + row + v) - load(ws.reference + v);
      if (has_log_sum) exponent -= load(ws.log_sum + v);
      const Vec probability = natural_exp(exponent);
      Vec d_score = probability * (load(ws.d_score + row + v) - load(ws.delta + v)) * splat(factor);
      if (guarded) d_score = (Vec)((UintVec)d_score & ~load_bits(ws.hidden + row + v));
      store(ws.probability + row + v, probability);
      store(ws.d_score + row + v, d_score);
    }
  }
  if (p.score_mod.program) multiply_scores(at, ws.d_score, ws.mod_slope);
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
                                            double* d_table /* [bucket_count] */) {
  for (int j = at.keys.begin; j < at.keys.end; ++j)
    for (int i = at.queries.begin; i < at.queries.end; ++i)
      d_table[relative_bucket(at.p.relative, i, j)] += d_score[(j - at.keys.begin) * kQueryTile + i - at.queries.begin];
}

/**
 * One query tile meets the loaded key tile: adds to ws.d_key, ws.d_value and the rows of `d_query`; d_key and d_query
 * lack product_factor.
 */
FLASHATTN_CALLED void meet_queries(const Place& loaded, BackwardWorkspace& ws, float* d_query, int d_query_row,
                                   double* d_table) {
  const Place at = loaded.narrowed();
  if (at.key_count() <= 0) return;
  const AttentionParams& p = at.p;
  const int keys = at.key_count(), queries = at.query_count();
  const size_t skipped = size_t(at.keys.begin - loaded.keys.begin) * kRowStride;
  if (ws.block.was_full()) {
    carry_rows(ws.block.carried, ws.d_key_total, ws.d_key, loaded.key_count(), p.head_dim);
    carry_rows(ws.block.carried, ws.d_value_total, ws.d_value, loaded.key_count(), p.value_dim);
    ws.block.carried = true;
  }
  const float factor = query_factor(p);
  const bool guarded = score_gradients(at, loaded.keys.begin, d_table ? 1 : factor, ws);
  if (d_table) {
    add_relative_gradient(at, ws.d_score, d_table);
    if (factor != 1) scale_scores(at, ws.d_score, factor);
  }
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

/** The sums of a key tile in the block as well as in the totals become the gradients of its rows. */
FLASHATTN_CALLED void finish_keys(const Place& at, const Sequence& s, BackwardWorkspace& ws) {
  const AttentionParams& p = at.p;
  const int keys = at.key_count(), kv_head = at.h / p.group();
  if (ws.block.carried) {
    add_rows(ws.d_key, ws.d_key_total, keys, p.head_dim);
    add_rows(ws.d_value, ws.d_value_total, keys, p.value_dim);
  }
  if (const float factor = product_factor(p); factor != 1) scale_rows(ws.d_key, keys, p.head_dim, factor);
  turn_key_gradient_back(p, at.keys.begin, keys, ws.d_key);
  store_rows(p.d_key, at.b, s.key_begin + at.keys.begin, keys, kv_head, p.head_dim, ws.d_key);
  store_rows(p.d_value, at.b, s.key_begin + at.keys.begin, keys, kv_head, p.value_dim, ws.d_value);
}

/** The rows of d_query_sum that one split adds to: a block of key tiles, and its total where there are several. */
struct QueryGradients {
  const AttentionParams& p;
  int split;

  int width() const { return round_up(p.head_dim, kLanes); }
  float* row(int plane, size_t lse_row) const {
    return p.d_query_sum + ((split * size_t(d_query_planes(p)) + plane) * p.lse_rows + lse_row) * width();
  }
};

}  // namespace detail

namespace detail {

/**
 * The softmax of a query tile again, for rows whose lse is so large that the logarithm of their sum is lost in its
 * rounding. A row whose lse is not that of its own keys (it may come from more of them) keeps it as it is.
 */
FLASHATTN_CALLED void refine_rows(Place at, const Sequence& s, BackwardWorkspace& ws) {
  const AttentionParams& p = at.p;
  const int rows = at.query_count(), row = s.query_begin + at.queries.begin;
  load_query_rows(ws.query, at, s);
  transpose_rows(ws.query_columns, ws.query, rows, p.head_dim, query_factor(p));
  start_softmax(p, at.h, ws.softmax);
  const Range visible = at.band.visible_keys(at.queries, s.key_length);
  for_key_tiles(p, at.b, at.h, at.queries, visible, [&](Range keys, const Meeting* meetings, Range) {
    if (!meetings[0].visible) return;
    at.keys = keys;
    at.bits = meetings[0].bits;
    const Place met = at.narrowed();
    if (met.key_count() <= 0) return;
    load_key_rows(ws.key, met, s, at.h / p.group());
    product<KeyRowsTimesQueryColumns, Accumulate::No>(met.key_count(), met.query_vectors(), p.head_dim, ws.key,
                                                      ws.query_columns, ws.probability, kQueryTile);
    finish_scores(met, ws.probability, product_factor(met.p), ws.score_rows);
    if (met.cover() == Cover::Partial) hide_scores(met, ws.probability);
    online_softmax(met.key_count(), met.query_vectors(), ws.softmax, ws.probability, ws.shrink);
  });
  const size_t lse_row = p.lse_row(at.b, at.h, row);
  const RowTerms terms(p, lse_row);
  for (int r = 0; r < rows; ++r) {
    if (!is_coarse(p.lse[lse_row + r]) || !(ws.softmax.sum[r] > 0)) continue;
    const double logarithm = log_sum(ws.softmax, r);
    if (!agrees(ws.softmax.reference[r] + logarithm, p.lse[lse_row + r])) continue;
    terms.reference[r] = ws.softmax.reference[r];
    terms.log_sum[r] = static_cast<float>(logarithm);
  }
}

}  // namespace detail

/** Fills RowTerms; delta = sum_d d_out * out - d_lse. */
FLASHATTN_CALLED void backward_rows(const AttentionParams& p, int item, BackwardWorkspace& ws) {
  detail::for_rows(p, item, [&](int b, int h, size_t row, int i) {
    load_row(ws.query, p.out.row(b, i, h), p.out.dtype, p.value_dim);
    load_row(ws.d_out, p.d_out.row(b, i, h), p.d_out.dtype, p.value_dim);
    Vec sum{};
    for (int d = 0; d < p.value_dim; d += kLanes) sum = multiply_add(load(ws.query + d), load(ws.d_out + d), sum);
    const RowTerms terms(p, row);
    *terms.delta = sum_lanes(sum) - (p.d_lse ? p.d_lse[row] : 0.0f);
    *terms.reference = p.lse[row] == -kInfinity ? kInfinity : p.lse[row];
    *terms.log_sum = 0;
  });
  const detail::RowItem rows(p, item);
  Place at(p, rows.s, rows.b, rows.h);
  for (int i = rows.rows.begin; i < rows.rows.end; i += kQueryTile) {
    at.queries = {i, min(i + kQueryTile, rows.rows.end)};
    const float* lse = p.lse + p.lse_row(at.b, at.h, rows.s.query_begin + i);
    bool coarse = false;
    for (int r = 0; r < at.query_count(); ++r) coarse |= detail::is_coarse(lse[r]);
    if (coarse) detail::refine_rows(at, rows.s, ws);
  }
}

inline int backward_items(const AttentionParams& p) { return p.batch * p.kv_heads * p.key_splits; }

FLASHATTN_CALLED void backward_item(const AttentionParams& p, int item, BackwardWorkspace& ws) {
  const int split = item % p.key_splits, kv_head = item / p.key_splits % p.kv_heads;
  const int b = item / p.key_splits / p.kv_heads;
  const Sequence s = p.sequence(b);
  const int key_tile = backward_key_tile(p.block_mask.block_size), tiles = divide_up(s.key_length, key_tile);
  const Range key_tiles{int(tiles * int64_t(split) / p.key_splits), int(tiles * int64_t(split + 1) / p.key_splits)};
  const int first_head = kv_head * p.group();
  const detail::QueryGradients d_query{p, split};
  const auto d_query_at = [&](int plane, int h, int i) {  // [lse rows, padded head dim]
    return d_query.row(plane, p.lse_row(b, h, s.query_begin + i));
  };
  const auto d_table_at = [&](int h) -> double* {  // [bucket_count]
    void* const partial = p.d_relative_partial;
    if (!partial) return nullptr;
    return static_cast<double*>(partial) + ((split * size_t(p.batch) + b) * p.heads + h) * p.relative.bucket_count;
  };
  for (int h = first_head; h < first_head + p.group(); ++h) {
    for (int plane = 0; plane < d_query_planes(p); ++plane)
      __builtin_memset(d_query_at(plane, h, 0), 0, size_t(s.query_length) * d_query.width() * sizeof(float));
    if (double* d_table = d_table_at(h)) __builtin_memset(d_table, 0, p.relative.bucket_count * sizeof(double));
  }

  for (int tile = key_tiles.begin; tile < key_tiles.end; ++tile) {
    if (tile > key_tiles.begin && (tile - key_tiles.begin) % kBlockTiles == 0)
      for (int h = first_head; h < first_head + p.group(); ++h)
        carry(d_query_at(1, h, 0), d_query_at(0, h, 0), size_t(s.query_length) * d_query.width());
    Place at(p, s, b, first_head);
    at.keys = {tile * key_tile, min((tile + 1) * key_tile, s.key_length)};
    detail::load_keys(at, s, ws);
    clear_rows(ws.d_key, at.key_count(), p.head_dim);
    clear_rows(ws.d_value, at.key_count(), p.value_dim);
    ws.block = {};
    const Range seeing = at.band.seeing_queries(at.keys, s.query_length);
    for (at.h = first_head; at.h < first_head + p.group(); ++at.h) {
      for_query_tiles(p, b, at.h, at.keys.begin, seeing, [&](Range queries, const BlockBits& bits, Range next) {
        at.queries = queries;
        at.bits = bits;
        detail::load_queries(at, s, ws);
        const int row = s.query_begin + next.begin, count = max(0, next.end - next.begin);
        ws.ahead = {RowsAhead(p.query, b, row, count, at.h, p.head_dim),
                    RowsAhead(p.d_out, b, row, count, at.h, p.value_dim)};
        detail::meet_queries(at, ws, d_query_at(0, at.h, queries.begin), d_query.width(), d_table_at(at.h));
      });
    }
    at.h = first_head;
    detail::finish_keys(at, s, ws);
  }
}

/** d_query = the sum over key splits and their planes, in their order. */
FLASHATTN_CALLED void finish_query_gradients(const AttentionParams& p, int item, BackwardWorkspace& ws) {
  const int planes = d_query_planes(p), width = round_up(p.head_dim, kLanes);
  detail::for_rows(p, item, [&](int b, int h, size_t row, int i) {
    for (int d = 0; d < width; d += kLanes) {
      Vec sum{}, rest{};
      for (int split = 0; split < p.key_splits; ++split)
        for (int plane = 0; plane < planes; ++plane)
          rest += add_exactly(sum, load(detail::QueryGradients{p, split}.row(plane, row) + d));
      store(ws.query + d, (sum + rest) * splat(product_factor(p)));
    }
    const Sequence s = p.sequence(b);
    turn_query_gradient_back(p, s, i - s.query_begin, 1, ws.query);
    store_row(p.d_query.row(b, i, h), p.d_query.dtype, ws.query, p.head_dim);
  });
}

}  // namespace flashattn
