// FlashAttention backward: Dao, "FlashAttention-2" (2023), algorithm 2.
//
// A block owns one tile of keys of one key/value head and walks the query tiles that may see it, of all query heads of
// the group: it alone writes the dK and dV of its keys, which stay in registers until the end. Per query tile:
//   S^T = K Q^T, dP^T = V dO^T, P^T = exp(S^T - lse), dS^T = P^T * (dP^T - delta)
//   dV += P^T dO, dK += dS^T Q, dQ += dS K
// A warp owns whole key rows, or shares them with the warps of its row, each of which then has its part of the dims
// (see BackwardTiles). dQ is the sum over key tiles, so blocks add theirs to d_query_sum in float32, by atomics: in
// whatever order, or in a fixed one (turns.cuh).
//
// Accumulators leave few registers for the rest. What a phase needs to know is therefore asked for when it begins
// (`locate`, `head`, `visits`, places in slots), from shared memory and parameters, rather than kept. One thread walks
// for all (visits.cuh).
//
// P and dS are multiplied by powers of two before they are rounded to float16, and the sums divided by them (range.cuh).
//
// A hidden pair has P = dS = 0, but 0 * NaN is NaN: rows that turn out NaN where something was hidden are computed
// again, pair by pair (repair_backward.cuh).
#pragma once
#include "../carry.cuh"
#include "../launch_error.h"
#include "../range.cuh"
#include "../scores.cuh"
#include "../walk.cuh"
#include "choose.h"
#include "repair_backward.cuh"
#include "row_weights.cuh"
#include "turns.cuh"
#include "visits.cuh"

namespace flashattn {

template <class Element, int HeadDim, Variant Kind>
class BackwardBlock {
 public:
  using Tiles = BackwardTiles<Element, HeadDim, Kind>;
  using KeyTile = typename Tiles::KeyTile;
  using QueryTile = typename Tiles::QueryTile;
  using ScoreTile = typename Tiles::ScoreTile;
  // Two of them, one below the other: what reads both has one place that moves by constants.
  using KeyTiles = Tile<Element, 2 * Tiles::kKeyTile, HeadDim>;              // keys, values
  using QueryTiles = Tile<Element, 2 * Tiles::kQueryTile, HeadDim>;          // queries, d_out
  using ScoreTiles = Tile<Element, 2 * Tiles::kKeyTile, Tiles::kQueryTile>;  // dS, P
  using ChunkScores = Scores<Tiles::kRowTiles, Tiles::kChunk / 8>;           // [warp's keys, queries scored at once]
  static constexpr bool kExtras = Kind == Variant::Extras;
  static constexpr int kRowTiles = Tiles::kRowTiles, kColumnWarps = Tiles::kColumnWarps;

  FLASHATTN_DEVICE explicit BackwardBlock(const AttentionParams& p) : p_(p), lane_(0) {}

  FLASHATTN_DEVICE void run() {
    if (ptx::thread() < kWarpSize) choose_work();
    ptx::sync_threads();
    locate();
    if (first_key_ >= sequence().key_length) return;
    walk_queries();
    const bool nan = ptx::ballot(has_nan());
    locate();
    store();
    ptx::sync_threads();
    if (nan && hides())
      repair_d_keys<Element, kExtras>(p_, b_, kv_head_, first_key_ + warp_row_, Tiles::kWarpRows, warp_column_,
                                      kColumnWarps);
  }

 private:
  // Shared memory -----------------------------------------------------------------------------------------------------

  FLASHATTN_DEVICE static KeyTile keys() { return {ptx::shared_base()}; }
  FLASHATTN_DEVICE static KeyTile values() { return {keys().base + KeyTile::kBytes}; }
  FLASHATTN_DEVICE static QueryTile queries(int slot) {
    return {values().base + static_cast<uint32_t>(KeyTile::kBytes + slot * 2 * QueryTile::kBytes)};
  }
  FLASHATTN_DEVICE static QueryTile d_outs(int slot) { return {queries(slot).base + QueryTile::kBytes}; }
  FLASHATTN_DEVICE static ScoreTile d_scores() { return {queries(Tiles::kSlots).base}; }
  FLASHATTN_DEVICE static ScoreTile probabilities() { return {d_scores().base + ScoreTile::kBytes}; }
  /** [query tile] pairs of lse, in units of log 2, and delta, both as `differentiate` wants them. */
  FLASHATTN_DEVICE static uint32_t row_stats() {
    return d_scores().base + (Tiles::kExchange ? 2 : 1) * ScoreTile::kBytes;
  }
  /** Batch entry, key/value head and first key of this block, and the exponent of its dS. */
  FLASHATTN_DEVICE static uint32_t work() { return row_stats() + Tiles::kQueryTile * sizeof(float2); }
  /** The sequence of the batch entry. */
  FLASHATTN_DEVICE static uint32_t sequence_place() { return work() + sizeof(int4); }
  FLASHATTN_DEVICE static ShownVisits visits() { return {sequence_place() + static_cast<uint32_t>(sizeof(int4))}; }
  /** [2] bits of the query tile: whose lse is coarse. */
  FLASHATTN_DEVICE static uint32_t coarse_rows() { return visits().base + ShownVisits::kBytes; }

  // Where this block and thread are -----------------------------------------------------------------------------------

  /** One warp. */
  FLASHATTN_DEVICE void choose_work() const {
    int index = static_cast<int>(ptx::block().x);
    if (p_.deterministic) index = ptx::shuffle(ptx::thread() == 0 ? ptx::fetch_add(p_.turns, 1) : 0, 0);
    // Under a causal mask the first keys have the most work: they go first.
    const int tiles = divide_up(p_.key_length, Tiles::kKeyTile), head = index / tiles;
    const int b = head / p_.kv_heads, kv_head = head % p_.kv_heads;
    const int exponent = d_score_exponent<Element>(p_, b, kv_head);
    if (ptx::thread() != 0) return;
    ptx::store_shared(work(), int4{b, kv_head, index % tiles * Tiles::kKeyTile, exponent});
    ptx::store_shared(sequence_place(), sequence_of(p_, b));
  }

  FLASHATTN_DEVICE void locate() {
    thread_ = ptx::opaque(ptx::thread());
    lane_ = Lane(thread_);
    warp_ = thread_ / kWarpSize;
    warp_row_ = warp_ / kColumnWarps * Tiles::kWarpRows;
    warp_column_ = warp_ % kColumnWarps;
    const int4 work = ptx::load_shared<int4>(this->work());
    b_ = work.x;
    kv_head_ = work.y;
    first_key_ = work.z;
  }

  FLASHATTN_DEVICE static Sequence sequence() { return ptx::load_shared<Sequence>(sequence_place()); }
  FLASHATTN_DEVICE Head head(int h) const { return Head(p_, b_, h, sequence()); }

  /** What dP - delta are multiplied by, besides 2^backward_exponent P. */
  FLASHATTN_DEVICE static float d_score_factor() {
    return Element::kNarrow ? power_of_two(ptx::load_shared<int32_t>(work() + 3 * sizeof(int32_t))) : 1.0f;
  }
  /** What sums of P, and of dS, are multiplied by in the end. */
  FLASHATTN_DEVICE float of_probabilities() const { return power_of_two(-backward_exponent<Element>(p_)); }
  FLASHATTN_DEVICE float of_d_scores() const {
    if constexpr (!Element::kNarrow) return 1.0f;
    return of_probabilities() * power_of_two(-ptx::load_shared<int32_t>(work() + 3 * sizeof(int32_t)));
  }

  // Copies ------------------------------------------------------------------------------------------------------------

  /** The queries of visit `number`, and the gradients of their outputs. */
  FLASHATTN_DEVICE void load(int number, int slot) const {
    const Visit visit = visits().at(number);
    if (visit.begin >= 0) {
      const int count = sequence().query_length - visit.begin;
      const auto from = visits().sources(number);
      load_rows<Tiles::kThreads>(queries(slot), Rows::at<Element>(from.query, p_.query, p_.head_dim), 0, count,
                                 thread_);
      load_rows<Tiles::kThreads>(d_outs(slot), Rows::at<Element>(from.d_out, p_.d_out, p_.value_dim), 0, count,
                                 thread_);
    }
    ptx::cp_async_commit();
  }

  /** lse and delta of this thread's query, if it has one; as of an empty row otherwise. */
  FLASHATTN_DEVICE float2 load_row(const Visit& visit) const {
    if (visit.begin < 0 || thread_ >= Tiles::kQueryTile) return make_float2(-kInfinity, 0.0f);
    const Head head = this->head(visit.h);
    const int query = visit.begin + thread_;
    if (query >= head.sequence.query_length) return make_float2(-kInfinity, 0.0f);
    const int64_t row = head.lse_row(query);
    return make_float2(ptx::load_global(p_.lse + row), ptx::load_global(p_.row_terms + row));
  }

  /**
   * What `differentiate` wants of it, in shared memory. Of an empty row the lse is +Infinity, so that every probability is
   * 0; a coarse one is left to `centre`.
   */
  FLASHATTN_DEVICE void put_row_stats(float2 row) const {
    if (warp_ * kWarpSize >= Tiles::kQueryTile) return;
    const float shift = static_cast<float>(backward_exponent<Element>(p_)), lse = row.x;
    const bool coarse = is_coarse_lse(lse);
    const float fine = lse == -kInfinity ? kInfinity : lse * kLog2E - shift;
    const uint32_t coarse_bits = ptx::ballot(coarse);
    if (thread_ < Tiles::kQueryTile)
      ptx::store_shared(row_stats() + static_cast<uint32_t>(thread_ * sizeof(float2)),
                        make_float2(coarse ? -shift : fine, row.y * d_score_factor()));
    if (lane_.index == 0)
      ptx::store_shared(coarse_rows() + static_cast<uint32_t>(warp_ * sizeof(uint32_t)), coarse_bits);
  }

  // The walk ----------------------------------------------------------------------------------------------------------

  /** Whether this thread walks for all: one of the last warp, as the first have row statistics and turns to see to. */
  FLASHATTN_DEVICE bool walks() const { return thread_ == Tiles::kThreads - kWarpSize; }

  FLASHATTN_DEVICE VisitWalk<Tiles> walk() const { return {p_, b_, kv_head_, first_key_, sequence_place(), visits()}; }

  /** The thread that walks finds visit `number`, which follows `before`. */
  FLASHATTN_DEVICE void walk_on(int number, const Visit& before) const {
    if (walks() && before.begin >= 0) walk().show(number, walk().after(before));
  }

  FLASHATTN_DEVICE void walk_queries() {
    d_key_.clear();
    d_value_.clear();
    const Sequence s = sequence_of(p_, b_);
    const Rows key = Rows::of<Element>(p_.key, b_, s.key_begin, kv_head_, p_.head_dim);
    const Rows value = Rows::of<Element>(p_.value, b_, s.key_begin, kv_head_, p_.value_dim);
    load_rows<Tiles::kThreads>(keys(), key, first_key_, s.key_length, thread_);
    load_rows<Tiles::kThreads>(values(), value, first_key_, s.key_length, thread_);

    if (walks()) {
      walk().show(0, walk().first());
      walk_on(1, visits().at(0));
    }
    ptx::sync_threads();
    Visit visit = visits().at(0);
    load(0, 0);
    put_row_stats(load_row(visit));
    int slot = 0;
    for (int number = 0; visit.begin >= 0; ++number) {
      locate();
      ptx::cp_async_wait<0>();
      ptx::sync_threads();  // the tile has landed, and everybody is done with the one before
      walk_on(number + 2, visits().at(number + 1));
      const int next_slot = (slot + 1) % Tiles::kSlots;
      if constexpr (Tiles::kSlots > 1) load(number + 1, next_slot);
      meet(slot, visits().at(number));
      locate();
      if constexpr (Tiles::kSlots == 1) {
        if constexpr (Tiles::kExchange) ptx::sync_threads();  // everybody is done with the tile
        load(number + 1, 0);
      }
      visit = visits().at(number + 1);
      const float2 row = load_row(visit);
      locate();
      add_d_query(visits().at(number));
      put_row_stats(row);
      slot = next_slot;
      if constexpr (kCarries<Element>)
        if ((number + 1) % (kCarryRows / Tiles::kQueryTile) == 0) {
          for_carried([&](const CarryRow& to, int column, float& sum) { to.carry(column, sum, 1.0f, !carried_); });
          carried_ = true;
        }
    }
    ptx::cp_async_wait<0>();
    ptx::sync_threads();
    if constexpr (kCarries<Element>)
      if (carried_)
        for_carried([](const CarryRow& from, int column, float& sum) { from.bring_back(column, sum, 1.0f); });
  }

  /** f(row of d_key or d_value, column, sum) for all sums of this lane. */
  template <class F>
  FLASHATTN_DEVICE void for_carried(F f) {
    locate();
    const Sequence s = sequence();
    const Rows d_key = Rows::of<Element>(p_.d_key, b_, s.key_begin, kv_head_, p_.head_dim);
    const Rows d_value = Rows::of<Element>(p_.d_value, b_, s.key_begin, kv_head_, p_.value_dim);
    const auto for_rows = [&](const Rows& rows, auto& sums) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
        for (int lower = 0; lower < 2; ++lower) {
          const int row = first_key_ + warp_row_ + m * 16 + lower * 8 + lane_.group;
          const CarryRow to(rows, row, s.key_length, column_of(0));
#pragma unroll
          for (int n = 0; n < Tiles::kDims / 8; ++n)
#pragma unroll
            for (int right = 0; right < 2; ++right)
              f(to, column_of(n) - column_of(0) + right, sums.s[m][n][lower * 2 + right]);
          ptx::sync_warp();  // one row after the other: all at once would not fit in registers
        }
    };
    for_rows(d_key, d_key_);
    for_rows(d_value, d_value_);
  }

  /** Of dK and dV: the dim of element 0 of accumulator n. */
  FLASHATTN_DEVICE int column_of(int n) const {
    return (n / 2 * kColumnWarps + warp_column_) * 16 + n % 2 * 8 + lane_.quad * 2;
  }

  /** Adds to dK and dV, and leaves dS in shared memory for all. */
  FLASHATTN_DEVICE void meet(int slot, const Visit& visit) {
    if constexpr (Tiles::kExchange) {
      ChunkScores p, d;
      score(slot, visit, warp_column_ * Tiles::kChunk, p, d);
      store_scores(probabilities(), warp_column_ * Tiles::kChunk, p);
      store_scores(d_scores(), warp_column_ * Tiles::kChunk, d);
      ptx::sync_threads();
      if (cover_of(head(visit.h), visit, 0, Tiles::kQueryTile) == Cover::Empty) return;
      const RowsAsA<ScoreTiles> row({d_scores().base}, warp_row_, lane_);
      add_products<Tiles::kQueryTile>(
          slot, 0, [&](int m, int k) { return row.load(Tiles::kKeyTile + m * 16, k * 16); },
          [&](int m, int k) { return row.load(m * 16, k * 16); });
    } else {
#pragma unroll 1
      for (int chunk = 0; chunk < Tiles::kQueryTile; chunk += Tiles::kChunk) {
        ChunkScores p, d;
        const Cover cover = score(ptx::opaque(slot), visit, chunk, p, d);
        locate();
        if (warp_column_ == 0) store_scores(d_scores(), chunk, d);
        if (cover == Cover::Empty) continue;
        const auto fragment = [](const ChunkScores& s, int m, int k) {
          return fragment_of<Element>(s.s[m][2 * k], s.s[m][2 * k + 1]);
        };
        add_products<Tiles::kChunk>(
            slot, chunk, [&](int m, int k) { return fragment(p, m, k); },
            [&](int m, int k) { return fragment(d, m, k); });
      }
      ptx::sync_threads();
    }
  }

  // P and dS ----------------------------------------------------------------------------------------------------------

  /** How this warp's keys meet some queries of a tile. */
  FLASHATTN_DEVICE Cover cover_of(const Head& head, const Visit& visit, int first, int count) const {
    const Range rows = head.keys_at(first_key_ + warp_row_, Tiles::kWarpRows);
    const Range columns = head.queries_at(visit.begin + first, count);
    if (rows.end <= rows.begin || columns.end <= columns.begin) return Cover::Empty;
    const Cover cover = head.band.cover(columns, rows);
    const bool cut = rows.end - rows.begin < Tiles::kWarpRows || columns.end - columns.begin < count;
    return cover == Cover::Full && (cut || visit.block >= 0) ? Cover::Partial : cover;
  }

  /** P^T and dS^T of this warp's keys and kChunk queries of a tile, from its row `chunk` on. */
  FLASHATTN_DEVICE Cover score(int slot, const Visit& visit, int chunk, ChunkScores& p, ChunkScores& d) {
    locate();
    const Head head = this->head(visit.h);
    const Cover cover = cover_of(head, visit, chunk, Tiles::kChunk);
    p.clear();
    d.clear();
    if (cover == Cover::Empty) return cover;
    const RowsAsA<KeyTiles> row({keys().base}, warp_row_, lane_);
    const RowsAsB<QueryTiles> column({queries(slot).base}, chunk, lane_);
    add_scores<0>(row, column, p);
    const Positions<RowsAre::Keys> at(first_key_ + warp_row_, visit.begin + chunk, lane_);
    ChunkScores slopes;
    if constexpr (kExtras) finish_scores(head, at, p, &slopes);
    if (cover == Cover::Partial) hide_scores(head, bits_of(p_.block_mask, visit.block), at, p);
    add_scores<1>(row, column, d);
    const uint32_t coarse = coarse_queries(chunk);
    if (coarse) {
      locate();
      centre(coarse, this->head(visit.h), visit.begin + chunk, p);
    }
    ChunkScores factors;
    if constexpr (kExtras)
      if (p_.dropout.threshold) {
        for_each_score(factors, at, [](float& factor, int, int) { factor = 1.0f; });
        drop_out(head, at, factors);
        multiply_scores(d, factors);
      }
    if constexpr (Tiles::kExchange) locate();
    differentiate(chunk, p, d);
    if constexpr (kExtras) {
      if (p_.softcap > 0 || p_.score_mod.program) multiply_by_slopes(d, p, slopes);
      if (p_.dropout.threshold) multiply_scores(p, factors);
    }
    return cover;
  }

  template <int Which>
  FLASHATTN_DEVICE static void add_scores(const RowsAsA<KeyTiles>& row, const RowsAsB<QueryTiles>& column,
                                          ChunkScores& sums) {
#pragma unroll(unrolled <Element>(HeadDim / 16))
    for (int d = 0; d < HeadDim; d += 16) {
      FragmentA<Element> a[kRowTiles];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) a[m] = row.load(Which * Tiles::kKeyTile + m * 16, d);
#pragma unroll
      for (int n = 0; n < Tiles::kChunk / 16; ++n) {
        const FragmentB<Element> b = column.load(Which * Tiles::kQueryTile + n * 16, d);
        // Keys are the first factor here, the second in forward: their scores are to be the same to the last bit.
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) multiply<SmallFirst::OfB>(sums.s[m][2 * n], sums.s[m][2 * n + 1], a[m], b);
      }
    }
  }

  /** Bits of the queries from row `chunk` of the tile on whose lse is coarse. */
  FLASHATTN_DEVICE static uint32_t coarse_queries(int chunk) {
    const uint32_t bits =
        ptx::load_shared<uint32_t>(coarse_rows() + static_cast<uint32_t>(chunk / 32 * 4)) >> chunk % 32;
    return Tiles::kChunk == 32 ? bits : bits & ((1u << Tiles::kChunk % 32) - 1);
  }

  /** What scores are multiplied by to be logits. */
  FLASHATTN_DEVICE float logit_unit() const { return kExtras ? 1.0f : p_.scale; }

  /** Takes the lse of coarse rows from their scores, in an order that loses nothing. */
  FLASHATTN_DEVICE void centre(uint32_t coarse, const Head& head, int first, ChunkScores& scores) const {
#pragma unroll
    for (int n = 0; n < Tiles::kChunk / 8; ++n)
#pragma unroll
      for (int right = 0; right < 2; ++right) {
        const int column = n * 8 + lane_.quad * 2 + right;
        if (!(coarse >> column & 1)) continue;
        const SavedRow row = SavedRow::load(head, first + column);
        const float weight = ptx::log(row.inverse_weight), to_score = 1.0f / logit_unit();
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
          for (int e = right; e < 4; e += 2)
            scores.s[m][n][e] = (ptx::product(scores.s[m][n][e], logit_unit()) - row.lse + weight) * to_score;
      }
  }

  /** In: logits and dP. Out: P and dS. */
  FLASHATTN_DEVICE void differentiate(int chunk, ChunkScores& p, ChunkScores& d) const {
    const float unit = logit_unit() * kLog2E, factor = d_score_factor();
#pragma unroll
    for (int n = 0; n < Tiles::kChunk / 8; ++n) {
      const uint32_t at = row_stats() + static_cast<uint32_t>((chunk + n * 8 + lane_.quad * 2) * sizeof(float2));
      const float4 stats = ptx::load_shared<float4>(at);
      const float lse[2] = {stats.x, stats.z}, delta[2] = {stats.y, stats.w};
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          p.s[m][n][e] = ptx::exp2(p.s[m][n][e] * unit - lse[e % 2]);
          d.s[m][n][e] = p.s[m][n][e] * (d.s[m][n][e] * factor - delta[e % 2]);
        }
    }
  }

  FLASHATTN_DEVICE static void multiply_scores(ChunkScores& scores, const ChunkScores& by) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int n = 0; n < Tiles::kChunk / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) scores.s[m][n][e] *= by.s[m][n][e];
  }

  FLASHATTN_DEVICE void store_scores(ScoreTile tile, int chunk, const ChunkScores& scores) const {
    constexpr int kBytes = Tiles::kElementBytes;
    const int column = chunk + lane_.quad * 2;
    const Place<ScoreTile> place(tile, warp_row_ + lane_.group, column / ScoreTile::kChunk);
    const uint32_t within = static_cast<uint32_t>(column % ScoreTile::kChunk * kBytes);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int n = 0; n < Tiles::kChunk / 8; ++n)
#pragma unroll
        for (int lower = 0; lower < 2; ++lower)
          store_pair<Element>(place.at(m * 16 + lower * 8, n * 8 / ScoreTile::kChunk) + within,
                              scores.s[m][n][lower * 2], scores.s[m][n][lower * 2 + 1]);
  }

  // Products with them ------------------------------------------------------------------------------------------------

  /** dV += P^T dO and dK += dS^T Q, of `Count` queries from row `first` of the tile on. p(m, k), d(m, k): fragments. */
  template <int Count, class P, class D>
  FLASHATTN_DEVICE void add_products(int slot, int first, P p, D d) {
    // The warps of a row take blocks of 16 dims in turn.
    const ColumnsAsB<QueryTiles> column({queries(ptx::opaque(slot)).base}, first, lane_, warp_column_ * 16);
#pragma unroll
    for (int k = 0; k < Count / 16; ++k) {
      add_product<1>(k, p, column, d_value_);
      add_product<0>(k, d, column, d_key_);
    }
  }

  template <int Which, class A, class Sums>
  FLASHATTN_DEVICE static void add_product(int k, A fragment, const ColumnsAsB<QueryTiles>& column, Sums& sums) {
    FragmentA<Element> a[kRowTiles];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) a[m] = fragment(m, k);
#pragma unroll
    for (int n = 0; n < Tiles::kDims / 16; ++n) {
      const FragmentB<Element> b = column.load(Which * Tiles::kQueryTile + k * 16, n * kColumnWarps * 16);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) multiply(sums.s[m][2 * n], sums.s[m][2 * n + 1], a[m], b);
    }
  }

  /** dQ = dS K, of which warps take blocks of 16 queries by 16 dims in turn. */
  FLASHATTN_DEVICE void add_d_query(const Visit& visit) const {
    constexpr int kRowStep = Tiles::kQueryWarps * 16, kColumnStep = Tiles::kDimWarps * 16;
    const int row = warp_ / Tiles::kDimWarps * 16, column = warp_ % Tiles::kDimWarps * 16;
    Scores<Tiles::kQueryBlocks, Tiles::kDimBlocks * 2> sums;
    sums.clear();
    const ColumnsAsA<ScoreTile> d_score(d_scores(), 0, lane_, row);
    const ColumnsAsB<KeyTile> key(keys(), 0, lane_, column);
#pragma unroll
    for (int k = 0; k < Tiles::kKeyTile; k += 16) {
      FragmentA<Element> a[Tiles::kQueryBlocks];
#pragma unroll
      for (int m = 0; m < Tiles::kQueryBlocks; ++m) a[m] = d_score.load(k, m * kRowStep);
#pragma unroll
      for (int n = 0; n < Tiles::kDimBlocks; ++n) {
        const FragmentB<Element> b = key.load(k, n * kColumnStep);
#pragma unroll
        for (int m = 0; m < Tiles::kQueryBlocks; ++m) multiply(sums.s[m][2 * n], sums.s[m][2 * n + 1], a[m], b);
      }
    }

    const Head head = this->head(visit.h);
    Turn turn{};
    if (p_.deterministic) {
      if (warp_ == 0) turn = turn_of<Tiles::kKeyTile, Tiles::kQueryTile>(head, visit.begin, first_key_);
      if (thread_ == 0) ptx::wait_for(turn.count, turn.before);
      ptx::sync_threads();
    }
    const int first = visit.begin + row + lane_.group;
    // Opaque, so that it is kept: an address made anew would have to wait for the addition that reads the one before.
    float* to = ptx::opaque(p_.d_query_sum + head.lse_row(first) * HeadDim + column + lane_.quad * 2);
    const float unit = of_d_scores();
#pragma unroll
    for (int m = 0; m < Tiles::kQueryBlocks; ++m)
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
        const int below = m * kRowStep + lower * 8;
        if (first + below >= head.sequence.query_length) continue;
#pragma unroll
        for (int n = 0; n < Tiles::kDimBlocks * 2; ++n)
          ptx::add_global(reinterpret_cast<float2*>(to + below * HeadDim + n / 2 * kColumnStep + n % 2 * 8),
                          make_float2(sums.s[m][n][lower * 2] * unit, sums.s[m][n][lower * 2 + 1] * unit));
      }
    if (p_.deterministic) {
      ptx::sync_threads();
      if (thread_ == 0) ptx::signal(turn.count, turn.before + 1);
    }
  }

  // The end -----------------------------------------------------------------------------------------------------------

  FLASHATTN_DEVICE bool has_nan() const {
    bool found = false;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int n = 0; n < Tiles::kDims / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          found = found || d_key_.s[m][n][e] != d_key_.s[m][n][e] || d_value_.s[m][n][e] != d_value_.s[m][n][e];
    return found;
  }

  /** Whether a pair of this warp's keys was hidden. */
  FLASHATTN_DEVICE bool hides() const {
    if (scores_hide(p_)) return true;
    for (Visit visit = walk().first(); visit.begin >= 0; visit = walk().after(visit))
      if (cover_of(head(visit.h), visit, 0, Tiles::kQueryTile) != Cover::Full) return true;
    return false;
  }

  /** Through the tiles of keys and values, so that whole rows are written. */
  FLASHATTN_DEVICE void store() {
    store_sums(keys(), d_key_, of_d_scores(), p_.scale);
    store_sums(values(), d_value_, of_probabilities(), 1.0f);
    ptx::sync_threads();
    constexpr int kRows = Tiles::kKeyTile / Tiles::kWarps;
    const Sequence s = sequence_of(p_, b_);
    const Rows d_key = Rows::of<Element>(p_.d_key, b_, s.key_begin, kv_head_, p_.head_dim);
    const Rows d_value = Rows::of<Element>(p_.d_value, b_, s.key_begin, kv_head_, p_.value_dim);
    store_rows<kRows>(keys(), d_key, warp_ * kRows, first_key_, s.key_length, lane_.index);
    store_rows<kRows>(values(), d_value, warp_ * kRows, first_key_, s.key_length, lane_.index);
  }

  template <class Sums>
  FLASHATTN_DEVICE void store_sums(KeyTile tile, const Sums& sums, float unit, float factor) const {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int n = 0; n < Tiles::kDims / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; e += 2)
          store_pair(tile, warp_row_ + m * 16 + e / 2 * 8 + lane_.group, column_of(n), sums.s[m][n][e] * unit * factor,
                     sums.s[m][n][e + 1] * unit * factor);
  }

  const AttentionParams& p_;
  int b_, kv_head_, first_key_;
  Lane lane_;
  int thread_, warp_;
  int warp_row_, warp_column_;  // first key row of the tile, and which part of the dims
  bool carried_ = false;
  Scores<kRowTiles, Tiles::kDims / 8> d_key_, d_value_;
};

template <class Element, int HeadDim, Variant Kind>
FLASHATTN_KERNEL((BackwardTiles<Element, HeadDim, Kind>::kThreads), BackwardTiles<Element, HeadDim, Kind>::kLeastBlocks)
backward_kernel(const FLASHATTN_CONSTANT AttentionParams p) {
  BackwardBlock<Element, HeadDim, Kind> block(p);
  block.run();
}

template <class Element, int HeadDim, Variant Kind>
cudaError_t launch_backward_kernel(const AttentionParams& p, cudaStream_t stream) {
  using Tiles = BackwardTiles<Element, HeadDim, Kind>;
  const int64_t blocks = static_cast<int64_t>(divide_up(p.key_length, Tiles::kKeyTile)) * p.kv_heads * p.batch;
  if (blocks == 0) return cudaSuccess;
  return launched("backward",
                  ptx::launch(backward_kernel<Element, HeadDim, Kind>, "backward", dim3(static_cast<unsigned>(blocks)),
                              Tiles::kThreads, Tiles::kSharedBytes, stream, p));
}

/** Row weights, d_key and d_value of every row of every sequence, and d_query / scale added to d_query_sum. */
template <class Element, int HeadDim>
cudaError_t launch_backward_bucket(const AttentionParams& p, const DeviceLimits& limits, cudaStream_t stream) {
  if (const cudaError_t error = launch_row_weights<Element, HeadDim>(p, stream)) return error;
  const Variant variant = backward_variant(shape_of(p), limits);
  if constexpr (sizeof(typename Element::Storage) == 2)
    if (variant == Variant::Large) return launch_backward_kernel<Element, HeadDim, Variant::Large>(p, stream);
  if (variant == Variant::Extras) return launch_backward_kernel<Element, HeadDim, Variant::Extras>(p, stream);
  return launch_backward_kernel<Element, HeadDim, Variant::Small>(p, stream);
}

}  // namespace flashattn
