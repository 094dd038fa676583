// The gradients of a chunk, from the states at its two ends and theirs (native/cpu/linear/recurrence_backward.h has the
// algebra). Chunks are independent: a block has one of a head, and goes over its channels and columns by tiles.
//
//   A_ts = d_out_t . u_s     d_q_t = sum_{s <= t} D_ts A_ts k_s + D_t (S d_out_t)     d_k_s = sum_{t >= s} D_ts A_ts q_t + D_s (dS u_s)
#pragma once
#include "recurrence.cuh"

namespace flashattn {

template <bool kLowRank = false>
struct RecurrenceGradientTiles {
  static constexpr int kKeyBytes = KeyTileOfChunk::bytes(kRecurrenceChunk);
  static constexpr int kStateBytes = KeyTileOfChunk::bytes(kKeyTile), kLineBytes = kRecurrenceChunk * 4;
  static constexpr int kScores = 0;
  static constexpr int kErrorScores = kScores + ScoresOfChunk::bytes(kRecurrenceChunk);  // or gates by channel
  static constexpr int kQuery = kErrorScores + ScoresOfChunk::bytes(kRecurrenceChunk);
  static constexpr int kKey = kQuery + kKeyBytes;
  static constexpr int kDecay = kKey + kKeyBytes;  // or gradients of errors
  static constexpr int kFirst = kDecay + kKeyBytes;
  static constexpr int kSecond = kFirst + kKeyBytes;
  static constexpr int kState = kSecond + kKeyBytes;
  static constexpr int kStateGradient = kState + kStateBytes;
  static constexpr int kTable = kStateGradient + kStateBytes;  // or gradients of keys and of writes
  static constexpr int kLines = kTable + (kLowRank ? 2 * kKeyBytes : ScalarDecays::kTableBytes);
  static constexpr int kOwn = kLines + ScalarDecays::kLines * 4;
  static constexpr int kGate = kOwn + kLineBytes;
  static constexpr int kCarry = kGate + kLineBytes;
  static constexpr int kTotals = kCarry + kLineBytes;
  static constexpr int kVotes = kTotals + kTotalsBytes;
  static constexpr int kSharedBytes = kVotes + kVotesBytes;
  static_assert(kSharedBytes <= 99 * 1024);
};

template <RecurrenceKind kKind>
class RecurrenceGradients : protected RecurrenceBlock<kKind> {
 protected:
  using Tiles = RecurrenceGradientTiles<kKind == RecurrenceKind::LowRank>;
  using Base = RecurrenceBlock<kKind>;
  using Base::are_reads, Base::are_writes, Base::is_exclusive, Base::is_low_rank;
  using Base::batch_, Base::begin_, Base::h_, Base::p_, Base::thread_, Base::warp_;
  using Base::by_channel, Base::chunks, Base::count, Base::fetch, Base::global_row, Base::has_scores;
  using Base::is_delta, Base::kept_begin, Base::kept_row, Base::load_scalar_decays;
  using Base::meet, Base::out_head, Base::product, Base::put_fetched, Base::score_column, Base::score_row;
  using Base::store_scores;
  using typename Base::ChannelTiles, typename Base::Fetched;
  static constexpr Exact kFirst = Base::kNarrow ? Exact::First : Exact::Neither;
  static constexpr Exact kSecond = Base::kNarrow ? Exact::Second : Exact::Neither;
  static constexpr Exact kUpdates = Base::kExactUpdates ? Exact::First : Exact::Neither;

 public:
  FLASHATTN_DEVICE RecurrenceGradients(const RecurrenceLaunch& launch, int s, int h, int chunk)
      : Base(launch.params, s, h, ptx::shared_base() + Tiles::kVotes),
        scratch_(launch.scratch),
        chunk_(chunk),
        row_(warp_ / 2 * 16),
        column_(warp_ % 2 * 16),
        scores_{shared(Tiles::kScores)},
        error_scores_{shared(Tiles::kErrorScores)},
        gates_{shared(Tiles::kErrorScores)},
        query_{shared(Tiles::kQuery)},
        key_{shared(Tiles::kKey)},
        decay_{shared(Tiles::kDecay)},
        first_{shared(Tiles::kFirst)},
        second_{shared(Tiles::kSecond)},
        state_{shared(Tiles::kState)},
        d_state_{shared(Tiles::kStateGradient)},
        own_{shared(Tiles::kOwn)},
        gate_{shared(Tiles::kGate)},
        carry_{shared(Tiles::kCarry)},
        decays_{{shared(Tiles::kLines)}, {shared(Tiles::kTable)}},
        decayed_{first_, second_, decay_, {shared(Tiles::kTotals)}} {}

  FLASHATTN_DEVICE void run() {
    if (chunk_ >= chunks()) return;
    load_scalar_decays(decays_, chunk_);
    if (is_delta()) {
      store_d_beta();
      make_error_scores();
    }
    for (int first = 0; first < p_.key_dim; first += kKeyTile) {
      clear_sums();
      for (int g = 0; g < p_.group(); ++g) {
        if (g > 0 || first == 0 || p_.group() > 1) make_scores({g});
        meet_states(first, {g}, true, g == 0);
        load_rows(first, {g});
        if (by_channel())
          pass_channels(first, g);
        else
          pass_positions(first, g);
      }
    }
    if (!by_channel() && p_.decay_kind != Decay::None) store_gates();
  }

 protected:
  const RecurrenceScratch& scratch_;
  const int chunk_, row_, column_;
  const ScoresOfChunk scores_, error_scores_;
  const KeyTileOfChunk gates_, query_, key_, decay_, first_, second_, state_, d_state_;
  const FloatLine own_;    // d_out_t . v_t, with a bonus
  const FloatLine gate_;   // of positions: q d_q - k d_k
  const FloatLine carry_;  // of a tile of channels: the state at the end times its gradient
  const ScalarDecays decays_;
  const ChannelTiles decayed_;

  // [kRecurrenceChunk, kKeyTile], a part of each warp
  WarpSums<1> d_query_, d_key_;
  WarpSums<1> later_, earlier_;  // what errors owe to keys, as the later of two positions and the earlier
  float gate_sum_ = 0, carry_sum_ = 0;
  // Of a channel and the positions of a block
  float block_key_[kRecurrenceBlock], block_bonus_[kRecurrenceBlock], bonus_sum_;

  FLASHATTN_DEVICE static uint32_t shared(int offset) { return ptx::shared_base() + static_cast<uint32_t>(offset); }

  FLASHATTN_DEVICE int columns() const { return p_.state_columns(); }
  FLASHATTN_DEVICE int rows() const { return count(chunk_); }
  FLASHATTN_DEVICE WarpProduct part(int begin, int end) const { return product(row_, column_, begin, end); }
  template <class F>
  FLASHATTN_DEVICE void for_each(WarpSums<1>& sums, F f) const {
    for_each_sum<1>(sums, row_, column_, f);
  }
  FLASHATTN_DEVICE void scale_rows(WarpSums<1>& sums, FloatLine line, float factor) const {
    for_each(sums, [&](int t, int, float& sum) { sum *= factor * line(t); });
  }

  FLASHATTN_DEVICE void clear_sums() {
    d_key_.clear();
    later_.clear();
    earlier_.clear();
    bonus_sum_ = 0;
#pragma unroll
    for (int r = 0; r < kRecurrenceBlock; ++r) block_key_[r] = block_bonus_[r] = 0;
  }

  // What is loaded ------------------------------------------------------------------------------------------------------

  FLASHATTN_DEVICE HeadRows kept_rows(float* data) const {
    const int64_t stride = int64_t{p_.heads} * p_.value_dim;
    return head_rows(data, global_row(chunk_ * kRecurrenceChunk) * stride + int64_t{h_} * p_.value_dim, stride);
  }
  FLASHATTN_DEVICE Fetched fetch_kept(float* from, int column) const {
    return fetch(kept_rows(from), this->fetched_row(), rows(), column, p_.value_dim);
  }
  /** What the state is added to with; beta is still to come. */
  FLASHATTN_DEVICE Fetched fetch_updates(int column, RowSets sets) const {
    return is_delta() || are_writes(sets) ? fetch_kept(scratch_.errors, column) : this->fetch_values(chunk_, column);
  }
  /** The gradient of what has been read of the state. */
  FLASHATTN_DEVICE Fetched fetch_d_out(int column, RowSets sets) const {
    return are_reads(sets) ? fetch_kept(scratch_.d_updates, column) : Base::fetch_d_out(chunk_, column, sets.queries);
  }
  FLASHATTN_DEVICE void put_kept(KeyTileOfChunk to, const Fetched& fetched) {
    const float factor = is_delta() ? decays_.beta()(this->fetched_row()) : 1.0f;
    put_fetched(to, this->fetched_row(), fetched, [factor](float x) { return factor * x; });
  }
  /** A tile of channels; ends with a meeting. By channel there are two of queries and keys each, one of which will decay. */
  FLASHATTN_DEVICE void load_rows(int first, RowSets sets) {
    const Fetched queries = this->fetch_queries(chunk_, first, sets), keys = this->fetch_keys(chunk_, first, sets);
    this->put_queries(query_, queries, sets);
    put_fetched(key_, keys);
    if (by_channel()) {
      this->put_queries(first_, queries, sets);
      put_fetched(second_, keys);
      this->put_decays(decay_, this->fetch_decays(chunk_, first));
    }
    meet();
  }

  /** Half of the threads have the state before the chunk, half the gradient of the one behind. */
  FLASHATTN_DEVICE Fetched fetch_states(int first, int column) const {
    float* const from = this->fetched_row() < kKeyTile ? scratch_.states : scratch_.d_states;
    const int64_t begin = kept_begin(scratch_, chunk_) + int64_t{first} * p_.padded_columns();
    return fetch(head_rows(from, begin, p_.padded_columns()), this->fetched_row() % kKeyTile, p_.key_dim - first,
                 column, columns());
  }
  FLASHATTN_DEVICE void put_states(const Fetched& fetched) {
    const bool before = this->fetched_row() < kKeyTile;
    put_fetched(before ? state_ : d_state_, this->fetched_row() % kKeyTile, fetched, [](float x) { return x; });
  }

  /** `f(column)` for each tile of columns, loaded by `fetch(column)` and `put(what was fetched)`, the next on its way. */
  template <class Fetch, class Put, class F>
  FLASHATTN_DEVICE void for_each_column_tile(Fetch fetch_tile, Put put_tile, F f) {
    auto next = fetch_tile(0);
#pragma unroll 1
    for (int column = 0; column < columns(); column += kKeyTile) {
      put_tile(next);
      meet();
      if (column + kKeyTile < columns()) next = fetch_tile(column + kKeyTile);
      f(column);
      ptx::sync_threads();
    }
  }

  // Scores --------------------------------------------------------------------------------------------------------------

  struct Pair {
    Fetched first, second;
  };

  FLASHATTN_DEVICE void make_scores(RowSets sets) {
    WarpSums<2> sums;
    sums.clear();
    for_each_column_tile(
        [&](int column) {
          return Pair{fetch_d_out(column, sets), fetch_updates(column, sets)};
        },
        [&](const Pair& pair) {
          put_fetched(first_, pair.first);
          put_kept(second_, pair.second);
        },
        [&](int) { this->template add_scores<Base::kExactUpdates ? Exact::Both : kFirst>(sums, first_, second_); });
    const bool exclusive = is_exclusive(sets);
    if (has_scores()) {
      if (exclusive && !is_low_rank())
        for_each_sum<2>(sums, score_row(), score_column(), [&](int t, int s, float sum) {
          if (t == s) own_.set(t, sum);
        });
      store_scores(sums, scores_, by_channel() ? nullptr : &decays_, exclusive, this->product_factor());
    }
    meet();
  }

  /** -D_ts (d_e_t . u_s), s < t */
  FLASHATTN_DEVICE void make_error_scores() {
    WarpSums<2> sums;
    sums.clear();
    for_each_column_tile(
        [&](int column) {
          return Pair{fetch_kept(scratch_.d_updates, column), fetch_kept(scratch_.errors, column)};
        },
        [&](const Pair& pair) {
          put_kept(first_, pair.first);
          put_kept(second_, pair.second);
        },
        [&](int) { this->template add_scores<Exact::Neither>(sums, first_, second_); });
    if (has_scores()) store_scores(sums, error_scores_, &decays_, true, -1);
    meet();
  }

  FLASHATTN_DEVICE void store_d_beta() {
    const HeadRows errors = kept_rows(scratch_.errors), d_updates = kept_rows(scratch_.d_updates);
    const HeadRows to = head_rows(p_.d_beta, batch_, begin_ + chunk_ * kRecurrenceChunk, h_);
    const int lane = thread_ % kWarpSize;
    for (int t = warp_; t < rows(); t += RecurrenceTiles::kWarps) {
      float sum = 0, x[kVector], y[kVector];
      for (int c = lane * kVector; c < p_.value_dim; c += kWarpSize * kVector) {
        errors.load(x, t, c, p_.value_dim - c);
        d_updates.load(y, t, c, p_.value_dim - c);
        for (int e = 0; e < kVector; ++e) x[e] *= y[e];
        sum += sum_part(x);
      }
      for (int mask = kWarpSize / 2; mask > 0; mask /= 2) sum += ptx::shuffle_xor(sum, mask);
      if (lane == 0) to.store(sum, t, 0);
    }
  }

  struct Ends {
    Fetched d_out, updates, d_updates, states;
  };

  /**
   * Starts the gradients of a tile of channels with what the states at both ends give to them: those of queries, those of keys,
   * or both. With the first keys comes what the state at the end owes to its decays.
   */
  FLASHATTN_DEVICE void meet_states(int first, RowSets sets, bool queries, bool keys) {
    d_query_.clear();
    float carry = 0;
    const bool carries = keys && !are_writes(sets);
    for_each_column_tile(
        [&](int column) {
          Ends ends;
          if (queries) ends.d_out = fetch_d_out(column, sets);
          ends.states = fetch_states(first, column);
          if (keys) ends.updates = fetch_updates(column, sets);
          if (keys && is_delta()) ends.d_updates = fetch_kept(scratch_.d_updates, column);
          return ends;
        },
        [&](const Ends& ends) {
          if (queries) put_fetched(first_, ends.d_out);
          put_states(ends.states);
          if (keys) put_kept(second_, ends.updates);
          if (keys && is_delta()) put_kept(decay_, ends.d_updates);
        },
        [&](int column) {
          const auto by_state = [&](int c, int d) { return state_(d, c); };
          if (queries)
            multiply_warp<Reach::All, kFirst>(
                d_query_, part(0, kKeyTile), [&](int t, int c) { return first_(t, c); }, by_state);
          if (!keys) return;
          multiply_warp<Reach::All, kUpdates>(
              d_key_, part(0, kKeyTile), [&](int s, int c) { return second_(s, c); },
              [&](int c, int d) { return d_state_(d, c); });
          if (is_delta())
            multiply_warp(
                later_, part(0, kKeyTile), [&](int t, int c) { return decay_(t, c); }, by_state);
          if (carries) carry += carry_part(first, column);
        });
    if (!carries) return;
    carry_sum_ += carry;
    for (int mask = 1; mask < kVector; mask *= 2) carry += ptx::shuffle_xor(carry, mask);
    if (thread_ % kVector == 0) carry_.set(thread_ / kVector, carry);
  }

  /** Four columns of a row of the state at the chunk's end times its gradient. */
  FLASHATTN_DEVICE float carry_part(int first, int column) const {
    const int d = thread_ / kVector, c = thread_ % kVector * 4;
    if (p_.decay_kind == Decay::None || first + d >= p_.key_dim) return 0;
    const float* const state =
        scratch_.states + kept_begin(scratch_, chunk_ + 1) + int64_t{first + d} * p_.padded_columns() + column + c;
    float sum = 0;
    for (int e = 0; e < 4; ++e)
      if (column + c + e < columns()) sum += ptx::load_global(state + e) * d_state_(d, c + e);
    return sum;
  }

  // Decays by position, or fewer ----------------------------------------------------------------------------------------

  FLASHATTN_DEVICE void pass_positions(int first, int g) {
    const bool last = g + 1 == p_.group();
    const auto key_of = [&](int s, int d) { return key_(s, d); };
    const auto query_of = [&](int t, int d) { return query_(t, d); };
    scale_rows(d_query_, decays_.before(), p_.scale);
    multiply_warp<Reach::Past, kSecond>(
        d_query_, part(0, kRecurrenceChunk), [&](int t, int s) { return scores_(t, s); }, key_of);
    if (g == 0) scale_rows(d_key_, decays_.after(), 1);
    multiply_warp<Reach::Future, kSecond>(
        d_key_, part(0, kRecurrenceChunk), [&](int s, int t) { return scores_(t, s); }, query_of);
    if (last && is_delta()) {
      scale_rows(later_, decays_.before(), -1);
      multiply_warp<Reach::Past, kSecond>(
          later_, part(0, kRecurrenceChunk), [&](int t, int s) { return error_scores_(t, s); }, key_of);
      multiply_warp<Reach::Future, kSecond>(
          earlier_, part(0, kRecurrenceChunk), [&](int s, int t) { return error_scores_(t, s); }, key_of);
    }
    for_each(d_query_, [&](int t, int d, float sum) { first_.set(t, d, sum); });
    if (last) {
      const Lane lane = lane_here();
      // Of errors the earlier position counts as a key does, the later one as a query.
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int s = row_ + lane.group + e / 2 * 8, d = column_ + n * 8 + 2 * lane.quad + e % 2;
          const float key = d_key_.s[0][n][e], later = later_.s[0][n][e], earlier = earlier_.s[0][n][e];
          second_.set(s, d, key + (later + earlier));
          if (is_delta()) decay_.set(s, d, key + (earlier - later));
        }
    }
    ptx::sync_threads();
    const int t = thread_ / 4;
    const KeyTileOfChunk key_gates = is_delta() ? decay_ : second_;
    for (int d = thread_ % 4; d < kKeyTile; d += 4) {
      gate_sum_ += query_(t, d) * first_(t, d);
      if (last) gate_sum_ -= key_(t, d) * key_gates(t, d);
    }
    store_tile(p_.d_query, out_head(g), first_, first, 1);
    if (last) store_tile(p_.d_key, h_, second_, first, 1);
    ptx::sync_threads();
  }

  FLASHATTN_DEVICE void store_tile(const TensorRef& to, int head, KeyTileOfChunk from, int first, float factor) const {
    const int t = thread_ / 4, d0 = thread_ % 4 * kVector;
    if (t >= rows() || first + d0 >= p_.key_dim) return;
    float x[kVector];
    for (int e = 0; e < kVector; e += 4) {
      const float4 four = ptx::load_shared<float4>(from.at(t, d0 + e));
      x[e] = factor * four.x;
      x[e + 1] = factor * four.y;
      x[e + 2] = factor * four.z;
      x[e + 3] = factor * four.w;
    }
    head_rows(to, batch_, begin_ + chunk_ * kRecurrenceChunk, head).store(x, t, first + d0, p_.key_dim - first - d0);
  }

  FLASHATTN_DEVICE void store_gates() {
    for (int mask = 1; mask < 4; mask *= 2) gate_sum_ += ptx::shuffle_xor(gate_sum_, mask);
    if (thread_ % 4 == 0) gate_.set(thread_ / 4, gate_sum_);
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2) carry_sum_ += ptx::shuffle_xor(carry_sum_, mask);
    if (thread_ % kWarpSize == 0) carry_.set(warp_, carry_sum_);
    ptx::sync_threads();
    const int t = thread_;
    float sum = 0;
    if (t < rows()) {
      for (int w = 0; w < RecurrenceTiles::kWarps; ++w) sum += carry_(w);
      for (int later = rows(); later-- > t;) sum += gate_(later);
      if (p_.decay_kind == Decay::Position)
        head_rows(p_.d_decay, batch_, begin_ + chunk_ * kRecurrenceChunk, h_).store(sum, t, 0);
    }
    if (p_.decay_kind != Decay::Head) return;
    if (t < kRecurrenceChunk) own_.set(t, sum);
    ptx::sync_threads();
    if (t > 0) return;
    float all = 0;
    for (int i = rows(); i-- > 0;) all += own_(i);
    ptx::store_global(scratch_.sums + h_ * scratch_.rows + kept_row(chunk_), all);
  }

  // Decays by channel ---------------------------------------------------------------------------------------------------

  /** What blocks owe to other ones, by tensor cores. `starts`: gradients of queries or keys are what states gave to them. */
  FLASHATTN_DEVICE void meet_blocks(RowSets sets, bool starts_queries, bool starts_keys) {
    this->decay_within_blocks(decayed_, sets);
    meet();
    const int block = row_ / kRecurrenceBlock;
    if (starts_queries) for_each(d_query_, [&](int, int d, float& sum) { sum *= decayed_.total(0, block, d); });
    multiply_warp(
        d_query_, part(0, row_), [&](int t, int s) { return scores_(t, s); },
        [&](int s, int d) { return second_(s, d) * decayed_.total(s / kRecurrenceBlock + 1, block, d); });
    if (starts_keys)
      for_each(d_key_, [&](int, int d, float& sum) { sum *= decayed_.total(block + 1, kRecurrenceBlocks, d); });
    multiply_warp(
        d_key_, part(row_ + kRecurrenceBlock, kRecurrenceChunk), [&](int s, int t) { return scores_(t, s); },
        [&](int t, int d) { return first_(t, d) * decayed_.total(block + 1, t / kRecurrenceBlock, d); });
    ptx::sync_threads();
  }

  FLASHATTN_DEVICE void pass_channels(int first, int g) {
    const bool last = g + 1 == p_.group();
    meet_blocks({g}, true, g == 0);
    for_each(d_query_, [&](int t, int d, float sum) { first_.set(t, d, sum); });
    if (last) for_each(d_key_, [&](int s, int d, float sum) { second_.set(s, d, sum); });
    ptx::sync_threads();
    const int b = thread_ / kKeyTile, d = thread_ % kKeyTile;
    const bool has_channel = b < kRecurrenceBlocks;
    const FloatLine block_gates{state_.base}, block_sums{d_state_.base};  // [block, channel]
    if (has_channel) {
      const float bonus =
          p_.bonus && first + d < p_.key_dim ? ptx::load_global(p_.bonus + int64_t{h_} * p_.key_dim + first + d) : 0.0f;
      const bool exclusive = p_.bonus != nullptr;
      for_each_block_query(b * kRecurrenceBlock, d, exclusive, [&](int t, float key, float sum) {
        const float query = query_(t, d), gate = query * sum;
        gates_.set(t, d, g == 0 ? gate : gates_(t, d) + gate);
        if (exclusive) sum += own_(t) * bonus * key;
        first_.set(t, d, sum);
      });
      for_each_block_key(b * kRecurrenceBlock, d, exclusive, [&](int r, int s, float query, float sum) {
        if (exclusive) {
          block_bonus_[r] += own_(s) * bonus * query;
          bonus_sum_ += own_(s) * query * key_(s, d);
        }
        block_key_[r] += sum;
      });
      if (last) {
        block_gates.set(thread_, finish_keys(b * kRecurrenceBlock, d));
        block_sums.set(thread_, bonus_sum_);
      }
    }
    ptx::sync_threads();
    store_tile(p_.d_query, out_head(g), first_, first, p_.scale);
    if (last) {
      store_tile(p_.d_key, h_, second_, first, 1);
      if (has_channel) sum_gates(b, d, block_gates);
      if (p_.bonus && thread_ < kKeyTile && first + thread_ < p_.key_dim) {
        float sum = 0;
        for (int i = 0; i < kRecurrenceBlocks; ++i) sum += block_sums(i * kKeyTile + thread_);
        ptx::store_global(scratch_.sums + (h_ * scratch_.rows + kept_row(chunk_)) * p_.key_dim + first + thread_, sum);
      }
      ptx::sync_threads();
      store_tile(p_.d_decay, h_, gates_, first, 1);
    }
    ptx::sync_threads();
  }

  /** f(position, its key, its gradient by keys before it) for the queries of a block, with those of the block itself. */
  template <class F>
  FLASHATTN_DEVICE void for_each_block_query(int first, int d, bool exclusive, F f) {
    float decayed[kRecurrenceBlock], product = 1;
#pragma unroll
    for (int r = 0; r < kRecurrenceBlock; ++r) {
      const int t = first + r;
      const float decay = decay_(t, d), with_own = product * decay, key = key_(t, d);
      float sum = first_(t, d) * (exclusive ? product : with_own);
      product = with_own;
#pragma unroll
      for (int s = 0; s < r; ++s) {
        const float after = decayed[s] * decay;
        sum += scores_(t, first + s) * (exclusive ? decayed[s] : after);
        decayed[s] = after;
      }
      decayed[r] = key;
      if (!exclusive) sum += scores_(t, t) * key;
      f(t, key, sum);
    }
  }

  /** f(place in the block, position, its query, its gradient by the queries of its block), the last key first. */
  template <class F>
  FLASHATTN_DEVICE void for_each_block_key(int first, int d, bool exclusive, F f) {
    float decayed[kRecurrenceBlock];
#pragma unroll
    for (int r = kRecurrenceBlock - 1; r >= 0; --r) {
      const int s = first + r;
      const float query = query_(s, d);
      float sum = 0;
      const float decay = r + 1 < kRecurrenceBlock ? decay_(s + 1, d) : 1.0f;
#pragma unroll
      for (int t = r + 1; t < kRecurrenceBlock; ++t) {
        // When exclusive, the next query reads the state as it was left.
        if (!exclusive || t > r + 1) decayed[t] *= decay;
        sum += scores_(first + t, s) * decayed[t];
      }
      decayed[r] = query;
      if (!exclusive) sum += scores_(s, s) * query;
      f(r, s, query, sum);
    }
  }

  /** The gradients of a block's keys, and the sum of its gates. Gates of keys stay in block_key_. */
  FLASHATTN_DEVICE float finish_keys(int first, int d) {
    float product = 1, gates = 0;
#pragma unroll
    for (int r = kRecurrenceBlock - 1; r >= 0; --r) {
      const int s = first + r;
      const float sum = second_(s, d) * product + block_key_[r];
      product *= decay_(s, d);
      second_.set(s, d, sum + block_bonus_[r]);
      block_key_[r] = key_(s, d) * sum;
      gates += gates_(s, d) - block_key_[r];
    }
    return gates;
  }

  /** Gates become gradients of decays: sums over what follows in the chunk, and of the state at its end. */
  FLASHATTN_DEVICE void sum_gates(int b, int d, FloatLine block_gates) {
    float sum = carry_(d);
    for (int i = kRecurrenceBlocks; i-- > b + 1;) sum += block_gates(i * kKeyTile + d);
#pragma unroll
    for (int r = kRecurrenceBlock - 1; r >= 0; --r) {
      const int t = b * kRecurrenceBlock + r;
      const float query = gates_(t, d);
      sum -= block_key_[r];
      const float without = sum;
      sum += query;
      gates_.set(t, d, p_.bonus ? without : sum);
    }
  }
};

}  // namespace flashattn
