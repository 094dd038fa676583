// Which key tiles a query tile meets, and which query tiles a key tile meets: by the band, and by the lists of a block
// mask, its full blocks first. A tile lies within one row and one column of blocks, so its size divides theirs.
#pragma once
#include "band.cuh"

namespace flashattn {

/** One step of a walk. */
struct TileStep {
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
  FLASHATTN_DEVICE TileStep at(int index, const BlockMaskParams& m, const BlockLists& full, const BlockLists& partial,
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
struct BlockCover {
  bool visible;
  const uint32_t* bits;
};

FLASHATTN_DEVICE BlockCover block_cover_of(const BlockMaskParams& m, int b, int h, int query, int key) {
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

enum class Along { Keys, Queries };

/**
 * Along::Keys: the tiles with a key that some query of a range may see, from the first on. Along::Queries: the tiles with a
 * query that may see some key of a range, the last one first (see turns.cuh).
 */
template <Along kAlong, int Size>
class TileWalk {
 public:
  /** `length`: of the sequence, along the walk. `taken`: steps that another walk over the same tiles has taken. */
  FLASHATTN_DEVICE TileWalk(const AttentionParams& p, const Band& band, int b, int h, Range across, int length,
                            int taken = 0)
      : mask_(p.block_mask),
        within_(kAlong == Along::Keys ? band.visible_keys(across, length) : band.seeing_queries(across, length)),
        list_(list_of(mask_, b, h, across.begin, within_)),
        taken_(taken) {}

  FLASHATTN_DEVICE TileStep take() {
    while (taken_ < list_.count) {
      const int index = kAlong == Along::Keys ? taken_ : list_.count - 1 - taken_;
      ++taken_;
      const TileStep step =
          list_.at(index, mask_, full(mask_), partial(mask_), kAlong == Along::Keys ? nullptr : mask_.partial_blocks);
      if (step.begin < within_.end && step.begin + Size > within_.begin) return step;
    }
    return {-1, -1};
  }

  /** Where another walk over the same tiles goes on. */
  FLASHATTN_DEVICE int taken() const { return taken_; }

 private:
  using List = detail::TileList<Size>;

  FLASHATTN_DEVICE static const BlockLists& full(const BlockMaskParams& m) {
    return kAlong == Along::Keys ? m.full : m.full_queries;
  }
  FLASHATTN_DEVICE static const BlockLists& partial(const BlockMaskParams& m) {
    return kAlong == Along::Keys ? m.partial : m.partial_queries;
  }
  FLASHATTN_DEVICE static List list_of(const BlockMaskParams& m, int b, int h, int across, Range within) {
    if (!m.block_size) return List::of_range(within);
    const int lists = kAlong == Along::Keys ? m.query_blocks : m.key_blocks;
    return List::of_lists(full(m), partial(m), detail::grid_of(m, b, h) * lists + across / m.block_size, m.block_size);
  }

  const BlockMaskParams& mask_;
  Range within_;
  List list_;
  int taken_;
};

template <int Size>
using KeyWalk = TileWalk<Along::Keys, Size>;
template <int Size>
using QueryWalk = TileWalk<Along::Queries, Size>;

}  // namespace flashattn
