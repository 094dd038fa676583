// The gradients of attention in which every query has a list of key blocks of its own.
//
// Two launches. An item of the first is a part of the positions: it walks over their ranges as forward does, so that it alone
// writes the gradients of its queries, and adds those of keys and values into sums of its own. The second adds up the sums of
// all parts, in their order. How the sequence is cut depends on its length alone.
#pragma once
#include "attention/backward.h"
#include "attention/selected.h"

namespace flashattn {

struct alignas(kCacheLine) SelectedBackwardWorkspace {
  float query[kRangeFloats], d_out[kRangeFloats];  // [position][dim][lane], queries times query_factor
  RangeSums d_query;                               // [position][lane][head dim]
  float reference[kRangeRows], log_sum[kRangeRows], delta[kRangeRows];
  KeyRows key, value, d_key, d_value;
  QueryRows query_rows, d_out_rows, rows;
  QueryColumns query_columns, d_out_columns;
  ScoreTile probability, d_score;
  uint32_t hidden[kKeyTile * kQueryTile];
  float tile_reference[kQueryTile], tile_log_sum[kQueryTile], tile_delta[kQueryTile];  // of the rows of a tile
  Positions selecting[kListedBlocks];
  bool keys_finite;  // key and value
  bool rows_finite;  // of the whole range
  TileAhead ahead;
};

/** Ranges whose sums are added up as a block. */
inline constexpr int kBlockRanges = 16;

inline int selected_backward_items(const SelectedAttentionParams& p) { return p.batch * p.kv_heads * p.splits(); }

inline int finish_selected_items(const SelectedAttentionParams& p) {
  return p.batch * p.kv_heads * divide_up(p.seq, kRowsPerItem);
}

namespace detail {

/** What a part of the positions adds to the gradients of keys or values. */
struct SelectedSums {
  const SelectedAttentionParams& p;
  float* sums;
  int b, kv_head, width;

  float* row(int split, int plane, int j) const {
    const size_t head = ((size_t(split) * p.planes + plane) * p.batch + b) * p.kv_heads + kv_head;
    return sums + (head * p.seq + j) * width;
  }
};

inline SelectedSums d_key_sums(const SelectedAttentionParams& p, int b, int kv_head) {
  return {p, p.d_key_sum, b, kv_head, round_up(p.head_dim, kLanes)};
}
inline SelectedSums d_value_sums(const SelectedAttentionParams& p, int b, int kv_head) {
  return {p, p.d_value_sum, b, kv_head, round_up(p.value_dim, kLanes)};
}

/** Queries and the gradients of their results, with what the softmax of each row came to. */
FLASHATTN_CALLED void load_selected(const SelectedRange& range, SelectedBackwardWorkspace& ws) {
  const SelectedAttentionParams& p = range.p;
  const int rows = range.position_count() * range.lanes();
  load_columns(ws.query, range, p.query, p.head_dim, query_factor(p.scale), ws.rows, ws.query_columns);
  load_columns(ws.d_out, range, p.d_out, p.value_dim, 1, ws.rows, ws.d_out_columns);
  ws.d_query.begin(p, rows * round_up(p.head_dim, kLanes));
  ws.rows_finite = true;
  ws.ahead = {};
  for (int i = range.positions.begin, r = 0; i < range.positions.end; ++i) {
    load_heads(ws.rows, range, p.out, i, p.value_dim);
    load_heads(ws.d_out_rows, range, p.d_out, i, p.value_dim);
    const float *out = ws.rows, *d_out = ws.d_out_rows;
    for (int h = range.heads.begin; h < range.heads.end; ++h, ++r, out += kRowStride, d_out += kRowStride) {
      Vec sum{};
      for (int d = 0; d < p.value_dim; d += kLanes) sum = multiply_add(load(out + d), load(d_out + d), sum);
      const size_t row = p.lse_row(range.b, h, i);
      ws.delta[r] = sum_lanes(sum) - (p.d_lse ? p.d_lse[row] : 0.0f);
      ws.reference[r] = p.row_terms[row];
      ws.log_sum[r] = p.row_terms[p.lse_rows() + row];
      ws.rows_finite &= ws.reference[r] == ws.reference[r] && ws.delta[r] - ws.delta[r] == 0;
    }
  }
}

/**
 * Probabilities P of a tile, and dS = P * (dP - delta) * factor, both [key][query]. Returns whether products must skip the
 * pairs that are marked in ws.hidden.
 */
FLASHATTN_CALLED bool selected_gradients(const SelectedRange& range, const SelectedTile& tile, Range keys,
                                         SelectedBackwardWorkspace& ws) {
  const SelectedAttentionParams& p = range.p;
  const int rows = tile.lanes(range), count = keys.end - keys.begin, vectors = divide_up(rows, kLanes);
  const bool hides = selected_scores(range, tile, keys, ws.key, ws.query_columns, ws.probability, ws.ahead);
  const bool guarded = hides && !(ws.keys_finite && ws.rows_finite && all_finite(ws.query_rows, rows, p.head_dim) &&
                                  all_finite(ws.d_out_rows, rows, p.value_dim));
  if (guarded) mark_hidden(count, vectors, ws.probability, ws.hidden);
  product<KeyRowsTimesQueryColumns, Accumulate::No>(count, vectors, p.value_dim, ws.value, ws.d_out_columns, ws.d_score,
                                                    kQueryTile, nullptr, ws.ahead);
  const Vec factor = splat(query_factor(p.scale));
  for (int v = 0; v < vectors * kLanes; v += kLanes) {
    const Vec reference = load(ws.tile_reference + v), log_sum = load(ws.tile_log_sum + v);
    const Vec delta = load(ws.tile_delta + v);
    for (int at = v; at < count * kQueryTile; at += kQueryTile) {
      const Vec probability = natural_exp(load(ws.probability + at) - reference - log_sum);
      Vec d_score = probability * (load(ws.d_score + at) - delta) * factor;
      if (guarded) d_score = (Vec)((UintVec)d_score & ~load_bits(ws.hidden + at));
      store(ws.probability + at, probability);
      store(ws.d_score + at, d_score);
    }
  }
  return guarded;
}

/** Some positions of a range meet the keys that were loaded. */
FLASHATTN_CALLED void meet_selected(const SelectedRange& range, const SelectedTile& tile, Range loaded,
                                    SelectedBackwardWorkspace& ws) {
  const SelectedAttentionParams& p = range.p;
  const int lanes = range.lanes(), rows = tile.lanes(range);
  const Range keys = keys_of(range, tile, loaded);
  const int count = keys.end - keys.begin, width = round_up(p.head_dim, kLanes);
  compose_columns(ws.query_columns, ws.query, tile, lanes, p.head_dim);
  compose_columns(ws.d_out_columns, ws.d_out, tile, lanes, p.value_dim);
  compose_rows(ws.tile_reference, ws.reference, tile, lanes, kInfinity);
  compose_rows(ws.tile_log_sum, ws.log_sum, tile, lanes, 0);
  compose_rows(ws.tile_delta, ws.delta, tile, lanes, 0);
  for (int n = 0; n < tile.count; ++n) {
    const int i = range.positions.begin + tile.at[n];
    const size_t first = size_t(n) * lanes * kRowStride;
    load_heads(ws.query_rows + first, range, p.query, i, p.head_dim);
    load_heads(ws.d_out_rows + first, range, p.d_out, i, p.value_dim);
  }
  const bool guarded = selected_gradients(range, tile, keys, ws);
  accumulate<ScoresTransposedTimesQueryRows>(guarded, count, p.value_dim, rows, ws.probability, ws.hidden,
                                             ws.d_out_rows, ws.d_value, kRowStride);
  accumulate<ScoresTransposedTimesQueryRows>(guarded, count, p.head_dim, rows, ws.d_score, ws.hidden, ws.query_rows,
                                             ws.d_key, kRowStride);
  for (int n = 0; n < tile.count; ++n)
    accumulate<ScoresTimesKeyRows>(guarded, lanes, p.head_dim, count, ws.d_score + n * lanes, ws.hidden + n * lanes,
                                   ws.key, ws.d_query.block + size_t(tile.at[n]) * lanes * width, width);
}

FLASHATTN_CALLED void add_to_sums(const SelectedSums& sums, int split, Range keys,
                                  const float* rows /* [key][kRowStride] */) {
  for (int j = keys.begin; j < keys.end; ++j, rows += kRowStride) {
    float* to = sums.row(split, 0, j);
    for (int d = 0; d < sums.width; d += kLanes) store(to + d, load(to + d) + load(rows + d));
  }
}

FLASHATTN_CALLED void selected_range_gradients(const SelectedRange& range, int split, SelectedBackwardWorkspace& ws) {
  const SelectedAttentionParams& p = range.p;
  const SelectedSums d_key = d_key_sums(p, range.b, range.kv_head), d_value = d_value_sums(p, range.b, range.kv_head);
  load_selected(range, ws);
  for_selected_keys(range, ws.selecting, [&](Range keys, Positions seeing) {
    const int count = keys.end - keys.begin;
    load_rows(ws.key, p.key, range.b, keys.begin, count, range.kv_head, p.head_dim);
    load_rows(ws.value, p.value, range.b, keys.begin, count, range.kv_head, p.value_dim);
    ws.keys_finite = all_finite(ws.key, count, p.head_dim) && all_finite(ws.value, count, p.value_dim);
    clear_rows(ws.d_key, count, p.head_dim);
    clear_rows(ws.d_value, count, p.value_dim);
    ws.d_query.meet(count);
    for_tiles(range, seeing, [&](const SelectedTile& tile) { meet_selected(range, tile, keys, ws); });
    add_to_sums(d_key, split, keys, ws.d_key);
    add_to_sums(d_value, split, keys, ws.d_value);
  });
  const int width = round_up(p.head_dim, kLanes);
  const Vec factor = splat(product_factor(p.scale));
  ws.d_query.finish();
  float* d_query = ws.d_query.block;
  for (int i = range.positions.begin; i < range.positions.end; ++i) {
    for (int h = range.heads.begin; h < range.heads.end; ++h, d_query += width) {
      for (int d = 0; d < width; d += kLanes) store(d_query + d, load(d_query + d) * factor);
      store_head(p.d_query, range.b, i, h, d_query, p.head_dim);
    }
  }
}

/** d = factor * the sum over the parts that see the key, and their planes, in their order. */
FLASHATTN_CALLED void finish_sums(const SelectedSums& sums, int j, float factor, float* row) {
  const SelectedAttentionParams& p = sums.p;
  for (int d = 0; d < sums.width; d += kLanes) {
    Vec sum{}, rest{};
    for (int split = j / p.split_positions; split < p.splits(); ++split)
      for (int plane = 0; plane < p.planes; ++plane) rest += add_exactly(sum, load(sums.row(split, plane, j) + d));
    store(row + d, (sum + rest) * splat(factor));
  }
}

}  // namespace detail

FLASHATTN_CALLED void selected_backward_item(const SelectedAttentionParams& p, int item,
                                             SelectedBackwardWorkspace& ws) {
  const SelectedGrid grid(p);
  // The last positions have filled most of their slots, and have most sums: they go first.
  const int split = p.splits() - 1 - item % p.splits(), kv_head = item / p.splits() % p.kv_heads;
  const int b = item / p.splits() / p.kv_heads;
  const Range positions{split * p.split_positions, min((split + 1) * p.split_positions, p.seq)};
  const detail::SelectedSums all[] = {detail::d_key_sums(p, b, kv_head), detail::d_value_sums(p, b, kv_head)};
  for (const detail::SelectedSums& sums : all)
    for (int plane = 0; plane < p.planes; ++plane)
      __builtin_memset(sums.row(split, plane, 0), 0, size_t(positions.end) * sums.width * sizeof(float));
  int ranges = 0;
  for (int begin = positions.begin; begin < positions.end; begin += grid.positions) {
    if (p.planes > 1 && ranges++ % kBlockRanges == kBlockRanges - 1)
      for (const detail::SelectedSums& sums : all)
        carry(sums.row(split, 1, 0), sums.row(split, 0, 0), size_t(begin) * sums.width);
    for (int part = 0; part < grid.head_parts; ++part) {
      const detail::SelectedRange range{p,
                                        b,
                                        kv_head,
                                        detail::SelectedRange::heads_of(p, grid, kv_head, part),
                                        {begin, min(begin + grid.positions, positions.end)}};
      detail::selected_range_gradients(range, split, ws);
    }
  }
}

FLASHATTN_CALLED void finish_selected_item(const SelectedAttentionParams& p, int item, RowWorkspace& ws) {
  const int chunks = divide_up(p.seq, kRowsPerItem), begin = item % chunks * kRowsPerItem;
  const int kv_head = item / chunks % p.kv_heads, b = item / chunks / p.kv_heads;
  for (int j = begin; j < min(begin + kRowsPerItem, p.seq); ++j) {
    detail::finish_sums(detail::d_key_sums(p, b, kv_head), j, product_factor(p.scale), ws.row[0]);
    detail::store_head(p.d_key, b, j, kv_head, ws.row[0], p.head_dim);
    detail::finish_sums(detail::d_value_sums(p, b, kv_head), j, 1, ws.row[0]);
    detail::store_head(p.d_value, b, j, kv_head, ws.row[0], p.value_dim);
  }
}

}  // namespace flashattn
