// Walking a block mask: which key tiles a query block meets, and which query blocks a key tile meets.
// Without a block mask everything is one range, so that the kernels know no difference.
#pragma once
#include "attention/band.h"
#include "attention/tile.h"

namespace flashattn {

/** What a tile of a partial block really holds. */
struct TileBits {
  Range keys;        // from the first to the last key that any query of the tile sees
  bool all_visible;  // every query of the tile sees every one of them
};

/** The bits of one partial block; words null: every pair is visible as far as the block mask goes. */
struct BlockBits {
  const uint32_t* words = nullptr;  // [block_size, row_words]
  int query = 0, key = 0;           // where the block begins
  int row_words = 0;

  /** The 32 keys from word `word` on, for kLanes queries from `i` on; queries from `end` on see nothing. */
  UintVec gather(int i, int end, int word) const {
    UintVec rows{};
    for (int lane = 0; lane < min(kLanes, end - i); ++lane) rows[lane] = words[(i - query + lane) * row_words + word];
    return rows;
  }

  TileBits inspect(Range queries, Range keys) const {
    int first = keys.end, last = keys.begin - 1;
    bool all = true;
    for (int j = keys.begin; j < keys.end;) {
      const int word = (j - key) / 32, begin = (j - key) % 32, count = min(32 - begin, keys.end - j);
      const uint32_t wanted = (count == 32 ? ~0u : (1u << count) - 1) << begin;
      uint32_t any = 0, every = ~0u;
      for (int i = queries.begin; i < queries.end; ++i) {
        const uint32_t row = words[(i - query) * row_words + word];
        any |= row;
        every &= row;
      }
      any &= wanted;
      if (any) {
        const int origin = key + word * 32;
        first = min(first, origin + __builtin_ctz(any));
        last = origin + 31 - __builtin_clz(any);
      }
      all = all && any == (every & wanted);
      j += count;
    }
    return {{first, last + 1}, all && first <= last && contiguous(queries.begin, first, last + 1)};
  }

 private:
  /** Whether a query sees all keys of a range. */
  bool contiguous(int i, int begin, int end) const {
    for (int j = begin; j < end; ++j) {
      const uint32_t row = words[(i - query) * row_words + (j - key) / 32];
      if (!(row >> ((j - key) % 32) & 1)) return false;
    }
    return true;
  }
};

namespace detail {

inline BlockBits block_bits(const BlockMaskParams& m, int block, int query_block, int key_block) {
  const int row_words = m.block_size / 32;
  return {m.bits + size_t(block) * m.block_size * row_words, query_block * m.block_size, key_block * m.block_size,
          row_words};
}

inline Range intersect(Range a, Range b) { return {max(a.begin, b.begin), min(a.end, b.end)}; }

inline Range block_range(const BlockMaskParams& m, int block) {
  return {block * m.block_size, (block + 1) * m.block_size};
}

/** Cuts a range into tiles: f(tile, bits). */
template <class F>
inline void for_tiles(Range range, int tile, const BlockBits& bits, F f) {
  for (int at = range.begin; at < range.end; at += tile) f(Range{at, min(at + tile, range.end)}, bits);
}

}  // namespace detail

/** How a query block meets a key block. */
struct Meeting {
  bool visible = false;
  BlockBits bits;
};

namespace detail {

/** Walks along the two lists of a query block, full and partial, in the order of their key blocks. */
class ListCursor {
 public:
  static constexpr int kEnd = 0x7fffffff;

  ListCursor() = default;
  ListCursor(const BlockMaskParams& mask, int list, int query_block)
      : mask_(&mask),
        query_block_(query_block),
        full_(mask.full.offsets[list]),
        full_end_(mask.full.offsets[list + 1]),
        partial_(mask.partial.offsets[list]),
        partial_end_(mask.partial.offsets[list + 1]) {}

  int key_block() const { return min(next_full(), next_partial()); }

  Meeting take(int key_block) {
    if (next_full() == key_block) {
      ++full_;
      return {true, {}};
    }
    if (next_partial() != key_block) return {};
    return {true, block_bits(*mask_, partial_++, query_block_, key_block)};
  }

 private:
  int next_full() const { return full_ < full_end_ ? mask_->full.indices[full_] : kEnd; }
  int next_partial() const { return partial_ < partial_end_ ? mask_->partial.indices[partial_] : kEnd; }

  const BlockMaskParams* mask_ = nullptr;
  int query_block_ = 0, full_ = 0, full_end_ = 0, partial_ = 0, partial_end_ = 0;
};

inline constexpr int kMaxQueryBlocks = kMaxTilesPerItem * kQueryTile / 64;

/** How some query blocks meet one key block. */
struct Meetings {
  Meeting of[kMaxQueryBlocks];

  /** Whether the next key block is met as this one is, by all or none of each query block. */
  bool continue_in(const Meetings& next, int blocks) const {
    for (int i = 0; i < blocks; ++i)
      if (of[i].visible != next.of[i].visible || of[i].bits.words || next.of[i].bits.words) return false;
    return true;
  }
};

/** The lists of some query blocks side by side. */
struct ListCursors {
  ListCursor of[kMaxQueryBlocks];
  int blocks;

  int key_block() const {
    int least = ListCursor::kEnd;
    for (int i = 0; i < blocks; ++i) least = min(least, of[i].key_block());
    return least;
  }
  Meetings take(int key_block) {
    Meetings meetings;
    for (int i = 0; i < blocks; ++i) meetings.of[i] = of[i].take(key_block);
    return meetings;
  }
};

}  // namespace detail

/**
 * f(keys, meetings, next) for every key tile within `visible` that some of the queries may see; meetings[i / block_size] tells
 * how the query block of the i-th query meets it (one meeting for all queries without a block mask). `next`
 * holds the keys that come next, or most of them.
 */
template <class F>
inline void for_key_tiles(const AttentionParams& p, int b, int h, Range queries, Range visible, F f) {
  const BlockMaskParams& m = p.block_mask;
  if (!m.block_size) {
    const Meeting always{true, {}};
    return detail::for_tiles(visible, kKeyTile, {}, [&](Range keys, const BlockBits&) {
      f(keys, &always, Range{keys.end, min(keys.end + kKeyTile, visible.end)});
    });
  }
  const int first = queries.begin / m.block_size;
  detail::ListCursors cursors{{}, divide_up(queries.end, m.block_size) - first};
  for (int i = 0; i < cursors.blocks; ++i)
    cursors.of[i] = detail::ListCursor(m, m.grid(b, h) * m.query_blocks + first + i, first + i);
  for (int key_block = cursors.key_block(); key_block != detail::ListCursor::kEnd; key_block = cursors.key_block()) {
    const detail::Meetings meetings = cursors.take(key_block);
    // Blocks that follow one another and are met alike become one tile, as far as there is room in it.
    int last = key_block;
    while ((last + 2 - key_block) * m.block_size <= kKeyTile && cursors.key_block() == last + 1) {
      detail::ListCursors next = cursors;
      if (!meetings.continue_in(next.take(last + 1), cursors.blocks)) break;
      cursors = next;
      ++last;
    }
    const Range keys{key_block * m.block_size, (last + 1) * m.block_size};
    const int following = cursors.key_block();
    const Range next = following == detail::ListCursor::kEnd
                           ? Range{0, 0}
                           : detail::intersect(detail::block_range(m, following), visible);
    detail::for_tiles(detail::intersect(keys, visible), kKeyTile, {},
                      [&](Range tile, const BlockBits&) { f(tile, meetings.of, next); });
  }
}

/** f(queries, bits, next) for every query tile within `seeing` that may see the keys, all of one key block. */
template <class F>
inline void for_query_tiles(const AttentionParams& p, int b, int h, int first_key, Range seeing, F f) {
  const BlockMaskParams& m = p.block_mask;
  const auto visit = [&](Range range, const BlockBits& bits, Range following) {
    detail::for_tiles(range, kQueryTile, bits, [&](Range tile, const BlockBits& of_tile) {
      const int end = tile.end < range.end ? range.end : following.end;
      const int begin = tile.end < range.end ? tile.end : following.begin;
      f(tile, of_tile, Range{begin, min(begin + kQueryTile, end)});
    });
  };
  if (!m.block_size) return visit(seeing, {}, Range{0, 0});
  const int key_block = first_key / m.block_size, list = m.grid(b, h) * m.key_blocks + key_block;
  const auto queries_of = [&](const BlockLists& lists, int at) {
    if (at >= lists.offsets[list + 1]) return Range{0, 0};
    return detail::intersect(detail::block_range(m, lists.indices[at]), seeing);
  };
  for (int at = m.full_queries.offsets[list]; at < m.full_queries.offsets[list + 1]; ++at)
    visit(queries_of(m.full_queries, at), {}, queries_of(m.full_queries, at + 1));
  for (int at = m.partial_queries.offsets[list]; at < m.partial_queries.offsets[list + 1]; ++at)
    visit(queries_of(m.partial_queries, at),
          detail::block_bits(m, m.partial_blocks[at], m.partial_queries.indices[at], key_block),
          queries_of(m.partial_queries, at + 1));
}

}  // namespace flashattn
