// How attention is cut into items: enough to keep every thread busy, few enough to reuse each tile of keys.
#pragma once
#include "attention/backward.h"
#include "attention/decode.h"

namespace flashattn {

// Where bits must not depend on how many threads there are.
inline constexpr int kAssumedThreads = 8;

inline AttentionPartition partition(const AttentionShape& p, int threads) {
  const int query_tiles = divide_up(p.query_length, kQueryTile);
  const int64_t tiles = static_cast<int64_t>(p.batch) * p.heads * query_tiles;
  const int64_t share = tiles / (4 * threads);
  const int wanted = share < 1 ? 1 : share < kMaxTilesPerItem ? static_cast<int>(share) : kMaxTilesPerItem;

  // Backward: an item is a key/value head, or a part of its keys where there are few heads.
  const int key_tile = backward_key_tile(p.block_size);
  const int heads = max(1, p.batch * p.kv_heads);
  const int sharing = 2 * (p.deterministic ? kAssumedThreads : threads);
  const int splits = heads >= sharing ? 1 : min(divide_up(sharing, heads), divide_up(p.key_length, key_tile));

  AttentionPartition result{};
  result.query_tile = kQueryTile;
  result.key_tile = kKeyTile;
  // Under a block mask an item is whole rows of its blocks.
  result.tiles_per_item = p.block_size && wanted < kMaxTilesPerItem ? p.block_size / kQueryTile : wanted;
  result.items = static_cast<int64_t>(p.batch) * p.heads * divide_up(query_tiles, result.tiles_per_item);
  result.key_splits = max(1, splits);
  result.relative_slices = result.key_splits * p.batch;
  const DecodeColumns columns(p.heads / p.kv_heads, p.query_length, p.heads_differ);
  result.decode_states =
      p.lse_rows * decode_floats(columns, p.query_length, p.key_length, p.value_dim, p.block_size != 0);
  if (p.paged) {
    const int group = decode_group(p.heads / p.kv_heads, p.query_length, p.heads_differ),
              splits = decode_splits(p.key_length);
    const DecodeColumns own(group, p.query_length, p.heads_differ);
    const int parts = divide_up(p.heads / p.kv_heads, group);
    result.tiles_per_item = parts > 1 ? 1 : decode_heads(p, own, threads);
    const int kv_heads = parts > 1 ? 1 : decode_heads(own, p.kv_heads, result.tiles_per_item);
    const int64_t items = int64_t{p.batch} * parts * divide_up(p.kv_heads, kv_heads);
    // Few items are cut along the keys; many merge the splits of their keys themselves, without a way through memory.
    const bool cut = splits > 1 && items < 8 * threads;
    result.decode_states = cut ? p.lse_rows * splits * decode_state(p.value_dim) : 0;
    result.items = cut ? items * splits : items;
  } else if (result.decode_states) {
    result.tiles_per_item = decode_heads(p, columns, threads);
    result.items = decode_items(p, columns, result.tiles_per_item);
  }
  result.row_terms = kRowTerms * p.lse_rows;
  result.d_query_sum = static_cast<int64_t>(result.key_splits) *
                       d_query_planes(p.key_length, key_tile, result.key_splits) * p.lse_rows *
                       round_up(p.head_dim, kLanes);
  result.d_relative_partial = int64_t{2} * result.relative_slices * p.heads * p.bucket_count;
  return result;
}

}  // namespace flashattn
