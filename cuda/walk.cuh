// Which key tiles a query tile meets, and which query tiles a key tile meets: by the band, and by the lists of a block
// mask, its full blocks first. A tile lies within one row and one column of blocks, so its size divides theirs.
#pragma once
#include "band.cuh"

namespace flashattn {

/** One step of a walk. */
struct Met {
  int begin;  // first position of the tile; negative: the walk is over
  int block;  // which block of the mask's bits it lies in, if a partial one; negative: none
};

/** [block_size, block_size / 32] of a partial block, or null. */
FLASHATTN_DEVICE const uint32_t* bits_of(const BlockMaskParams& m, int block) {
  return block < 0 ? nullptr : m.bits + static_cast<int64_t>(block) * m.block_size * (m.block_size / 32);
}

namespace detail {

FLASHATTN_DEVICE int grid_of(const BlockMaskParams& m, int b, int h) {
  return (m.batch == 1 ? 0 : b) * m.heads + (m.heads == 1 ? 0 : h);
}

/** Tiles of `Size` along the blocks of two lists, or along a range where there is no block mask. */
template <int Size>
struct TileList {
  int full_begin, full_count, partial_begin;  // of lists
  int first;                                  // of a range
  int count;                                  // tiles in all

  FLASHATTN_DEVICE static TileList of_range(Range range) {
    const int first = range.begin / Size * Size;
    return {0, 0, 0, first, range.end > first ? divide_up(range.end - first, Size) : 0};
  }

  FLASHATTN_DEVICE static TileList of_lists(const BlockLists& full, const BlockLists& partial, int list,
                                            int block_size) {
    const int full_begin = ptx::load_global(full.offsets + list);
    const int partial_begin = ptx::load_global(partial.offsets + list);
    const int full_count = ptx::load_global(full.offsets + list + 1) - full_begin;
    const int partial_count = ptx::load_global(partial.offsets + list + 1) - partial_begin;
    return {full_begin, full_count, partial_begin, 0, (full_count + partial_count) * (block_size / Size)};
  }

  /** `blocks`: see BlockMaskParams::partial_blocks; null: an entry is its block. */
  FLASHATTN_DEVICE Met at(int index, const BlockMaskParams& m, const BlockLists& full, const BlockLists& partial,
                          const int32_t* blocks) const {
    if (!m.block_size) return {first + index * Size, -1};
    const int position = index * Size, within = position & (m.block_size - 1);
    const int entry = position >> (m.block_size == 64 ? 6 : 7);
    if (entry < full_count) return {ptx::load_global(full.indices + full_begin + entry) * m.block_size + within, -1};
    const int number = partial_begin + entry - full_count;
    return {ptx::load_global(partial.indices + number) * m.block_size + within,
            blocks ? ptx::load_global(blocks + number) : number};
  }
};

}  // namespace detail

/** How a query block meets a key block: whether at all, and by which bits (null: all of it). */
struct Meeting {
  bool visible;
  const uint32_t* bits;
};

FLASHATTN_DEVICE Meeting meeting_of(const BlockMaskParams& m, int b, int h, int query, int key) {
  if (!m.block_size) return {true, nullptr};
  const int list = detail::grid_of(m, b, h) * m.query_blocks + query / m.block_size, key_block = key / m.block_size;
  const auto find = [&](const BlockLists& lists) {
    const int end = ptx::load_global(lists.offsets + list + 1);
    for (int at = ptx::load_global(lists.offsets + list); at < end; ++at)
      if (ptx::load_global(lists.indices + at) == key_block) return at;
    return -1;
  };
  if (find(m.full) >= 0) return {true, nullptr};
  const int block = find(m.partial);
  return {block >= 0, bits_of(m, block)};
}

/** The key tiles that some query of a tile may see. */
template <int KeyTile>
class KeyWalk {
 public:
  FLASHATTN_DEVICE KeyWalk(const AttentionParams& p, const Band& band, int b, int h, Range queries, int key_length)
      : mask_(p.block_mask),
        visible_(band.visible_keys(queries, key_length)),
        list_(mask_.block_size ? detail::TileList<KeyTile>::of_lists(mask_.full, mask_.partial,
                                                                     detail::grid_of(mask_, b, h) * mask_.query_blocks +
                                                                         queries.begin / mask_.block_size,
                                                                     mask_.block_size)
                               : detail::TileList<KeyTile>::of_range(visible_)),
        next_(0) {}

  FLASHATTN_DEVICE Met take() {
    while (next_ < list_.count) {
      const Met met = list_.at(next_++, mask_, mask_.full, mask_.partial, nullptr);
      if (met.begin < visible_.end && met.begin + KeyTile > visible_.begin) return met;
    }
    return {-1, -1};
  }

 private:
  const BlockMaskParams& mask_;
  Range visible_;
  detail::TileList<KeyTile> list_;
  int next_;
};

/** The query tiles with a query that may see some key of a tile, the last one first. */
template <int QueryTile>
class QueryWalk {
 public:
  FLASHATTN_DEVICE QueryWalk(const AttentionParams& p, const Band& band, int b, int h, Range keys, int query_length,
                             int taken = 0)
      : mask_(p.block_mask),
        seeing_(band.seeing_queries(keys, query_length)),
        list_(mask_.block_size ? detail::TileList<QueryTile>::of_lists(
                                     mask_.full_queries, mask_.partial_queries,
                                     detail::grid_of(mask_, b, h) * mask_.key_blocks + keys.begin / mask_.block_size,
                                     mask_.block_size)
                               : detail::TileList<QueryTile>::of_range(seeing_)),
        taken_(taken) {}

  FLASHATTN_DEVICE Met take() {
    while (taken_ < list_.count) {
      const Met met =
          list_.at(list_.count - ++taken_, mask_, mask_.full_queries, mask_.partial_queries, mask_.partial_blocks);
      if (met.begin < seeing_.end && met.begin + QueryTile > seeing_.begin) return met;
    }
    return {-1, -1};
  }

  /** Where another walk over the same tiles goes on. */
  FLASHATTN_DEVICE int taken() const { return taken_; }

 private:
  const BlockMaskParams& mask_;
  Range seeing_;
  detail::TileList<QueryTile> list_;
  int taken_;
};

}  // namespace flashattn
