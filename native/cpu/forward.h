// FlashAttention forward: Dao, "FlashAttention-2" (2023), algorithm 1, with the online softmax of Milakov & Gimelshein.
//
// An item is a few query tiles of one head. Each key tile is loaded once and meets all of them; nothing of size
// queries x keys exists anywhere but in the score tile.
#pragma once
#include "scores.h"

namespace flashattn {

/** The running softmax of one query tile: sum = sum_j 2^(logit_j - maximum), out not yet divided by it. */
struct ForwardTile {
  QueryColumns query;         // [dim][query], times query_factor
  QueryRows out;              // [query][value dim]
  float maximum[kQueryTile];  // of logits / ln 2
  float sum[kQueryTile];
};

struct ForwardWorkspace {
  ForwardTile tiles[kMaxTilesPerItem];
  KeyRows key, value;
  Finite value_finite;
  ScoreTile scores, factors;
  uint32_t hidden[kKeyTile * kQueryTile];
  float rescale[kQueryTile];
  QueryRows rows;
};

inline int forward_items(const AttentionParams& p) {
  return p.batch * p.heads * divide_up(p.query_length, kQueryTile * p.tiles_per_item);
}

namespace detail {

// Below every logit a float can hold after scaling, yet finite: the difference of two of them is 0, not NaN.
inline constexpr float kLowest = -1e30f;

/** A sink is one more key whose value is zero, so the state starts as if it had been seen. */
inline void start_tile(const AttentionParams& p, int h, ForwardTile& tile, int rows) {
  const float sink = p.sink ? p.sink[h] * kLog2E : -kInfinity;
  const bool has_sink = !(sink <= kLowest);
  fill(tile.maximum, has_sink ? sink : kLowest, kQueryTile);
  fill(tile.sum, has_sink ? 1.0f : 0.0f, kQueryTile);
  clear_rows(tile.out, rows, p.value_dim);
}

/** Scores become probabilities relative to the new maximum; `rescale` is what older sums and outputs shrink by. */
FLASHATTN_CALLED void online_softmax(const Place& at, ForwardTile& tile, float* scores, float* rescale) {
  const int keys = at.key_count(), paired = keys & ~1;
  for (int v = 0; v < at.query_vectors() * kLanes; v += kLanes) {
    const Vec before = load(tile.maximum + v);
    Vec top[2] = {before, before};
    for (int j = 0; j < paired; j += 2) {
      top[0] = max(top[0], load(scores + j * kQueryTile + v));
      top[1] = max(top[1], load(scores + (j + 1) * kQueryTile + v));
    }
    if (paired < keys) top[0] = max(top[0], load(scores + paired * kQueryTile + v));
    const Vec maximum = max(top[0], top[1]);
    const Vec shrink = exp2(before - maximum);
    Vec sum[2] = {};
    for (int j = 0; j < paired; j += 2) {
      const Vec p0 = exp2(load(scores + j * kQueryTile + v) - maximum);
      const Vec p1 = exp2(load(scores + (j + 1) * kQueryTile + v) - maximum);
      store(scores + j * kQueryTile + v, p0);
      store(scores + (j + 1) * kQueryTile + v, p1);
      sum[0] += p0;
      sum[1] += p1;
    }
    if (paired < keys) {
      const Vec p0 = exp2(load(scores + paired * kQueryTile + v) - maximum);
      store(scores + paired * kQueryTile + v, p0);
      sum[0] += p0;
    }
    store(tile.maximum + v, maximum);
    store(tile.sum + v, load(tile.sum + v) * shrink + (sum[0] + sum[1]));
    store(rescale + v, shrink);
  }
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

  product<KeyRowsTimesQueryColumns, Accumulate::No>(at.key_count(), at.query_vectors(), p.head_dim, key, tile.query,
                                                    ws.scores, kQueryTile);
  finish_scores(at, ws.scores);
  if (partial) hide_scores(at, ws.scores);

  const bool guarded = (partial || p.bias.data) && !ws.value_finite.check(ws.value, loaded.key_count(), p.value_dim);
  if (guarded) mark_hidden(at, ws.scores, ws.hidden);

  online_softmax(at, tile, ws.scores, ws.rescale);
  if (p.dropout.threshold) {
    dropout_factors(at, ws.factors);
    multiply_scores(at, ws.scores, ws.factors);
  }

  if (guarded) {
    product<ScoresTimesKeyRows, Accumulate::Scaled>(at.query_count(), value_vectors, 0, ws.scores, value, tile.out,
                                                    kRowStride, ws.rescale);
    product_visible<ScoresTimesKeyRows>(at.query_count(), value_vectors, at.key_count(), ws.scores, ws.hidden, value,
                                        tile.out, kRowStride);
  } else {
    product<ScoresTimesKeyRows, Accumulate::Scaled>(at.query_count(), value_vectors, at.key_count(), ws.scores, value,
                                                    tile.out, kRowStride, ws.rescale);
  }
}

FLASHATTN_CALLED void finish_tile(const Place& at, const Sequence& s, ForwardTile& tile) {
  const AttentionParams& p = at.p;
  float* lse = p.lse + p.lse_row(at.b, at.h, s.query_begin + at.queries.begin);
  for (int r = 0; r < at.query_count(); ++r) {
    const float sum = tile.sum[r], maximum = tile.maximum[r];
    const Vec inverse = splat(sum == 0 ? 0.0f : 1 / sum);
    float* out = tile.out + r * kRowStride;
    for (int d = 0; d < p.value_dim; d += kLanes) store(out + d, load(out + d) * inverse);
    store_row(p.out.row(at.b, s.query_begin + at.queries.begin + r, at.h), p.out.dtype, out, p.value_dim);
    if (sum == 0)
      lse[r] = -kInfinity;
    else if (sum > 0)
      lse[r] = static_cast<float>(maximum * kLn2 + ln(sum));
    else
      lse[r] = sum;  // NaN stays NaN
  }
}

}  // namespace detail

FLASHATTN_CALLED void forward_item(const AttentionParams& p, int item, ForwardWorkspace& ws) {
  const int rows_per_item = kQueryTile * p.tiles_per_item;
  const int items_per_head = divide_up(p.query_length, rows_per_item);
  // Under a causal mask late queries see the most keys: the longest items of a head go first.
  const int begin = (items_per_head - 1 - item % items_per_head) * rows_per_item;
  const int h = item / items_per_head % p.heads, b = item / items_per_head / p.heads;
  const Sequence s = p.sequence(b);
  const Range queries{begin, min(begin + rows_per_item, s.query_length)};
  if (queries.begin >= queries.end) return;

  Place at(p, s, b, h);
  const int tiles = divide_up(queries.end - queries.begin, kQueryTile);
  const auto tile_range = [&](int t) {
    return Range{queries.begin + t * kQueryTile, min(queries.begin + (t + 1) * kQueryTile, queries.end)};
  };

  for (int t = 0; t < tiles; ++t) {
    const Range range = tile_range(t);
    const int rows = range.end - range.begin;
    load_rows(ws.rows, p.query, b, s.query_begin + range.begin, rows, h, p.head_dim);
    transpose_rows(ws.tiles[t].query, ws.rows, rows, p.head_dim, query_factor(p));
    detail::start_tile(p, h, ws.tiles[t], rows);
  }

  const Range visible = at.band.visible_keys(queries, s.key_length);
  const int kv_head = h / p.group();
  for_key_tiles(p, b, h, queries, visible, [&](Range keys, const Meeting* meetings) {
    at.keys = keys;
    load_rows(ws.key, p.key, b, s.key_begin + keys.begin, at.key_count(), kv_head, p.head_dim);
    load_rows(ws.value, p.value, b, s.key_begin + keys.begin, at.key_count(), kv_head, p.value_dim);
    ws.value_finite = {};
    for (int t = 0; t < tiles; ++t) {
      at.queries = tile_range(t);
      const int block = p.block_mask.block_size ? t * kQueryTile / p.block_mask.block_size : 0;
      if (!meetings[block].visible) continue;
      at.bits = meetings[block].bits;
      detail::meet_keys(at, ws.tiles[t], ws);
    }
  });

  for (int t = 0; t < tiles; ++t) {
    at.queries = tile_range(t);
    detail::finish_tile(at, s, ws.tiles[t]);
  }
}

}  // namespace flashattn
