// FlashAttention forward: Dao, "FlashAttention-2" (2023), algorithm 1.
//
// An item is a few query tiles of one head. Each key tile is loaded once and meets all of them; nothing of size
// queries x keys exists anywhere but in the score tile.
#pragma once
#include "attention/rotary.h"
#include "attention/softmax.h"

namespace flashattn {

/** The state of one query tile. */
struct alignas(kCacheLine) ForwardTile {
  QueryColumns query;  // [dim][query], times query_factor
  RunningSoftmax softmax;
  QueryRows out, total;  // [query][value dim]: sums of probability * value, of the running block and of older ones
  BlockCounter block;
  bool overflowed[kQueryTile];  // rows whose sums left float32 where the weights did not
};

struct alignas(kCacheLine) ForwardWorkspace {
  ForwardTile tiles[kMaxTilesPerItem];
  KeyRows key, value;
  ScoreTile scores, factors;
  uint32_t hidden[kKeyTile * kQueryTile];
  float shrink[kQueryTile];
  QueryRows rows;
  Finite value_finite;
  TileAhead ahead;
  ScoreRows score_rows;
};

static_assert(offsetof(ForwardTile, total) % kCacheLine == 0 && offsetof(ForwardWorkspace, rows) % kCacheLine == 0);

inline int forward_items(const AttentionParams& p) {
  return p.batch * p.heads * divide_up(p.query_length, kQueryTile * p.tiles_per_item);
}

namespace detail {

// What values are multiplied by when their weighted sums, not yet divided by the sum of the weights, overflow. Weights
// are at most e^kSlack and keys fewer than 2^31.
inline constexpr float kShrunk = 0x1p-40f, kRestored = 0x1p40f;

/** Before sums of another key tile are added to those of a query tile. */
inline void begin_tile(const Place& at, ForwardTile& tile) {
  if (!tile.block.was_full()) return;
  carry_rows(tile.block.carried, tile.total, tile.out, at.query_count(), at.p.value_dim);
  tile.block.carried = true;
}

/** Logits become what values are weighted by; older sums shrink by ws.shrink [query]. */
inline void weigh(const Place& at, ForwardTile& tile, ForwardWorkspace& ws) {
  const bool raised = online_softmax(at.key_count(), at.query_vectors(), tile.softmax, ws.scores, ws.shrink);
  if (raised && tile.block.carried) multiply_rows(tile.total, ws.shrink, at.query_count(), at.p.value_dim);
  if (!at.p.dropout.threshold) return;
  dropout_factors(at, ws.factors);
  multiply_scores(at, ws.scores, ws.factors);
}

/** A query tile meets the keys that were loaded for `loaded.keys`. */
FLASHATTN_CALLED void meet_keys(const Place& loaded, ForwardTile& tile, ForwardWorkspace& ws) {
  const Place at = loaded.narrowed();
  if (at.key_count() <= 0) return;
  const AttentionParams& p = at.p;
  const bool partial = at.cover() == Cover::Partial;
  const int value_vectors = divide_up(p.value_dim, kLanes);
  const size_t skipped = size_t(at.keys.begin - loaded.keys.begin) * kRowStride;
  const float* key = ws.key + skipped;      // [key][head dim]
  const float* value = ws.value + skipped;  // [key][value dim]

  begin_tile(at, tile);
  product<KeyRowsTimesQueryColumns, Accumulate::No>(at.key_count(), at.query_vectors(), p.head_dim, key, tile.query,
                                                    ws.scores, kQueryTile, nullptr, ws.ahead);
  finish_scores(at, ws.scores, product_factor(p), ws.score_rows);
  if (partial) hide_scores(at, ws.scores);

  const bool guarded = (partial || scores_hide(p)) && !ws.value_finite.check(ws.value, loaded.key_count(), p.value_dim);
  if (guarded) mark_hidden(at, ws.scores, ws.hidden);

  weigh(at, tile, ws);

  if (guarded) {
    product<ScoresTimesKeyRows, Accumulate::Scaled>(at.query_count(), value_vectors, 0, ws.scores, value, tile.out,
                                                    kRowStride, ws.shrink);
    product_visible<ScoresTimesKeyRows>(at.query_count(), value_vectors, at.key_count(), ws.scores, ws.hidden, value,
                                        tile.out, kRowStride);
  } else {
    product<ScoresTimesKeyRows, Accumulate::Scaled>(at.query_count(), value_vectors, at.key_count(), ws.scores, value,
                                                    tile.out, kRowStride, ws.shrink, ws.ahead);
  }
}

/** scores = K Q^T */
FLASHATTN_INLINE void multiply_key_pairs(const Place& at, const float* key /* [key][head dim / 2] */,
                                         const float* query /* [head dim / 2][query] */,
                                         float* scores /* [key][query] */) {
  const int words = divide_up(at.p.head_dim, 2);
  if constexpr (kHasTiles)
    tile_product<kRowStride, kQueryTile>(at.key_count(), at.query_count(), words, key, query, scores, kQueryTile,
                                         nullptr);
  else
    product<PairsOf<KeyRowsTimesQueryColumns>, Accumulate::No>(at.key_count(), at.query_vectors(), words, key, query,
                                                               scores, kQueryTile);
}

/** out = shrink * out + P V; the scores are used up. */
FLASHATTN_INLINE void add_value_pairs(const Place& at, const float* value /* [key / 2][value dim] */, float* out,
                                      ForwardWorkspace& ws) {
  const int pairs = divide_up(at.key_count(), 2);
  if constexpr (kHasTiles) {
    pair_score_rows(at.key_count(), at.query_vectors(), ws.scores, words_of(ws.factors));
    tile_product<kKeyTile / 2, kRowStride>(at.query_count(), at.p.value_dim, pairs, ws.factors, value, out, kRowStride,
                                           ws.shrink);
  } else {
    pair_scores(at.key_count(), at.query_vectors(), ws.scores);
    product<PairsOf<ScoresTimesKeyRows>, Accumulate::Scaled>(at.query_count(), divide_up(at.p.value_dim, kLanes), pairs,
                                                             ws.scores, value, out, kRowStride, ws.shrink);
  }
}

/** meet_keys on pairs, which are all ordinary. */
FLASHATTN_CALLED void meet_key_pairs(const Place& loaded, ForwardTile& tile, ForwardWorkspace& ws) {
  const Place at = loaded.narrowed_to(kKeyUnit);
  if (at.key_count() <= 0) return;
  const AttentionParams& p = at.p;
  const int skipped = at.keys.begin - loaded.keys.begin;
  const float* key = ws.key + size_t(skipped) * kRowStride;          // [key][head dim / 2]
  const float* value = ws.value + size_t(skipped / 2) * kRowStride;  // [key / 2][value dim]

  begin_tile(at, tile);
  multiply_key_pairs(at, key, tile.query, ws.scores);
  finish_scores(at, ws.scores, p.scale, ws.score_rows);
  if (at.cover() == Cover::Partial) hide_scores(at, ws.scores);
  weigh(at, tile, ws);
  add_value_pairs(at, value, tile.out, ws);
}

/**
 * Divides a row of sums by the sum of its weights. Returns whether the quotients are finite.
 * `restore` undoes what values were multiplied by.
 */
FLASHATTN_INLINE bool finish_row(float* row /* [dim] */, float sum, float restore, int dim) {
  const Vec inverse = splat(sum == 0 ? 0.0f : 1 / sum);
  IntVec finite = IntVec{} - 1;
  for (int d = 0; d < dim; d += kLanes) {
    const Vec mean = load(row + d) * inverse;
    finite &= mean - mean == Vec{};
    store(row + d, mean * splat(restore));
  }
  return !any(~finite);
}

/** Rounding may lift a mean of the largest floats over them. */
inline void clamp_row(float* row /* [dim] */, int dim) {
  for (int d = 0; d < dim; ++d) row[d] = row[d] < -kLargest ? -kLargest : row[d] > kLargest ? kLargest : row[d];
}

inline float row_lse(const RunningSoftmax& state, int r) {
  if (state.sum[r] == 0) return -kInfinity;
  if (!(state.sum[r] > 0)) return state.sum[r];  // NaN stays NaN
  return static_cast<float>(state.reference[r] + log_sum(state, r));
}

/** Returns whether sums of the tile have overflowed that fit once values are shrunk. */
FLASHATTN_CALLED bool finish_tile(const Place& at, const Sequence& s, ForwardTile& tile) {
  const AttentionParams& p = at.p;
  float* lse = p.lse + p.lse_row(at.b, at.h, s.query_begin + at.queries.begin);
  if (tile.block.carried) add_rows(tile.out, tile.total, at.query_count(), p.value_dim);
  bool overflowed = false;
  for (int r = 0; r < at.query_count(); ++r) {
    float* out = tile.out + r * kRowStride;
    const float sum = tile.softmax.sum[r] + tile.softmax.rest[r];
    tile.overflowed[r] = !finish_row(out, sum, 1, p.value_dim) && sum > 0;
    overflowed |= tile.overflowed[r];
    store_row(p.out.row(at.b, s.query_begin + at.queries.begin + r, at.h), p.out.dtype, out, p.value_dim);
    lse[r] = row_lse(tile.softmax, r);
  }
  return overflowed;
}

/** Writes again the rows that have overflowed, from sums over shrunken values. */
FLASHATTN_CALLED void restore_tile(const Place& at, const Sequence& s, ForwardTile& tile) {
  const AttentionParams& p = at.p;
  if (tile.block.carried) add_rows(tile.out, tile.total, at.query_count(), p.value_dim);
  for (int r = 0; r < at.query_count(); ++r) {
    if (!tile.overflowed[r]) continue;
    float* out = tile.out + r * kRowStride;
    if (finish_row(out, tile.softmax.sum[r] + tile.softmax.rest[r], kRestored, p.value_dim))
      clamp_row(out, p.value_dim);
    store_row(p.out.row(at.b, s.query_begin + at.queries.begin + r, at.h), p.out.dtype, out, p.value_dim);
  }
}

/** A range of queries of one head, cut into tiles. */
struct QueryTiles {
  Range queries;

  int count() const { return divide_up(queries.end - queries.begin, kQueryTile); }
  Range operator[](int t) const {
    return {queries.begin + t * kQueryTile, min(queries.begin + (t + 1) * kQueryTile, queries.end)};
  }
};

/** A query tile is loaded and its state begins. Returns whether it can be had as pairs, where they are wanted. */
template <bool kPairs>
FLASHATTN_CALLED bool start_tile(const Place& at, const Sequence& s, ForwardTile& tile, ForwardWorkspace& ws) {
  const AttentionParams& p = at.p;
  const int rows = at.query_count();
  bool fits = true;
  if constexpr (kPairs) {
    fits = load_query_pairs(words_of(ws.rows), at, s);
    transpose_pairs(words_of(tile.query), words_of(ws.rows), rows, divide_up(p.head_dim, 2));
  } else {
    load_query_rows(ws.rows, at, s);
    transpose_rows(tile.query, ws.rows, rows, p.head_dim, query_factor(p));
  }
  start_softmax(p, at.h, tile.softmax);
  clear_rows(tile.out, rows, p.value_dim);
  tile.block = {};
  return fits;
}

/** Keys and values of a tile are loaded. Returns whether they can be had as pairs, where they are wanted. */
template <bool kPairs>
FLASHATTN_CALLED bool load_keys(const Place& at, const Sequence& s, float shrunk, ForwardWorkspace& ws) {
  const AttentionParams& p = at.p;
  const int kv_head = at.h / p.group();
  if constexpr (kPairs) {
    const int begin = s.key_begin + at.keys.begin;
    // Tiles multiply what lies behind the last pair of values by zero.
    const int pairs = divide_up(at.key_count(), 2);
    if constexpr (kHasTiles) clear_rows(ws.value + pairs * kRowStride, round_up(pairs, kTileSide) - pairs, p.value_dim);
    return load_key_pairs(words_of(ws.key), at, s, kv_head) &&
           load_row_pairs(words_of(ws.value), p.value, at.b, begin, at.key_count(), kv_head, p.value_dim);
  } else {
    load_key_rows(ws.key, at, s, kv_head);
    load_kv_rows(ws.value, p.value, at, s, kv_head, p.value_dim);
    if (shrunk != 1) scale_rows(ws.value, at.key_count(), p.value_dim, shrunk);
    ws.value_finite = {};
    return true;
  }
}

/**
 * All that the queries see goes into ws.tiles, with values times `shrunk`. Returns false where it cannot be had as pairs:
 * what has been computed is worth nothing then.
 */
template <bool kPairs>
FLASHATTN_CALLED bool attend(Place at, const Sequence& s, const QueryTiles& tiles, float shrunk, ForwardWorkspace& ws) {
  const AttentionParams& p = at.p;
  bool fits = true;
  for (int t = 0; t < tiles.count() && fits; ++t) {
    at.queries = tiles[t];
    fits = start_tile<kPairs>(at, s, ws.tiles[t], ws);
  }
  if (!fits) return false;
  Range visible = at.band.visible_keys(tiles.queries, s.key_length);
  // Sums go from key tile to key tile: these lie the same for all items then, whatever their size.
  if (p.deterministic) visible.begin -= visible.begin % kKeyTile;
  for_key_tiles(p, at.b, at.h, tiles.queries, visible, [&](Range keys, const Meeting* meetings, Range next) {
    if (!fits) return;
    at.keys = keys;
    fits = load_keys<kPairs>(at, s, shrunk, ws);
    const int kv_head = at.h / p.group(), count = max(0, next.end - next.begin);
    ws.ahead = {RowsAhead(p.key, at.b, s.key_begin + next.begin, count, kv_head, p.head_dim),
                RowsAhead(p.value, at.b, s.key_begin + next.begin, count, kv_head, p.value_dim)};
    for (int t = 0; t < tiles.count() && fits; ++t) {
      at.queries = tiles[t];
      const int block = p.block_mask.block_size ? t * kQueryTile / p.block_mask.block_size : 0;
      if (!meetings[block].visible) continue;
      at.bits = meetings[block].bits;
      if constexpr (kPairs)
        meet_key_pairs(at, ws.tiles[t], ws);
      else
        meet_keys(at, ws.tiles[t], ws);
    }
  });
  return fits;
}

}  // namespace detail

/** Attention of a few queries of one head: at most kMaxTilesPerItem tiles. */
inline void attend_and_finish(Place at, const Sequence& s, Range queries, ForwardWorkspace& ws) {
  const detail::QueryTiles tiles{queries};
  bool attended = false;
  if constexpr (kHasPairs) {
    if (at.p.query.dtype == DType::BFloat16) {
      [[maybe_unused]] const TileUse use;
      attended = detail::attend<true>(at, s, tiles, 1, ws);
    }
  }
  if (!attended) detail::attend<false>(at, s, tiles, 1, ws);
  bool overflowed = false;
  for (int t = 0; t < tiles.count(); ++t) {
    at.queries = tiles[t];
    overflowed |= detail::finish_tile(at, s, ws.tiles[t]);
  }
  if (!overflowed) return;
  detail::attend<false>(at, s, tiles, detail::kShrunk, ws);
  for (int t = 0; t < tiles.count(); ++t) {
    at.queries = tiles[t];
    detail::restore_tile(at, s, ws.tiles[t]);
  }
}

FLASHATTN_CALLED void forward_item(const AttentionParams& p, int item, ForwardWorkspace& ws) {
  const int rows_per_item = kQueryTile * p.tiles_per_item;
  const int items_per_head = divide_up(p.query_length, rows_per_item);
  // Under a causal mask late queries see the most keys: the longest items of a head go first.
  const int begin = (items_per_head - 1 - item % items_per_head) * rows_per_item;
  const int h = item / items_per_head % p.heads, b = item / items_per_head / p.heads;
  const Sequence s = p.sequence(b);
  const Range queries{begin, min(begin + rows_per_item, s.query_length)};
  if (queries.begin < queries.end) attend_and_finish(Place(p, s, b, h), s, queries, ws);
}

}  // namespace flashattn
