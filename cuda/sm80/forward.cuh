// FlashAttention forward: Dao, "FlashAttention-2" (2023), algorithm 1.
//
// A block owns one tile of queries of one head and walks the key tiles that it may see. Keys and values are copied to
// shared memory ahead of their use, in turn: K0 V0 K1 V1 ..., each into the next of kSlots slots. A warp owns whole query
// rows: softmax needs no exchange between warps, and probabilities go from accumulators to the next product in registers.
//
// A hidden pair has probability 0, but 0 * NaN is NaN: rows that turn out NaN where something was hidden are computed
// again, pair by pair (repair_forward.cuh).
#pragma once
#include "../carry.cuh"
#include "../launch_error.h"
#include "../softmax.cuh"
#include "../walk.cuh"
#include "choose.h"
#include "repair_forward.cuh"

namespace flashattn {

template <class Element, int HeadDim, Variant Kind>
class ForwardBlock {
 public:
  using Tiles = ForwardTiles<Element, HeadDim, Kind>;
  using QueryTile = typename Tiles::QueryTile;
  using KeyTile = typename Tiles::KeyTile;
  static constexpr bool kExtras = Kind == Variant::Extras;
  static constexpr int kRowTiles = Tiles::kRowTiles, kAhead = Tiles::kSlots / 2;
  /**
   * Scores that are not cleared before their tile is known to be visible seem to live on from the tile before, and are
   * moved or spilled for it; those that are cost their clearing. On an H200 (bfloat16, TFLOP/s, before / when known): head
   * dim 64 279 / 288, 128 326 / 311, 256 283 / 279. At 96 only the second way spills nothing on any architecture.
   */
  static constexpr bool kClearsAhead = HeadDim > 96;

  FLASHATTN_DEVICE ForwardBlock(const AttentionParams& p, int first_query, int h, int b)
      : p_(p),
        head_(p, b, h),
        lane_(ptx::thread()),
        first_query_(first_query),
        warp_row_(ptx::thread() / kWarpSize * Tiles::kShape.warp_rows),
        keys_(Rows::of<Element>(p.key, b, head_.sequence.key_begin, head_.kv_head(), p.head_dim)),
        values_(Rows::of<Element>(p.value, b, head_.sequence.key_begin, head_.kv_head(), p.value_dim)),
        queries_{ptx::shared_base()} {}

  FLASHATTN_DEVICE void run() {
    if (first_query_ >= head_.sequence.query_length) return;
    walk_keys();
    store();
    if (ptx::ballot(hid_ && has_nan()))
      repair_forward<Element, kExtras>(p_, head_.b, head_.h, first_query_ + warp_row_, Tiles::kShape.warp_rows);
  }

 private:
  FLASHATTN_DEVICE KeyTile slot(int number) const {
    return {queries_.base + static_cast<uint32_t>(QueryTile::kBytes + number * KeyTile::kBytes)};
  }

  /** One group of copies, also where there is nothing left to copy: waiting counts groups. */
  FLASHATTN_DEVICE void load(const Rows& from, int slot_number, TileStep step) {
    // The thread's place is made anew for each tile: kept, it would take registers that accumulators need.
    if (step.begin >= 0)
      load_rows<Tiles::kThreads>(slot(slot_number), from, step.begin, head_.sequence.key_length,
                                 ptx::opaque(ptx::thread()));
    ptx::cp_async_commit();
  }
  FLASHATTN_DEVICE void load_keys(int slot_number, TileStep step) { load(keys_, slot_number, step); }
  FLASHATTN_DEVICE void load_values(int slot_number, TileStep step) { load(values_, slot_number, step); }

  FLASHATTN_DEVICE void wait_for_oldest() const {
    ptx::cp_async_wait<Tiles::kSlots - 2>();
    ptx::sync_threads();
  }

  FLASHATTN_DEVICE void walk_keys() {
    out_.clear();
    const Range queries = head_.queries_at(first_query_, Tiles::kQueryTile);
    KeyWalk<Tiles::kKeyTile> walk(p_, head_.band, head_.b, head_.h, queries, head_.sequence.key_length);
    TileStep step[kAhead + 1];
    const Rows rows = Rows::of<Element>(p_.query, head_.b, head_.sequence.query_begin, head_.h, p_.head_dim);
    load_rows<Tiles::kThreads>(queries_, rows, first_query_, head_.sequence.query_length, ptx::thread());
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      step[i] = walk.take();
      load_keys(2 * i, step[i]);
      if (i + 1 < kAhead) load_values(2 * i + 1, step[i]);
    }
    int tiles = 0;  // whose values are summed up in registers
    for (int turn = 0; step[0].begin >= 0; turn = turn + 1 == kAhead ? 0 : turn + 1) {
      wait_for_oldest();  // the keys have landed, and nobody reads the slot that the next values go to
      load_values(2 * (turn == 0 ? kAhead - 1 : turn - 1) + 1, step[kAhead - 1]);
      Scores<kRowTiles, Tiles::kKeyTile / 8> scores;
      if constexpr (kClearsAhead) scores.clear();
      const Range keys = head_.keys_at(step[0].begin, Tiles::kKeyTile);
      const Cover cover = cover_of(step[0], keys);
      if (cover != Cover::Empty) score(slot(2 * turn), step[0], cover, scores);

      wait_for_oldest();  // the values have landed, and nobody reads the keys' slot
      step[kAhead] = walk.take();
      load_keys(2 * turn, step[kAhead]);
      if (cover != Cover::Empty) add_values(slot(2 * turn + 1), step[0].begin, scores);
      if constexpr (kCarries<Element>)
        if (++tiles == kCarryRows / Tiles::kKeyTile) {
          for_carried([&](const CarryRow& to, int column, float& sum, float factor) {
            to.carry(column, sum, factor, !carried_);
          });
          state_.start_carry();
          carried_ = true;
          tiles = 0;
        }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) step[i] = step[i + 1];
    }
    ptx::cp_async_wait<0>();
    ptx::sync_threads();
    if constexpr (kCarries<Element>)
      if (carried_)
        for_carried(
            [](const CarryRow& from, int column, float& sum, float factor) { from.bring_back(column, sum, factor); });
  }

  /** f(row of out, column, sum, factor of what was carried) for all sums of this lane. */
  template <class F>
  FLASHATTN_DEVICE void for_carried(F f) {
    const Rows out = Rows::of<Element>(p_.out, head_.b, head_.sequence.query_begin, head_.h, p_.value_dim);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
        const int row = first_query_ + warp_row_ + m * 16 + lower * 8 + lane_.group;
        const CarryRow to(out, row, head_.sequence.query_length, lane_.quad * 2);
#pragma unroll
        for (int d = 0; d < HeadDim / 8; ++d)
#pragma unroll
          for (int right = 0; right < 2; ++right)
            f(to, d * 8 + right, out_.s[m][d][lower * 2 + right], state_.carried[m][lower]);
        ptx::sync_warp();  // one row after the other: all at once would not fit in registers
      }
  }

  /** How this warp's queries meet a key tile. */
  FLASHATTN_DEVICE Cover cover_of(TileStep step, Range keys) const {
    const int first = first_query_ + warp_row_;
    const Cover cover = head_.band.cover({first, first + Tiles::kShape.warp_rows}, keys);
    const bool whole = step.block < 0 && step.begin + Tiles::kKeyTile <= head_.sequence.key_length;
    return cover == Cover::Full && !whole ? Cover::Partial : cover;
  }

  /**
   * Where this thread is, made anew for each product where two row tiles of sums take most of the registers: kept,
   * addresses would be spilled.
   */
  FLASHATTN_DEVICE Lane lane_again() const {
    return kRowTiles == 2 && !kExtras ? Lane(ptx::opaque(ptx::thread())) : lane_;
  }

  FLASHATTN_DEVICE Positions<RowsAre::Queries> positions(int first_key) const {
    return {first_query_ + warp_row_, first_key, lane_};
  }

  template <class ScoreTile>
  FLASHATTN_DEVICE void score(KeyTile tile, TileStep step, Cover cover, ScoreTile& scores) {
    if constexpr (!kClearsAhead) scores.clear();
    const RowsAsA<QueryTile> query(queries_, warp_row_, lane_);
    const RowsAsB<KeyTile> key(tile, 0, lane_again());
#pragma unroll(unrolled <Element>(HeadDim / 16))
    for (int d = 0; d < HeadDim; d += 16) {
      FragmentA<Element> a[kRowTiles];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) a[m] = query.load(m * 16, d);
#pragma unroll
      for (int n = 0; n < Tiles::kKeyTile / 16; ++n) {
        const FragmentB<Element> b = key.load(n * 16, d);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) multiply(scores.s[m][2 * n], scores.s[m][2 * n + 1], a[m], b);
      }
    }
    if constexpr (kExtras) {
      finish_scores(head_, positions(step.begin), scores);
      hid_ = hid_ || scores_hide(p_);
    }
    if (cover == Cover::Partial) {
      hide_scores(head_, bits_of(p_.block_mask, step.block), positions(step.begin), scores);
      hid_ = true;
    }
  }

  FLASHATTN_DEVICE SoftmaxUnit unit() const { return {kExtras ? 1.0f : p_.scale, forward_exponent<Element>(p_)}; }

  template <class ScoreTile>
  FLASHATTN_DEVICE void add_values(KeyTile tile, int first_key, ScoreTile& scores) {
    state_.advance(scores, unit(), out_);
    if constexpr (kExtras)
      if (p_.dropout.threshold) drop_out(head_, positions(first_key), scores);
    const ColumnsAsB<KeyTile> value(tile, 0, lane_again());
#pragma unroll
    for (int k = 0; k < Tiles::kKeyTile / 16; ++k) {
      FragmentA<Element> a[kRowTiles];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) a[m] = fragment_of<Element>(scores.s[m][2 * k], scores.s[m][2 * k + 1]);
#pragma unroll
      for (int d = 0; d < HeadDim / 16; ++d) {
        const FragmentB<Element> b = value.load(k * 16, d * 16);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) multiply(out_.s[m][2 * d], out_.s[m][2 * d + 1], a[m], b);
      }
    }
  }

  FLASHATTN_DEVICE bool has_nan() const {
    bool found = false;
#pragma unroll
    for (const auto& row : out_.s)
#pragma unroll
      for (const auto& quad : row)
#pragma unroll
        for (const float x : quad) found = found || x != x;
    return found;
  }

  /** Through the warp's own rows of the query tile, so that whole rows are written. */
  FLASHATTN_DEVICE void store() {
    const float sink = p_.sink ? ptx::load_global(p_.sink + head_.h) : -kInfinity;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
        const auto row = state_.finish(m, lower, unit(), sink);
        const int tile_row = warp_row_ + m * 16 + lower * 8 + lane_.group;
        if (lane_.quad == 0 && first_query_ + tile_row < head_.sequence.query_length)
          ptx::store_global(p_.lse + head_.lse_row(first_query_ + tile_row), row.lse);
#pragma unroll
        for (int d = 0; d < HeadDim / 8; ++d)
          store_pair(queries_, tile_row, d * 8 + lane_.quad * 2, out_.s[m][d][lower * 2] * row.factor,
                     out_.s[m][d][lower * 2 + 1] * row.factor);
      }
    ptx::sync_warp();
    const Rows to = Rows::of<Element>(p_.out, head_.b, head_.sequence.query_begin, head_.h, p_.value_dim);
    store_rows<Tiles::kShape.warp_rows>(queries_, to, warp_row_, first_query_, head_.sequence.query_length,
                                        lane_.index);
  }

  const AttentionParams& p_;
  Head head_;
  Lane lane_;
  int first_query_, warp_row_;
  Rows keys_, values_;
  QueryTile queries_;
  SoftmaxState<kRowTiles, kCarries<Element>> state_;
  Scores<kRowTiles, HeadDim / 8> out_;
  bool hid_ = false, carried_ = false;
};

template <class Element, int HeadDim, Variant Kind>
FLASHATTN_KERNEL((ForwardTiles<Element, HeadDim, Kind>::kThreads), ForwardTiles<Element, HeadDim, Kind>::kLeastBlocks)
forward_kernel(const FLASHATTN_CONSTANT AttentionParams p) {
  constexpr int kQueryTile = ForwardTiles<Element, HeadDim, Kind>::kQueryTile;
  const int index = static_cast<int>(ptx::block().x), tiles = divide_up(p.query_length, kQueryTile);
  // Under a causal mask the last queries have the most work: they go first.
  const int tile = tiles - 1 - index % tiles, head = index / tiles;
  ForwardBlock<Element, HeadDim, Kind> block(p, tile * kQueryTile, head % p.heads, head / p.heads);
  block.run();
}

template <class Element, int HeadDim, Variant Kind>
cudaError_t launch_forward_kernel(const AttentionParams& p, cudaStream_t stream) {
  using Tiles = ForwardTiles<Element, HeadDim, Kind>;
  const int64_t blocks = static_cast<int64_t>(divide_up(p.query_length, Tiles::kQueryTile)) * p.heads * p.batch;
  if (blocks == 0) return cudaSuccess;
  return launched("forward",
                  ptx::launch(forward_kernel<Element, HeadDim, Kind>, "forward", dim3(static_cast<unsigned>(blocks)),
                              Tiles::kThreads, Tiles::kSharedBytes, stream, p));
}

template <class Element, int HeadDim>
cudaError_t launch_forward_bucket(const AttentionParams& p, const DeviceLimits& limits, cudaStream_t stream) {
  const Variant variant = forward_variant(shape_of(p), limits);
  if constexpr (sizeof(typename Element::Storage) == 2)
    if (variant == Variant::Large) return launch_forward_kernel<Element, HeadDim, Variant::Large>(p, stream);
  if (variant == Variant::Extras) return launch_forward_kernel<Element, HeadDim, Variant::Extras>(p, stream);
  return launch_forward_kernel<Element, HeadDim, Variant::Small>(p, stream);
}

}  // namespace flashattn
