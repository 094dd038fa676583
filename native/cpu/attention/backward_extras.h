// Gradients of what is shared between rows or heads: the dense bias, the relative-position table and the sinks.
#pragma once
#include "attention/backward.h"

namespace flashattn {

namespace detail {

/** Positions [0, count) of a tensor dim that a bias dim of `size` (1: broadcast) covers from tile `tile` on. */
inline Range covered(int size, int count, int tile, int tile_size) {
  return size == 1 ? Range{0, count} : Range{tile * tile_size, min((tile + 1) * tile_size, count)};
}

/** sums += tile, where the tile has queries and keys. */
inline void add_tile(const Place& at, float* sums, const float* tile /* both [key][query] */) {
  const int whole = at.query_count() / kLanes * kLanes;
  for (int row = 0; row < at.key_count() * kQueryTile; row += kQueryTile) {
    for (int v = 0; v < whole; v += kLanes) store(sums + row + v, load(sums + row + v) + load(tile + row + v));
    for (int i = whole; i < at.query_count(); ++i) sums[row + i] += tile[row + i];
  }
}

// What a broadcast dim leaves inside the tile, after being summed tile over tile, ends up at its first position.

inline void sum_queries(float* sums /* [key][query] */) {
  for (int row = 0; row < kKeyTile * kQueryTile; row += kQueryTile)
    for (int i = 1; i < kQueryTile; ++i) sums[row] += sums[row + i];
}

inline void sum_keys(float* sums /* [key][query] */) {
  for (int row = kQueryTile; row < kKeyTile * kQueryTile; row += kQueryTile)
    for (int v = 0; v < kQueryTile; v += kLanes) store(sums + v, load(sums + v) + load(sums + row + v));
}

}  // namespace detail

inline int bias_items(const AttentionParams& p) {
  if (!p.d_bias) return 0;
  return p.bias_batch * p.bias_heads * divide_up(p.bias_query, kQueryTile) * divide_up(p.bias_key, kKeyTile);
}

/**
 * d_bias = dS summed over every (batch, head, query, key) that the bias was broadcast to. An item is a tile of the
 * bias itself and visits all that shares it, recomputing S and dP: two more products than writing dS from
 * backward_item, but no atomics, no N^2 partial sums, and the same bits each time.
 */
FLASHATTN_CALLED void backward_bias_item(const AttentionParams& p, int item, BackwardWorkspace& ws) {
  const int key_tiles = divide_up(p.bias_key, kKeyTile), query_tiles = divide_up(p.bias_query, kQueryTile);
  const int key_tile = item % key_tiles, query_tile = item / key_tiles % query_tiles;
  const int bias_head = item / key_tiles / query_tiles % p.bias_heads;
  const int bias_batch = item / key_tiles / query_tiles / p.bias_heads;
  const int met = backward_key_tile(p.block_mask.block_size);
  const Range batches = detail::covered(p.bias_batch, p.batch, bias_batch, 1);
  const Range heads = detail::covered(p.bias_heads, p.heads, bias_head, 1);

  float *sums = ws.d_key, *total = ws.d_key_total;  // [key][query], free here
  fill(sums, 0.0f, kKeyTile * kQueryTile);
  fill(total, 0.0f, kKeyTile * kQueryTile);
  ws.block = {};
  for (int b = batches.begin; b < batches.end; ++b) {
    const Sequence s = p.sequence(b);
    const Range queries = detail::covered(p.bias_query, s.query_length, query_tile, kQueryTile);
    const Range keys = detail::covered(p.bias_key, s.key_length, key_tile, kKeyTile);
    for (int h = heads.begin; h < heads.end; ++h) {
      Place at(p, s, b, h);
      for (int j = keys.begin; j < keys.end; j += met) {
        at.keys = {j, min(j + met, keys.end)};
        detail::load_keys(at, s, ws);
        for_query_tiles(p, b, h, j, queries, [&](Range tile, const BlockBits& bits, Range) {
          at.queries = tile;
          at.bits = bits;
          if (at.cover() == Cover::Empty) return;
          detail::load_queries(at, s, ws);
          ws.ahead = {};
          detail::score_gradients(at, at.keys.begin, 1, ws);
          if (ws.block.was_full()) carry(total, sums, kKeyTile * kQueryTile);
          detail::add_tile(at, sums + (p.bias_key == 1 ? 0 : j - keys.begin) * kQueryTile, ws.d_score);
        });
      }
    }
  }

  for (int at = 0; at < kKeyTile * kQueryTile; at += kLanes) store(sums + at, load(sums + at) + load(total + at));
  if (p.bias_query == 1) detail::sum_queries(sums);
  if (p.bias_key == 1) detail::sum_keys(sums);
  float* d_bias = p.d_bias + (bias_batch * size_t(p.bias_heads) + bias_head) * p.bias_query * p.bias_key;
  const int rows = min(kQueryTile, p.bias_query - query_tile * kQueryTile);
  const int columns = min(kKeyTile, p.bias_key - key_tile * kKeyTile);
  for (int row = 0; row < rows; ++row) {
    float* to = d_bias + (query_tile * kQueryTile + row) * size_t(p.bias_key) + key_tile * kKeyTile;
    for (int column = 0; column < columns; ++column) to[column] = sums[column * kQueryTile + row];
  }
}

inline int relative_items(const AttentionParams& p) { return p.d_relative ? p.heads : 0; }

/** d_relative[bucket, h] = the partial tables of every split and batch; an item is one head. */
FLASHATTN_CALLED void backward_relative_item(const AttentionParams& p, int h) {
  void* const memory = p.d_relative_partial;
  const double* partial = static_cast<const double*>(memory);  // [relative_slices, heads, bucket_count]
  for (int bucket = 0; bucket < p.relative.bucket_count; ++bucket) {
    double sum = 0;
    for (int part = 0; part < p.key_splits * p.batch; ++part)
      sum += partial[(part * size_t(p.heads) + h) * p.relative.bucket_count + bucket];
    p.d_relative[bucket * p.heads + h] = static_cast<float>(sum);
  }
}

inline int sink_items(const AttentionParams& p) { return p.d_sink ? p.heads : 0; }

/** d_sink[h] = -sum over rows of e^(sink - lse) * delta: the sink's value is zero, so its dP is too. */
FLASHATTN_CALLED void backward_sink_item(const AttentionParams& p, int h) {
  double sum = 0;
  for (int b = 0; b < p.batch; ++b) {
    const Sequence s = p.sequence(b);
    const size_t first = p.lse_row(b, h, s.query_begin);
    for (int i = 0; i < s.query_length; ++i) {
      if (p.lse[first + i] == -kInfinity) continue;
      const RowTerms terms(p, first + i);
      sum -= double(natural_exp(splat((p.sink[h] - *terms.reference) - *terms.log_sum))[0]) * *terms.delta;
    }
  }
  p.d_sink[h] = static_cast<float>(sum);
}

}  // namespace flashattn
