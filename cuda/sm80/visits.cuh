// The query tiles that a block of backward visits: those that may see its tile of keys, of all query heads of a group.
//
// One thread walks for the block, a visit ahead of what the copies need, and shows in shared memory what all need to
// know of a visit. The walk is the same for all of them, and what it takes, the band, block lists and a place in them,
// would stand in registers of every thread that accumulators need. Nor does the one that walks keep it: the visit
// before says where to go on.
#pragma once
#include "../scores.cuh"
#include "../walk.cuh"

namespace flashattn {

/** A query tile of a query head. */
struct Visit {
  int h, taken;  // query tiles of this head so far
  int begin;     // first query of the tile; negative: the walk is over
  int block;     // see TileStep
};

/** Where a visit's first query and its gradient lie in global memory. */
struct VisitSources {
  uint8_t *query, *d_out;  // [rows, head_dim], [rows, value_dim]
};

/** In shared memory: [4] visits, in turn: the one under way, the one being copied, the one that the walk is at. */
struct ShownVisits {
  uint32_t base;  // [4] pairs of Visit and VisitSources

  static constexpr size_t kPairBytes = sizeof(Visit) + sizeof(VisitSources), kBytes = 4 * kPairBytes;

  FLASHATTN_DEVICE Visit at(int number) const { return ptx::load_shared<Visit>(place(number)); }
  FLASHATTN_DEVICE VisitSources sources(int number) const {
    return ptx::load_shared<VisitSources>(sources_place(number));
  }

  FLASHATTN_DEVICE uint32_t place(int number) const { return base + static_cast<uint32_t>(number & 3) * kPairBytes; }
  FLASHATTN_DEVICE uint32_t sources_place(int number) const { return place(number) + sizeof(Visit); }
};

/** The walk of a block that owns the keys from `first_key` on. */
template <class Tiles>
struct VisitWalk {
  using Element = typename Tiles::Element;

  const AttentionParams& p;
  int b, kv_head, first_key;
  uint32_t sequence_place;  // of a Sequence in shared memory
  ShownVisits shown;

  FLASHATTN_DEVICE Visit first() const { return after({kv_head * group(), 0, 0, 0}); }

  /** The next one, over all query heads of the group. */
  FLASHATTN_DEVICE Visit after(Visit visit) const {
    const Head head(p, b, visit.h, sequence());
    const Range keys = head.keys_at(first_key, Tiles::kKeyTile);
    for (;;) {
      QueryWalk<Tiles::kQueryTile> walk(p, head.band, b, visit.h, keys, head.sequence.query_length, visit.taken);
      const TileStep step = walk.take();
      visit.taken = walk.taken();
      visit.begin = step.begin;
      visit.block = step.block;
      if (visit.begin >= 0 || (visit.h + 1) % group() == 0) return visit;
      visit = {visit.h + 1, 0, 0, 0};
    }
  }

  /** One thread: what all need to know of visit `number`, from the next barrier on. */
  FLASHATTN_DEVICE void show(int number, const Visit& visit) const {
    ptx::store_shared(shown.place(number), visit);
    if (visit.begin < 0) return;
    const int64_t first = sequence().query_begin + visit.begin;
    const Rows query = Rows::of<Element>(p.query, b, first, visit.h, p.head_dim);
    const Rows d_out = Rows::of<Element>(p.d_out, b, first, visit.h, p.value_dim);
    ptx::store_shared(shown.sources_place(number), VisitSources{query.data, d_out.data});
  }

 private:
  FLASHATTN_DEVICE Sequence sequence() const { return ptx::load_shared<Sequence>(sequence_place); }
  /** Query heads that share a key/value head. */
  FLASHATTN_DEVICE int group() const { return p.heads / p.kv_heads; }
};

}  // namespace flashattn
