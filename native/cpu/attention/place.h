// Where a tile of scores lies among queries and keys.
#pragma once
#include "attention/block_mask.h"

namespace flashattn {

/** Where a score tile lies. Positions are local to the sequence. */
struct Place {
  const AttentionParams& p;
  int b, h;
  int diagonal;
  Band band;
  Range queries, keys;
  BlockBits bits;  // of the partial block that the tile lies in

  Place(const AttentionParams& params, const Sequence& s, int batch, int head)
      : p(params),
        b(batch),
        h(head),
        diagonal(diagonal_of(params, s)),
        band(Band::of(params, diagonal)),
        queries{},
        keys{},
        bits{} {}

  Cover cover() const {
    const Cover of_band = band.cover(queries, keys);
    return of_band == Cover::Full && bits.words ? Cover::Partial : of_band;
  }

  /** The same place without the keys at either end that none of its queries sees. */
  Place narrowed() const {
    Place narrow = *this;
    const Range visible = band.visible_keys(queries, keys.end);
    narrow.keys = {max(keys.begin, visible.begin), visible.end};
    if (!bits.words || narrow.keys.begin >= narrow.keys.end) return narrow;
    const TileBits tile = bits.inspect(queries, narrow.keys);
    narrow.keys = tile.keys;
    if (tile.all_visible) narrow.bits = {};
    return narrow;
  }

  /** Narrowed to whole `unit`s of the keys that were loaded; those of them that nobody sees are hidden like others. */
  Place narrowed_to(int unit) const {
    Place narrow = narrowed();
    if (narrow.key_count() <= 0) return narrow;
    const int begin = (narrow.keys.begin - keys.begin) / unit * unit;
    const int end = round_up(narrow.keys.end - keys.begin, unit);
    const Range units{keys.begin + begin, min(keys.begin + end, keys.end)};
    if (units.begin != narrow.keys.begin || units.end != narrow.keys.end) narrow.bits = bits;
    narrow.keys = units;
    return narrow;
  }

  int query_count() const { return queries.end - queries.begin; }
  int key_count() const { return keys.end - keys.begin; }
  int query_vectors() const { return divide_up(query_count(), kLanes); }
};

namespace detail {

/** Visits whole vectors of queries: f(score vector address, query positions, key position). */
template <class F>
FLASHATTN_INLINE void for_each_vector(const Place& at, float* scores, F f) {
  for (int j = at.keys.begin; j < at.keys.end; ++j) {
    float* row = scores + (j - at.keys.begin) * kQueryTile;
    for (int v = 0; v < at.query_vectors(); ++v) f(row + v * kLanes, iota(at.queries.begin + v * kLanes), j);
  }
}

}  // namespace detail
}  // namespace flashattn
