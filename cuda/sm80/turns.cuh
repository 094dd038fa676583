// The order in which blocks add to d_query_sum where backward is deterministic: per query tile, by rising key tile.
//
// Blocks draw a ticket when they start and take their work by its number, so a block with a smaller ticket is always
// under way or done. Work is numbered with the key tiles of a head in rising order: a block waits for smaller tickets
// only, and the smallest ticket that is not done waits for nobody. Every sum keeps its order and nothing can lock up,
// however few blocks run at once.
//
// Queries are walked from the last to the first (QueryWalk). Then under a causal mask all blocks start at the same
// query tile and follow each other one addition apart, and with a sliding window each starts where it is the first to
// add. From the first query on, a block would have to wait at its first query tile for all blocks before it to get
// there.
//
// The other way to a fixed order, dQ in a kernel of its own with a block for each query tile, computes S and dP again:
// two products more than the five.
#pragma once
#include "../scores.cuh"
#include "../walk.cuh"

namespace flashattn {

/** A query tile's count of key tiles that have added to it, and how many come before ours. */
struct Turn {
  int32_t* count;
  int32_t before;
};

namespace detail {

/** How many of the key tiles [first, end) lie in the blocks of a list. A whole warp, all lanes alike. */
FLASHATTN_DEVICE int count_tiles(const BlockLists& lists, int list, int per_block, Range tiles) {
  const int begin = ptx::load_global(lists.offsets + list), end = ptx::load_global(lists.offsets + list + 1);
  const int lane = ptx::thread() % kWarpSize;
  int count = 0;
  for (int at = begin + lane; at < end; at += kWarpSize) {
    const int first = ptx::load_global(lists.indices + at) * per_block;
    count += max_of(0, min_of(tiles.end, first + per_block) - max_of(tiles.begin, first));
  }
  for (int step = 1; step < kWarpSize; step *= 2) count += ptx::shuffle(count, lane ^ step);
  return count;
}

}  // namespace detail

/** Of the key tile from `first_key` on, which meets the query tile from `first_query` on. A whole warp. */
template <int KeyTile, int QueryTile>
FLASHATTN_DEVICE Turn turn_of(const Head& head, int first_query, int first_key) {
  const AttentionParams& p = head.p;
  const int64_t row = head.b * p.heads + head.h;
  int32_t* count = p.turns + 1 + row * divide_up(p.query_length, QueryTile) + first_query / QueryTile;
  // The band hides no key tile between the first one that a query tile meets and another that it meets.
  const Range before{max_of(0, first_query + head.band.low) / KeyTile, first_key / KeyTile};
  const BlockMaskParams& mask = p.block_mask;
  if (!mask.block_size) return {count, before.end - before.begin};
  const int list = detail::grid_of(mask, head.b, head.h) * mask.query_blocks + first_query / mask.block_size;
  const int per_block = mask.block_size / KeyTile;
  return {count, detail::count_tiles(mask.full, list, per_block, before) +
                     detail::count_tiles(mask.partial, list, per_block, before)};
}

}  // namespace flashattn
