// Walks over the chunks of a state, forwards and backwards. A block has one state, or some of its columns, in shared memory,
// and channels of keys and queries come and go by tiles:
//
//   forwards   out_t = q~_t S + sum_{s <= t} P_ts u_s        S <- D S + sum_s k~_s u_s^T
//   backwards  d_u_s = k~_s dS + sum_{t >= s} P_ts d_out_t   dS <- D dS + sum_t q~_t d_out_t^T
//
// with the scores P_ts of a chunk, decayed, which each block computes for itself. Corrections of rank one (the processor's
// low_rank.h) are a second set of keys, writes, with what is read as values, and reads are a second set of queries, which meet
// the state before their own position. Each pair of sets passes through the same tiles.
#pragma once
#include "recurrence.cuh"

namespace flashattn {

template <int kValueTile, bool kLowRank = false>
struct RecurrenceWalkTiles {
  static constexpr int kKeyBytes = KeyTileOfChunk::bytes(kRecurrenceChunk);
  static constexpr int kScoreBytes = ScoresOfChunk::bytes(kRecurrenceChunk);
  static constexpr int kValueBytes = FloatTile<kValueTile>::bytes(kRecurrenceChunk);
  static constexpr int kQuery = 0, kKey = kQuery + kKeyBytes;
  static constexpr int kDecay = kKey + kKeyBytes;  // by channel, or the table of those that are not
  static constexpr int kScores = kDecay + kKeyBytes;
  static constexpr int kValue = kScores + kScoreBytes;
  static constexpr int kSolved = kLowRank ? kValue + kValueBytes : kValue;
  static constexpr int kTotals = kSolved + kValueBytes;
  static constexpr int kLines = kTotals + kTotalsBytes;
  static constexpr int kVotes = kLines + ScalarDecays::kLines * 4;
  static constexpr int kState = kVotes + kVotesBytes;
  static_assert(ScalarDecays::kTableBytes <= kKeyBytes && kState % 16 == 0);

  static constexpr int shared_bytes(int key_dim) {
    return kState + FloatTile<kValueTile>::bytes(divide_up(key_dim, kKeyTile) * kKeyTile);
  }
};

/** Columns of the state that a block has: as many as fit beside the rest in 99 KB. */
inline constexpr int kWideValueTile = 64, kNarrowValueTile = 32, kMostKeyDim = 256;
constexpr int most_wide_key_dim(bool low_rank) { return low_rank ? 64 : 128; }
static_assert(RecurrenceWalkTiles<kWideValueTile>::shared_bytes(most_wide_key_dim(false)) <= 99 * 1024);
static_assert(RecurrenceWalkTiles<kNarrowValueTile>::shared_bytes(kMostKeyDim) <= 99 * 1024);
static_assert(RecurrenceWalkTiles<kWideValueTile, true>::shared_bytes(most_wide_key_dim(true)) <= 99 * 1024);
static_assert(RecurrenceWalkTiles<kNarrowValueTile, true>::shared_bytes(kMostKeyDim) <= 99 * 1024);

/** f(columns of a block, kind), both as constants: wide tiles where there is a block of them for every multiprocessor. */
template <class F>
cudaError_t with_walk(const RecurrenceParams& p, RecurrenceKind kind, const DeviceLimits& limits, F f) {
  const int64_t wide_blocks = int64_t{p.batch} * p.heads * divide_up(p.state_columns(), kWideValueTile);
  const bool wide = p.key_dim <= most_wide_key_dim(kind == RecurrenceKind::LowRank) &&
                    p.state_columns() > kNarrowValueTile && wide_blocks >= limits.multiprocessors;
  return with_kind(kind, [&](auto constant) {
    return wide ? f(std::integral_constant<int, kWideValueTile>{}, constant)
                : f(std::integral_constant<int, kNarrowValueTile>{}, constant);
  });
}

template <int kValueTile>
cudaError_t launch_walk(const char* name, void (*kernel)(RecurrenceLaunch), const RecurrenceParams& p,
                        const RecurrenceScratch& scratch, cudaStream_t stream) {
  const int tiles = divide_up(p.state_columns(), kValueTile);
  const dim3 grid(static_cast<uint32_t>(int64_t{p.batch} * p.heads * tiles));
  const int shared = p.update == Update::LowRank ? RecurrenceWalkTiles<kValueTile, true>::shared_bytes(p.key_dim)
                                                 : RecurrenceWalkTiles<kValueTile>::shared_bytes(p.key_dim);
  return launched(name, ptx::launch(kernel, name, grid, kRecurrenceThreads, shared, stream,
                                    RecurrenceLaunch{p, scratch, tiles, 0}));
}

/** Place of a block in its launch: [sequence, head, tile of columns]. */
struct WalkPlace {
  int s, h, column;

  FLASHATTN_DEVICE static WalkPlace of(const RecurrenceLaunch& launch, int value_tile) {
    const int index = static_cast<int>(ptx::block().x), item = index / launch.value_tiles;
    return {item / launch.params.heads, item % launch.params.heads, index % launch.value_tiles * value_tile};
  }
};

template <int kValueTile, RecurrenceKind kKind>
class RecurrenceWalk : public RecurrenceBlock<kKind> {
 public:
  using Base = RecurrenceBlock<kKind>;
  using Base::by_channel, Base::count, Base::decay_channels, Base::global_row, Base::is_delta, Base::is_low_rank;
  using Base::h_, Base::kNarrow, Base::p_, Base::product, Base::put, Base::thread_, Base::warp_;
  using typename Base::ChannelTiles, typename Base::Fetched;
  using Tiles = RecurrenceWalkTiles<kValueTile, kKind == RecurrenceKind::LowRank>;
  using Values = FloatTile<kValueTile>;
  static constexpr int kPairs = kValueTile / 32;

  FLASHATTN_DEVICE RecurrenceWalk(const RecurrenceLaunch& launch, const WalkPlace& place)
      : Base(launch.params, place.s, place.h, ptx::shared_base() + Tiles::kVotes),
        scratch_(launch.scratch),
        column_(place.column),
        state_{ptx::shared_base() + Tiles::kState},
        values_{ptx::shared_base() + Tiles::kValue},
        solved_{ptx::shared_base() + Tiles::kSolved},
        scores_{ptx::shared_base() + Tiles::kScores},
        tiles_{{ptx::shared_base() + Tiles::kQuery},
               {ptx::shared_base() + Tiles::kKey},
               {ptx::shared_base() + Tiles::kDecay},
               {ptx::shared_base() + Tiles::kTotals}},
        decays_{{ptx::shared_base() + Tiles::kLines}, {ptx::shared_base() + Tiles::kDecay}} {}

 protected:
  const RecurrenceScratch& scratch_;
  const int column_;
  const Values state_;   // [key dim, kValueTile]
  const Values values_;  // [kRecurrenceChunk, kValueTile]
  const Values solved_;  // the same, of triangular systems: what the delta rule makes of values, in their place; of
                         // corrections of rank one what is read, or its gradient
  const ScoresOfChunk scores_;
  const ChannelTiles tiles_;
  const ScalarDecays decays_;

  FLASHATTN_DEVICE int key_tiles() const { return divide_up(p_.key_dim, kKeyTile); }
  FLASHATTN_DEVICE int row() const { return warp_ / 2 * 16; }
  FLASHATTN_DEVICE int column() const { return warp_ % 2 * (kValueTile / 2); }

  FLASHATTN_DEVICE void load_state(const float* from /* [key dim, state columns] or null */) {
    for (int i = thread_; i < key_tiles() * kKeyTile * kValueTile; i += kRecurrenceThreads) {
      const int k = i / kValueTile, c = i % kValueTile;
      const bool inside = from && k < p_.key_dim && column_ + c < p_.state_columns();
      put(state_, k, c, inside ? ptx::load_global(from + int64_t{k} * p_.state_columns() + column_ + c) : 0.0f);
    }
  }

  FLASHATTN_DEVICE void store_state(float* to, int columns /* of a row */) {
    for (int i = thread_; i < p_.key_dim * kValueTile; i += kRecurrenceThreads) {
      const int k = i / kValueTile, c = i % kValueTile;
      if (column_ + c < p_.state_columns()) ptx::store_global(to + int64_t{k} * columns + column_ + c, state_(k, c));
    }
  }

  /** Floats [batch, seq, heads, value dim] of the scratch, from a chunk on. */
  FLASHATTN_DEVICE HeadRows kept_rows(float* data, int chunk) const {
    const int64_t stride = int64_t{p_.heads} * p_.value_dim;
    return head_rows(data, global_row(chunk * kRecurrenceChunk) * stride + int64_t{h_} * p_.value_dim, stride);
  }

  FLASHATTN_DEVICE void store_sums(WarpSums<kPairs>& sums, const HeadRows& to, int rows, int columns) {
    for_each_sum<kPairs>(sums, row(), column(), [&](int t, int c, float sum) {
      if (t < rows && column_ + c < columns) to.store(sum, t, column_ + c);
    });
  }

  /** What is on its way of a tile of channels. */
  struct Channels {
    Fetched query, key, decay;
  };

  FLASHATTN_DEVICE void fetch_channels(Channels& next, int chunk, int tile, RowSets sets) const {
    if (tile >= key_tiles()) return;
    if (sets.has_queries()) next.query = this->fetch_queries(chunk, tile * kKeyTile, sets);
    next.key = this->fetch_keys(chunk, tile * kKeyTile, sets);
    if (by_channel()) next.decay = this->fetch_decays(chunk, tile * kKeyTile);
  }

  /**
   * `f(first)` for each tile of channels, when it has been loaded, and decayed where that is by channel, to scores too. The
   * next tile is on its way meanwhile. f ends with all having read what it has.
   */
  template <class F>
  FLASHATTN_DEVICE void for_each_tile(int chunk, RowSets sets, F f) {
    Channels next;
    fetch_channels(next, chunk, 0, sets);
#pragma unroll 1
    for (int tile = 0; tile < key_tiles(); ++tile) {
      if (sets.has_queries()) this->put_queries(tiles_.query, next.query, sets);
      this->put_fetched(tiles_.key, next.key);
      if (by_channel()) this->put_decays(tiles_.decay, next.decay);
      this->meet();
      fetch_channels(next, chunk, tile + 1, sets);
      if (by_channel()) decay_channels(tiles_, scores_, sets, tile * kKeyTile);
      f(tile * kKeyTile);
    }
  }

  /** sums += a tile of channels times the state. Every row has its own. */
  FLASHATTN_DEVICE void add_state(WarpSums<kPairs>& sums, KeyTileOfChunk rows, int first) const {
    multiply_warp<Reach::All, kNarrow ? Exact::First : Exact::Neither>(
        sums, product(row(), column(), 0, kKeyTile), [&](int t, int d) { return rows(t, d); },
        [&](int d, int c) { return state_(first + d, c); });
  }

  /** A tile of the state <- kept times it + factor times its rows^T values, of scalar decays with `line` besides. */
  template <Exact kExact>
  FLASHATTN_DEVICE void update_state(KeyTileOfChunk rows, Values values, int first, FloatLine line, bool decays,
                                     float factor) {
    constexpr int kAcross = kValueTile / 16;
    const int d0 = warp_ / kAcross * 16, c0 = warp_ % kAcross * 16;
    if (d0 >= kKeyTile) return;
    WarpSums<1> sums;
    sums.clear();
    const bool scalar = !by_channel();
    multiply_warp<Reach::All, kExact>(
        sums, product(d0, c0, 0, kRecurrenceChunk),
        [&](int d, int t) { return scalar ? rows(t, d) * line(t) : rows(t, d); },
        [&](int t, int c) { return values(t, c); });
    const float all = scalar && decays ? decays_.all() : 1.0f;
    for_each_sum<1>(sums, d0, c0, [&](int d, int c, float sum) {
      const float decay = scalar || !decays ? all : tiles_.total(0, kRecurrenceBlocks, d);
      put(state_, first + d, c, decay * state_(first + d, c) + factor * sum);
    });
  }

  /** sums of a row *= its element of `line` and the factor. */
  FLASHATTN_DEVICE void scale_rows(WarpSums<kPairs>& sums, FloatLine line, float factor) {
    for_each_sum<kPairs>(sums, row(), column(), [&](int t, int, float& sum) { sum *= factor * line(t); });
  }
};

// Forwards ------------------------------------------------------------------------------------------------------------

template <int kValueTile, RecurrenceKind kKind>
class ForwardWalk : RecurrenceWalk<kValueTile, kKind> {
  using Base = RecurrenceWalk<kValueTile, kKind>;
  using Base::by_channel, Base::is_delta, Base::is_low_rank, Base::count, Base::p_, Base::decays_, Base::tiles_;
  using Base::column_, Base::kPairs, Base::scores_, Base::scratch_, Base::solved_, Base::state_, Base::thread_;
  using Base::values_, Base::warp_;

  static constexpr Exact kScores = Base::kNarrow ? Exact::Both : Exact::Neither;
  static constexpr Exact kUpdates = Base::kExactUpdates ? Exact::Second : Exact::Neither;

 public:
  using Base::Base;

  /** `keeps`: for backward; states are kept, and there are no queries. */
  FLASHATTN_DEVICE void run(bool keeps) {
    this->load_state(p_.initial ? p_.initial + this->state_begin() : nullptr);
    ptx::sync_threads();
    for (int chunk = 0; chunk < this->chunks(); ++chunk) {
      if (keeps) keep_state(chunk);
      this->load_values(values_, chunk, column_);
      this->load_scalar_decays(decays_, chunk);
      if (is_delta()) solve_updates(chunk, keeps);
      if (is_low_rank()) solve_reads(chunk, keeps);
      if (keeps)
        pass_keys(chunk);
      else
        for (int g = 0; g < p_.group(); ++g) pass_queries(chunk, g);
    }
    if (keeps)
      keep_state(this->chunks());
    else if (p_.final_state)
      this->store_state(p_.final_state + this->state_begin(), p_.state_columns());
  }

 private:
  FLASHATTN_DEVICE void keep_state(int chunk) {
    this->store_state(scratch_.states + this->kept_begin(scratch_, chunk), p_.padded_columns());
  }

  FLASHATTN_DEVICE void pass_keys(int chunk) {
    this->for_each_tile(chunk, {RowSets::kNone}, [&](int first) {
      this->template update_state<kUpdates>(tiles_.key, values_, first, decays_.after(), true, 1);
      ptx::sync_threads();
    });
    if (!is_low_rank()) return;
    this->for_each_tile(chunk, {RowSets::kNone, true}, [&](int first) { write_back(first); });
  }

  /** What has been read is added to the state, which has decayed. */
  FLASHATTN_DEVICE void write_back(int first) {
    this->template update_state<kUpdates>(tiles_.key, solved_, first, decays_.after(), false, 1);
    ptx::sync_threads();
  }

  FLASHATTN_DEVICE void pass_queries(int chunk, int g) {
    const bool last = g + 1 == p_.group();
    WarpSums<2> scores;
    WarpSums<kPairs> out;
    scores.clear();
    out.clear();
    this->for_each_tile(chunk, {g}, [&](int first) {
      if (!by_channel()) this->template add_scores<kScores>(scores, tiles_.query, tiles_.key);
      this->add_state(out, tiles_.query, first);
      ptx::sync_threads();
      if (!last) return;
      this->template update_state<kUpdates>(tiles_.key, values_, first, decays_.after(), true, 1);
      ptx::sync_threads();
    });
    if (!by_channel()) {
      if (this->has_scores()) this->store_scores(scores, scores_, &decays_, false, p_.scale);
      this->scale_rows(out, decays_.before(), p_.scale);
    }
    this->meet();
    multiply_warp<Reach::Past, kUpdates>(
        out, this->product(this->row(), this->column(), 0, kRecurrenceChunk),
        [&](int t, int s) { return scores_(t, s); }, [&](int s, int c) { return values_(s, c); });
    if (is_low_rank()) {
      this->for_each_tile(chunk, {g, true}, [&](int first) {
        if (last) write_back(first);
      });
      this->meet();
      multiply_warp<Reach::Past>(
          out, this->product(this->row(), this->column(), 0, kRecurrenceChunk),
          [&](int t, int s) { return scores_(t, s); }, [&](int s, int c) { return solved_(s, c); });
    }
    store_out(out, chunk, g);
    ptx::sync_threads();
  }

  FLASHATTN_DEVICE void store_out(WarpSums<kPairs>& out, int chunk, int g) {
    const int first = chunk * kRecurrenceChunk, head = this->out_head(g);
    this->store_sums(out, head_rows(p_.out, this->batch_, this->begin_ + first, head), count(chunk), p_.value_dim);
    if (!p_.normalizer || p_.value_dim - column_ >= kValueTile) return;
    for_each_sum<kPairs>(out, this->row(), this->column(), [&](int t, int c, float sum) {
      if (t < count(chunk) && column_ + c == p_.value_dim)
        ptx::store_global(p_.normalizer + this->global_row(first + t) * p_.out_heads() + head, sum);
    });
  }

  /**
   * The delta rule: values become what is added to the state, u_t = beta_t e_t, with the errors e_t = v_t - (D_t S)^T k_t
   * - sum_{s < t} D_ts (k_t . k_s) u_s.
   */
  FLASHATTN_DEVICE void solve_updates(int chunk, bool keeps) {
    WarpSums<2> scores;
    WarpSums<kPairs> seen;
    scores.clear();
    seen.clear();
    this->for_each_tile(chunk, {RowSets::kNone}, [&](int first) {
      this->template add_scores<kScores>(scores, tiles_.key, tiles_.key);
      this->add_state(seen, tiles_.key, first);
      ptx::sync_threads();
    });
    if (this->has_scores()) this->store_scores(scores, scores_, &decays_, true, -1);
    this->scale_rows(seen, decays_.before(), 1);
    for_each_sum<kPairs>(seen, this->row(), this->column(),
                         [&](int t, int c, float sum) { this->put(values_, t, c, values_(t, c) - sum); });
    this->meet();
    solve(chunk, keeps);
  }

  /**
   * What corrections of rank one read of the state, p_t = a~_t S + sum_{s < t} D_ts ((a_t . k_s) v_s + (a_t . w_s) p_s), with
   * reads a and writes w, and the decays before t in D.
   */
  FLASHATTN_DEVICE void solve_reads(int chunk, bool keeps) {
    // One loop, as two walks over tiles would take registers from each other: last come the scores with writes.
#pragma unroll 1
    for (int writes = 0; writes < 2; ++writes) {
      WarpSums<kPairs> seen;
      seen.clear();
      this->for_each_tile(chunk, {RowSets::kReads, writes > 0}, [&](int first) {
        if (writes > 0) return;
        this->add_state(seen, tiles_.query, first);
        ptx::sync_threads();
      });
      if (writes > 0) break;
      multiply_warp<Reach::Before>(
          seen, this->product(this->row(), this->column(), 0, kRecurrenceChunk),
          [&](int t, int s) { return scores_(t, s); }, [&](int s, int c) { return values_(s, c); });
      for_each_sum<kPairs>(seen, this->row(), this->column(),
                           [&](int t, int c, float sum) { this->put(solved_, t, c, sum); });
    }
    solve(chunk, keeps);
  }

  /** solved_ += scores_ below the diagonal times it: block by block, by tensor cores, and position by position within a block. */
  FLASHATTN_DEVICE void solve(int chunk, bool keeps) {
    for (int first = 0; first < kRecurrenceChunk; first += kRecurrenceBlock) {
      if (first > 0) {
        if (warp_ < kValueTile / 16) {
          WarpSums<1> sums;
          sums.clear();
          multiply_warp(
              sums, this->product(first, warp_ * 16, 0, first), [&](int t, int s) { return scores_(t, s); },
              [&](int s, int c) { return solved_(s, c); });
          for_each_sum<1>(sums, first, warp_ * 16,
                          [&](int t, int c, float sum) { this->put(solved_, t, c, solved_(t, c) + sum); });
        }
        this->meet();
      }
      if (thread_ < kValueTile) solve_block(chunk, first, keeps);
      this->meet();
    }
  }

  FLASHATTN_DEVICE void solve_block(int chunk, int first, bool keeps) {
    const HeadRows errors = this->kept_rows(scratch_.errors, chunk);
    const bool stores = keeps && column_ + thread_ < p_.value_dim;
    float update[kRecurrenceBlock];
#pragma unroll
    for (int r = 0; r < kRecurrenceBlock; ++r) {
      const int t = first + r;
      float error = solved_(t, thread_);
#pragma unroll
      for (int s = 0; s < r; ++s) error += scores_(t, first + s) * update[s];
      if (stores && t < count(chunk)) errors.store(error, t, column_ + thread_);
      update[r] = is_delta() ? decays_.beta()(t) * error : t < count(chunk) ? error : 0.0f;
      this->put(solved_, t, thread_, update[r]);
    }
  }
};

// Backwards -----------------------------------------------------------------------------------------------------------

template <int kValueTile, RecurrenceKind kKind>
class BackwardWalk : RecurrenceWalk<kValueTile, kKind> {
  using Base = RecurrenceWalk<kValueTile, kKind>;
  using Base::by_channel, Base::is_delta, Base::is_low_rank, Base::count, Base::p_, Base::decays_, Base::tiles_;
  using Base::column_, Base::kPairs, Base::scores_, Base::scratch_, Base::solved_, Base::state_, Base::thread_;
  using Base::values_, Base::warp_;

  static constexpr Exact kScores = Base::kNarrow ? Exact::Both : Exact::Neither;
  static constexpr Exact kSecond = Base::kNarrow ? Exact::Second : Exact::Neither;

 public:
  using Base::Base;

  FLASHATTN_DEVICE void run() {
    this->load_state(p_.d_final_state ? p_.d_final_state + this->state_begin() : nullptr);
    ptx::sync_threads();
    for (int chunk = this->chunks(); chunk-- > 0;) {
      this->store_state(scratch_.d_states + this->kept_begin(scratch_, chunk), p_.padded_columns());
      this->load_scalar_decays(decays_, chunk);
      if (is_low_rank()) pass_writes(chunk);
      pass(chunk);
    }
    if (p_.d_initial) this->store_state(p_.d_initial + this->state_begin(), p_.state_columns());
  }

 private:
  FLASHATTN_DEVICE void pass(int chunk) {
    WarpSums<kPairs> d_updates;
    WarpSums<2> key_scores;
    d_updates.clear();
    key_scores.clear();
    for (int g = 0; g < p_.group(); ++g) {
      WarpSums<2> scores;
      scores.clear();
      this->load_d_out(values_, chunk, column_, g);
      this->for_each_tile(chunk, {g}, [&](int first) {
        if (!by_channel()) this->template add_scores<kScores>(scores, tiles_.query, tiles_.key);
        if (g == 0) {
          if (is_delta()) this->template add_scores<kScores>(key_scores, tiles_.key, tiles_.key);
          this->add_state(d_updates, tiles_.key, first);
          ptx::sync_threads();
        }
        this->template update_state<kSecond>(tiles_.query, values_, first, decays_.before(), g == 0,
                                             this->product_factor());
        ptx::sync_threads();
      });
      if (!by_channel()) {
        if (this->has_scores()) this->store_scores(scores, scores_, &decays_, false, p_.scale);
        if (g == 0) this->scale_rows(d_updates, decays_.after(), 1);
      }
      this->meet();
      multiply_warp<Reach::Future, kSecond>(
          d_updates, this->product(this->row(), this->column(), 0, kRecurrenceChunk),
          [&](int s, int t) { return scores_(t, s); }, [&](int t, int c) { return values_(t, c); });
      ptx::sync_threads();
    }
    if (is_delta()) return pass_errors(chunk, key_scores, d_updates);
    if (is_low_rank()) pass_reads(chunk, d_updates);
    this->store_sums(d_updates, d_values(chunk), count(chunk), p_.value_dim);
  }

  FLASHATTN_DEVICE HeadRows d_values(int chunk) const {
    return head_rows(p_.d_value, this->batch_, this->begin_ + chunk * kRecurrenceChunk, this->h_);
  }

  /**
   * The delta rule: d_e_s = beta_s d_u_s, of which later positions' errors have a part: d_u_s -= sum_{t > s} D_ts (k_t . k_s)
   * d_e_t, and the state before the chunk another.
   */
  FLASHATTN_DEVICE void pass_errors(int chunk, WarpSums<2>& key_scores, WarpSums<kPairs>& d_updates) {
    if (this->has_scores()) this->store_scores(key_scores, scores_, &decays_, true, -1);
    for_each_sum<kPairs>(d_updates, this->row(), this->column(),
                         [&](int s, int c, float sum) { this->put(values_, s, c, sum); });
    this->meet();
    solve(chunk);
    this->for_each_tile(chunk, {RowSets::kNone}, [&](int first) {
      this->template update_state<Exact::Neither>(tiles_.key, values_, first, decays_.before(), false, -1);
      ptx::sync_threads();
    });
  }

  /**
   * The gradient of what corrections of rank one have read, d_p_s = w~_s dS + sum_{t >= s} D_ts (q_t . w_s) d_out_t
   * + sum_{t > s} D_ts (a_t . w_s) d_p_t, while dS is that of the state at the chunk's end.
   */
  FLASHATTN_DEVICE void pass_writes(int chunk) {
    WarpSums<kPairs> d_reads;
    d_reads.clear();
    // One loop, as above: last come the scores of reads.
#pragma unroll 1
    for (int g = 0; g <= p_.group(); ++g) {
      const bool reads = g == p_.group();
      if (!reads) this->load_d_out(values_, chunk, column_, g);
      this->for_each_tile(chunk, {reads ? RowSets::kReads : g, true}, [&](int first) {
        if (g > 0) return;
        this->add_state(d_reads, tiles_.key, first);
        ptx::sync_threads();
      });
      if (reads) break;
      multiply_warp<Reach::Future>(
          d_reads, this->product(this->row(), this->column(), 0, kRecurrenceChunk),
          [&](int s, int t) { return scores_(t, s); }, [&](int t, int c) { return values_(t, c); });
      ptx::sync_threads();
    }
    for_each_sum<kPairs>(d_reads, this->row(), this->column(),
                         [&](int s, int c, float sum) { this->put(solved_, s, c, sum); });
    this->meet();
    solve(chunk);
  }

  /** What reads give to the values before them and to the state. */
  FLASHATTN_DEVICE void pass_reads(int chunk, WarpSums<kPairs>& d_values) {
    this->for_each_tile(chunk, {RowSets::kReads}, [&](int first) {
      this->template update_state<Exact::Neither>(tiles_.query, solved_, first, decays_.before(), false, 1);
      ptx::sync_threads();
    });
    this->meet();
    multiply_warp<Reach::After>(
        d_values, this->product(this->row(), this->column(), 0, kRecurrenceChunk),
        [&](int s, int t) { return scores_(t, s); }, [&](int t, int c) { return solved_(t, c); });
    ptx::sync_threads();
  }

  /** solved_ += scores_^T above the diagonal times it, the last block first. */
  FLASHATTN_DEVICE void solve(int chunk) {
    for (int first = kRecurrenceChunk - kRecurrenceBlock; first >= 0; first -= kRecurrenceBlock) {
      const int end = first + kRecurrenceBlock;
      if (end < kRecurrenceChunk) {
        if (warp_ < kValueTile / 16) {
          WarpSums<1> sums;
          sums.clear();
          multiply_warp(
              sums, this->product(first, warp_ * 16, end, kRecurrenceChunk),
              [&](int s, int t) { return scores_(t, s); }, [&](int t, int c) { return solved_(t, c); });
          for_each_sum<1>(sums, first, warp_ * 16,
                          [&](int s, int c, float sum) { this->put(solved_, s, c, solved_(s, c) + sum); });
        }
        this->meet();
      }
      if (thread_ < kValueTile) solve_block(chunk, first);
      this->meet();
    }
  }

  FLASHATTN_DEVICE void solve_block(int chunk, int first) {
    const HeadRows kept = this->kept_rows(scratch_.d_updates, chunk), to = d_values(chunk);
    const bool stores = column_ + thread_ < p_.value_dim;
    float d_error[kRecurrenceBlock];
#pragma unroll
    for (int r = kRecurrenceBlock - 1; r >= 0; --r) {
      const int s = first + r;
      float sum = solved_(s, thread_);
#pragma unroll
      for (int t = r + 1; t < kRecurrenceBlock; ++t) sum += scores_(first + t, s) * d_error[t];
      d_error[r] = is_delta() ? decays_.beta()(s) * sum : s < count(chunk) ? sum : 0.0f;
      this->put(solved_, s, thread_, d_error[r]);
      if (!stores || s >= count(chunk)) continue;
      kept.store(sum, s, column_ + thread_);
      if (is_delta()) to.store(d_error[r], s, column_ + thread_);
    }
  }
};

}  // namespace flashattn
