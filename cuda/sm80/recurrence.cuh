// What the kernels of the recurrence share (native/cpu/linear/recurrence.h has the algebra): what a block loads of a state's
// chunks, their decays and their scores.
//
// A number that is not finite makes a block careful from there on: products are sums in order of float32, which leave out
// what a position must not see. Otherwise zeros stand in its place.
#pragma once
#include "recurrence_tiles.cuh"

namespace flashattn {

// Tensors -------------------------------------------------------------------------------------------------------------

/** Rows of one head in global memory, from some position on. */
struct HeadRows {
  void* data;
  int64_t offset, stride;  // elements
  DType dtype;
  bool aligned;  // every row begins at a multiple of 16 bytes

  FLASHATTN_DEVICE HeadRows(void* data, int64_t offset, int64_t stride, DType dtype)
      : data(data),
        offset(offset),
        stride(stride),
        dtype(dtype) {
    const int64_t bytes = (offset | stride) * element_size(dtype);
    aligned = ((reinterpret_cast<uintptr_t>(data) | static_cast<uint64_t>(bytes)) & 15) == 0;
  }
  FLASHATTN_DEVICE void load(float (&x)[kVector], int row, int column, int count) const {
    load_vector(x, dtype, data, offset + row * stride + column, count, aligned);
  }
  FLASHATTN_DEVICE void store(const float (&x)[kVector], int row, int column, int count) const {
    store_vector(dtype, data, offset + row * stride + column, x, count, aligned);
  }
  FLASHATTN_DEVICE void store(float x, int row, int column) const {
    with_element(dtype, [&](auto element) {
      using Element = decltype(element);
      ptx::store_global(static_cast<typename Element::Storage*>(data) + offset + row * stride + column,
                        Element::store(x));
    });
  }
};

FLASHATTN_DEVICE HeadRows head_rows(const TensorRef& t, int b, int row, int head) {
  return {t.data, b * t.batch + row * t.seq + head * t.head, t.seq, t.dtype};
}
FLASHATTN_DEVICE HeadRows head_rows(float* data, int64_t offset, int64_t stride) {
  return {data, offset, stride, DType::Float32};
}

FLASHATTN_DEVICE float load_scalar(const TensorRef& t, int b, int row, int head) {
  float x = 0;
  with_element(t.dtype, [&](auto element) {
    using Element = decltype(element);
    x = Element::load(ptx::load_global(static_cast<const typename Element::Storage*>(t.data) + b * t.batch +
                                       row * t.seq + head * t.head));
  });
  return x;
}

inline constexpr int kVotesBytes = 2 * RecurrenceTiles::kWarps * 4;    // see RecurrenceBlock::meet
inline constexpr int kTotalsBytes = kRecurrenceBlocks * kKeyTile * 4;  // of ChannelTiles

/** Which rows are queries, and which are keys. */
struct RowSets {
  static constexpr int kNone = -1, kReads = -2;
  int queries;          // a head of queries, or one of these
  bool writes = false;  // instead of keys

  FLASHATTN_DEVICE bool has_queries() const { return queries != kNone; }
};

// A block -------------------------------------------------------------------------------------------------------------

/** The decays of a chunk, where they are not by channel, and beta. */
struct ScalarDecays {
  static constexpr int kLines = 6 * kRecurrenceChunk;
  static constexpr int kTableBytes = kRecurrenceChunk * kRecurrenceBlock * static_cast<int>(sizeof(float));
  FloatLine lines;  // [6, kRecurrenceChunk]
  FloatLine table;  // [query, key of its block]: the decays between the two

  FLASHATTN_DEVICE FloatLine position() const { return lines; }
  FLASHATTN_DEVICE FloatLine before() const { return {lines.at(kRecurrenceChunk)}; }     // from the chunk's beginning
  FLASHATTN_DEVICE FloatLine after() const { return {lines.at(2 * kRecurrenceChunk)}; }  // to its end
  FLASHATTN_DEVICE FloatLine from_block() const { return {lines.at(3 * kRecurrenceChunk)}; }
  FLASHATTN_DEVICE FloatLine to_block() const { return {lines.at(4 * kRecurrenceChunk)}; }
  FLASHATTN_DEVICE FloatLine beta() const { return {lines.at(5 * kRecurrenceChunk)}; }

  FLASHATTN_DEVICE float all() const { return before()(kRecurrenceChunk - 1); }
  FLASHATTN_DEVICE float of_block(int b) const { return from_block()(b * kRecurrenceBlock + kRecurrenceBlock - 1); }
  /** Of all positions behind `key` up to `query`, which is not before it. */
  FLASHATTN_DEVICE float between(int query, int key) const {
    const int last = query / kRecurrenceBlock, first = key / kRecurrenceBlock;
    if (first == last) return table(query * kRecurrenceBlock + key % kRecurrenceBlock);
    float product = to_block()(key);
    for (int b = first + 1; b < last; ++b) product *= of_block(b);
    return product * from_block()(query);
  }
};

/** One state, and what is known of its chunks. */
template <RecurrenceKind kKind>
class RecurrenceBlock {
 public:
  FLASHATTN_DEVICE RecurrenceBlock(const RecurrenceParams& p, int s, int h, uint32_t votes)
      : p_(p),
        s_(s),
        h_(h),
        batch_(p.offsets ? 0 : s),
        begin_(p.offsets ? ptx::load_global(p.offsets + s) : 0),
        length_(p.offsets ? ptx::load_global(p.offsets + s + 1) - begin_ : p.length),
        thread_(ptx::thread()),
        warp_(ptx::thread() / kWarpSize),
        votes_(votes) {}

 protected:
  /** Whether queries, keys and gradients of out are exact, and what is added to the state. */
  static constexpr bool kNarrow = kKind == RecurrenceKind::NarrowPositions || kKind == RecurrenceKind::NarrowDelta;
  static constexpr bool kExactUpdates = kKind == RecurrenceKind::NarrowPositions;

  const RecurrenceParams& p_;
  const int s_, h_, batch_, begin_, length_;
  const int thread_, warp_;
  bool careful_ = false;

  FLASHATTN_DEVICE int chunks() const { return divide_up(length_, kRecurrenceChunk); }
  FLASHATTN_DEVICE int count(int chunk) const { return min_of(length_ - chunk * kRecurrenceChunk, kRecurrenceChunk); }
  FLASHATTN_DEVICE static constexpr bool is_low_rank() { return kKind == RecurrenceKind::LowRank; }
  FLASHATTN_DEVICE static constexpr bool by_channel() { return kKind == RecurrenceKind::Channels || is_low_rank(); }
  FLASHATTN_DEVICE static constexpr bool is_delta() {
    return kKind == RecurrenceKind::Delta || kKind == RecurrenceKind::NarrowDelta;
  }
  FLASHATTN_DEVICE static constexpr bool are_reads(RowSets sets) {
    return is_low_rank() && sets.queries == RowSets::kReads;
  }
  FLASHATTN_DEVICE static constexpr bool are_writes(RowSets sets) { return is_low_rank() && sets.writes; }
  /** Whether queries read the state before their own position. */
  FLASHATTN_DEVICE bool is_exclusive(RowSets sets) const {
    return is_low_rank() ? are_reads(sets) : p_.bonus != nullptr;
  }
  FLASHATTN_DEVICE int head_of(int heads) const { return static_cast<int>(int64_t{h_} * heads / p_.heads); }
  FLASHATTN_DEVICE int out_head(int g) const { return h_ * p_.group() + g; }
  FLASHATTN_DEVICE int query_head(int g) const {
    return p_.query_heads >= p_.heads ? out_head(g) : head_of(p_.query_heads);
  }
  FLASHATTN_DEVICE int64_t global_row(int position) const { return int64_t{batch_} * p_.length + begin_ + position; }
  FLASHATTN_DEVICE int64_t state_begin() const {
    return (int64_t{s_} * p_.heads + h_) * p_.key_dim * p_.state_columns();
  }
  FLASHATTN_DEVICE int64_t kept_row(int chunk) const {
    const int64_t first =
        p_.offsets ? begin_ / kRecurrenceChunk + s_ : int64_t{s_} * divide_up(p_.length, kRecurrenceChunk);
    return first + s_ + chunk;
  }
  FLASHATTN_DEVICE int64_t kept_begin(const RecurrenceScratch& scratch, int chunk) const {
    return (h_ * scratch.rows + kept_row(chunk)) * p_.key_dim * p_.padded_columns();
  }

  /** Waits for the block. From then on it is careful if a thread has stored what is not finite. */
  FLASHATTN_DEVICE void meet() {
    const uint32_t odd = ptx::ballot(odd_);
    const uint32_t votes = votes_ + static_cast<uint32_t>(turn_ * RecurrenceTiles::kWarps * 4);
    if (thread_ % kWarpSize == 0) ptx::store_shared(votes + static_cast<uint32_t>(warp_ * 4), odd);
    ptx::sync_threads();
    uint32_t any = 0;
#pragma unroll
    for (int i = 0; i < RecurrenceTiles::kWarps; i += 4) {
      const uint4 four = ptx::load_shared<uint4>(votes + static_cast<uint32_t>(i * 4));
      any |= four.x | four.y | four.z | four.w;
    }
    careful_ = any != 0;
    turn_ ^= 1;
  }

  /** What products will read is stored by this alone. */
  template <class To>
  FLASHATTN_DEVICE void put(const To& tile, int row, int column, float x) {
    odd_ = odd_ || !is_ordinary(x);
    tile.set(row, column, x);
  }

  FLASHATTN_DEVICE WarpProduct product(int row, int column, int begin, int end) const {
    return {row, column, begin, end, careful_};
  }

  /** Fills kRows rows of a tile; `map(row, column, x)` is what becomes of an element. Zeros lie beyond `rows` and `columns`. */
  template <int kRows, int kColumns, class F>
  FLASHATTN_DEVICE void load_tile(FloatTile<kColumns> to, const HeadRows& from, int rows, int column, int columns,
                                  F map) {
    constexpr int kVectors = kColumns / kVector;
#pragma unroll 1
    for (int i = ptx::opaque(thread_); i < kRows * kVectors; i += kRecurrenceThreads) {
      const int r = i / kVectors, c = i % kVectors * kVector;
      float x[kVector];
      from.load(x, r < rows ? r : 0, column + c, r < rows ? columns - column - c : 0);
      for (int e = 0; e < kVector; ++e) {
        x[e] = map(r, column + c + e, x[e]);
        odd_ = odd_ || !is_ordinary(x[e]);
      }
      for (int e = 0; e < kVector; e += 4)
        ptx::store_shared(to.at(r, c + e), make_float4(x[e], x[e + 1], x[e + 2], x[e + 3]));
    }
  }

  /** What a thread has of a tile [kRecurrenceChunk, kKeyTile], or of half as many rows, that is on its way. */
  struct Fetched {
    float x[kVector];
  };
  FLASHATTN_DEVICE int fetched_row() const { return ptx::opaque(thread_) / (kKeyTile / kVector); }
  FLASHATTN_DEVICE int fetched_column() const { return ptx::opaque(thread_) % (kKeyTile / kVector) * kVector; }

  FLASHATTN_DEVICE Fetched fetch(const HeadRows& from, int row, int rows, int column, int dim) const {
    const bool inside = row < rows;
    Fetched fetched;
    from.load(fetched.x, inside ? row : 0, column + fetched_column(), inside ? dim - column - fetched_column() : 0);
    return fetched;
  }
  FLASHATTN_DEVICE Fetched fetch(const TensorRef& from, int head, int chunk, int column, int dim) const {
    return fetch(head_rows(from, batch_, begin_ + chunk * kRecurrenceChunk, head), fetched_row(), count(chunk), column,
                 dim);
  }
  FLASHATTN_DEVICE Fetched fetch_keys(int chunk, int column, RowSets sets) const {
    if (are_writes(sets)) return fetch(p_.write, head_of(p_.write_heads), chunk, column, p_.key_dim);
    return fetch(p_.key, head_of(p_.key_heads), chunk, column, p_.key_dim);
  }
  FLASHATTN_DEVICE Fetched fetch_queries(int chunk, int column, RowSets sets) const {
    if (are_reads(sets)) return fetch(p_.read, head_of(p_.read_heads), chunk, column, p_.key_dim);
    return fetch(p_.query, query_head(sets.queries), chunk, column, p_.key_dim);
  }
  FLASHATTN_DEVICE Fetched fetch_decays(int chunk, int column) const {
    return fetch(p_.decay, head_of(p_.decay_heads), chunk, column, p_.key_dim);
  }
  /** x becomes what stands behind the values of a row that there is. */
  FLASHATTN_DEVICE void append(Fetched& fetched, int chunk, int column, float x) const {
#pragma unroll
    for (int e = 0; e < kVector; ++e)
      if (column + fetched_column() + e == p_.value_dim && fetched_row() < count(chunk)) fetched.x[e] = x;
  }
  FLASHATTN_DEVICE Fetched fetch_values(int chunk, int column) const {
    Fetched fetched = fetch(p_.value, head_of(p_.value_heads), chunk, column, p_.value_dim);
    if (p_.normalizes) append(fetched, chunk, column, 1);
    return fetched;
  }
  FLASHATTN_DEVICE Fetched fetch_d_out(int chunk, int column, int g) const {
    Fetched fetched = fetch(p_.d_out, out_head(g), chunk, column, p_.value_dim);
    if (p_.d_normalizer && column + kKeyTile > p_.value_dim && fetched_row() < count(chunk)) {
      const int64_t row = global_row(chunk * kRecurrenceChunk + fetched_row());
      append(fetched, chunk, column, ptx::load_global(p_.d_normalizer + row * p_.out_heads() + out_head(g)));
    }
    return fetched;
  }

  template <class F>
  FLASHATTN_DEVICE void put_fetched(KeyTileOfChunk to, int row, const Fetched& fetched, F map) {
    float x[kVector];
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      x[e] = map(fetched.x[e]);
      odd_ = odd_ || !is_ordinary(x[e]);
    }
#pragma unroll
    for (int e = 0; e < kVector; e += 4)
      ptx::store_shared(to.at(row, fetched_column() + e), make_float4(x[e], x[e + 1], x[e + 2], x[e + 3]));
  }
  FLASHATTN_DEVICE void put_fetched(KeyTileOfChunk to, const Fetched& fetched) {
    put_fetched(to, fetched_row(), fetched, [](float x) { return x; });
  }
  /** Decays by channel meet scaled queries, others leave the scale to what comes of products: so their factors stay exact. */
  FLASHATTN_DEVICE float query_factor(RowSets sets) const { return by_channel() && !are_reads(sets) ? p_.scale : 1.0f; }
  FLASHATTN_DEVICE float product_factor() const { return by_channel() ? 1.0f : p_.scale; }
  FLASHATTN_DEVICE void put_queries(KeyTileOfChunk to, const Fetched& fetched, RowSets sets) {
    const float factor = query_factor(sets);
    put_fetched(to, fetched_row(), fetched, [factor](float x) { return x * factor; });
  }
  /** e^g by channel, 1 beyond what there is. */
  FLASHATTN_DEVICE void put_decays(KeyTileOfChunk to, const Fetched& fetched) {
    put_fetched(to, fetched_row(), fetched, [](float g) { return ::expf(g); });
  }

  /** Values, and a column of ones behind them where states have one. */
  template <int kColumns>
  FLASHATTN_DEVICE void load_values(FloatTile<kColumns> to, int chunk, int column) {
    const int rows = count(chunk);
    load_tile<kRecurrenceChunk>(
        to, head_rows(p_.value, batch_, begin_ + chunk * kRecurrenceChunk, head_of(p_.value_heads)), rows, column,
        p_.value_dim, [&](int r, int c, float x) { return p_.normalizes && c == p_.value_dim && r < rows ? 1.0f : x; });
  }
  /** d_out, and the gradient of the normalizer behind it. */
  template <int kColumns>
  FLASHATTN_DEVICE void load_d_out(FloatTile<kColumns> to, int chunk, int column, int g) {
    const int rows = count(chunk), first = chunk * kRecurrenceChunk, head = out_head(g);
    load_tile<kRecurrenceChunk>(
        to, head_rows(p_.d_out, batch_, begin_ + first, head), rows, column, p_.value_dim, [&](int r, int c, float x) {
          if (!p_.d_normalizer || c != p_.value_dim || r >= rows) return x;
          return ptx::load_global(p_.d_normalizer + global_row(first + r) * p_.out_heads() + head);
        });
  }

  /** Loads and multiplies the decays of a chunk; ends with a meeting. */
  FLASHATTN_DEVICE void load_scalar_decays(const ScalarDecays& decays, int chunk) {
    const int t = thread_, rows = count(chunk), row = begin_ + chunk * kRecurrenceChunk + t;
    if (t < kRecurrenceChunk) {
      float g = 0;
      if (t < rows && p_.decay_kind == Decay::Head) g = load_scalar(p_.decay, 0, 0, head_of(p_.decay_heads));
      if (t < rows && p_.decay_kind == Decay::Position) g = load_scalar(p_.decay, batch_, row, head_of(p_.decay_heads));
      const float decay = ::expf(g);
      odd_ = odd_ || !is_ordinary(decay);
      decays.position().set(t, decay);
      const float beta = t < rows && is_delta() ? load_scalar(p_.beta, batch_, row, head_of(p_.beta_heads)) : 0.0f;
      odd_ = odd_ || !is_ordinary(beta);
      decays.beta().set(t, beta);
    }
    ptx::sync_threads();
    if (by_channel()) return meet();
    const int block = t / kRecurrenceBlock, first = block * kRecurrenceBlock;
    float from = 1, to = 1;
    if (t < kRecurrenceChunk) {
      for (int s = t; s >= first; --s) {
        decays.table.set(t * kRecurrenceBlock + s % kRecurrenceBlock, from);
        from *= decays.position()(s);
      }
      for (int s = t + 1; s < first + kRecurrenceBlock; ++s) to *= decays.position()(s);
      decays.from_block().set(t, from);
      decays.to_block().set(t, to);
    }
    ptx::sync_threads();
    if (t < kRecurrenceChunk) {
      float before = 1, after = 1;
      for (int b = 0; b < block; ++b) before *= decays.of_block(b);
      for (int b = kRecurrenceBlocks - 1; b > block; --b) after *= decays.of_block(b);
      decays.before().set(t, before * from);
      decays.after().set(t, to * after);
    }
    meet();
  }

  // Decays by channel: a tile of channels at a time ---------------------------------------------------------------------

  struct ChannelTiles {
    KeyTileOfChunk query, key, decay;
    FloatLine totals;  // [block, channel]: the decays of each block

    FLASHATTN_DEVICE float total(int b, int d) const { return totals(b * kKeyTile + d); }
    /** Of all blocks of [first, end) */
    FLASHATTN_DEVICE float total(int first, int end, int d) const {
      float product = 1;
      for (int b = first; b < end; ++b) product *= total(b, d);
      return product;
    }
  };

  /**
   * Adds what a tile of channels has of the scores of each block with itself, key by key. A group of four lanes has a key,
   * and decays it from query to query. `bonus` [key dim] or null, from the tile's first channel on: of queries that are
   * exclusive, what they meet their own key with.
   */
  FLASHATTN_DEVICE void add_block_scores(const ChannelTiles& tiles, ScoresOfChunk scores, bool first_tile,
                                         bool exclusive, const float* bonus, int channels) {
    constexpr int kParts = kRecurrenceThreads / kRecurrenceChunk, kDims = kKeyTile / kParts;
    static_assert(kParts == 4);
    const int s = thread_ / kParts, part = thread_ % kParts;
    const int begin = s / kRecurrenceBlock * kRecurrenceBlock, end = begin + kRecurrenceBlock;
    float key[kDims];
#pragma unroll
    for (int d = 0; d < kDims; ++d) key[d] = tiles.key(s, part + kParts * d);
    if (first_tile && part == 0)
      for (int t = begin; t < s; ++t) scores.set(t, s, 0);
#pragma unroll 1
    for (int j = 0; j < kRecurrenceBlock; ++j) {
      const int t = s + j;
      float sum = 0;
      if (t < end) {
        const int decayed_by = exclusive ? t - 1 : t;
#pragma unroll
        for (int d = 0; d < kDims; ++d) {
          if (decayed_by > s) key[d] *= tiles.decay(decayed_by, part + kParts * d);
          const float x = tiles.query(t, part + kParts * d) * key[d];
          const bool own = exclusive && j == 0;
          const bool has_bonus = !is_low_rank() && part + kParts * d < channels;
          sum += own ? (has_bonus ? x * ptx::load_global(bonus + part + kParts * d) : 0.0f) : x;
        }
      }
      sum += ptx::shuffle_xor(sum, 1);
      sum += ptx::shuffle_xor(sum, 2);
      if (part == 0 && t < end) put(scores, t, s, first_tile ? sum : scores(t, s) + sum);
    }
  }

  /** Queries are decayed from the beginning of their block on, keys to its end. */
  FLASHATTN_DEVICE void decay_within_blocks(const ChannelTiles& tiles, RowSets sets) {
    const int b = thread_ / kKeyTile, d = thread_ % kKeyTile, first = b * kRecurrenceBlock;
    if (b >= kRecurrenceBlocks) return;
    const bool has_queries = sets.has_queries(), exclusive = is_exclusive(sets);
    float product = 1;
#pragma unroll 4
    for (int t = first; t < first + kRecurrenceBlock; ++t) {
      const float own = product * tiles.decay(t, d);
      if (has_queries) put(tiles.query, t, d, tiles.query(t, d) * (exclusive ? product : own));
      product = own;
    }
    tiles.totals.set(b * kKeyTile + d, product);
    product = 1;
#pragma unroll 4
    for (int t = first + kRecurrenceBlock; t-- > first;) {
      put(tiles.key, t, d, tiles.key(t, d) * product);
      product *= tiles.decay(t, d);
    }
  }

  /** And what blocks score with earlier ones. */
  FLASHATTN_DEVICE void add_earlier_scores(const ChannelTiles& tiles, ScoresOfChunk scores, bool first_tile) {
    constexpr int kPairs = kRecurrenceBlocks * (kRecurrenceBlocks - 1) / 2;
    static_assert(kPairs <= RecurrenceTiles::kWarps);
    if (warp_ >= kPairs) return;
    const int b = warp_ < 1 ? 1 : warp_ < 3 ? 2 : 3, a = warp_ - b * (b - 1) / 2;
    WarpSums<1> sums;
    sums.clear();
    const int row = b * kRecurrenceBlock, column = a * kRecurrenceBlock;
    multiply_warp(
        sums, product(row, column, 0, kKeyTile),
        [&](int t, int d) { return tiles.query(t, d) * tiles.total(a + 1, b, d); },
        [&](int d, int s) { return tiles.key(s, d); });
    for_each_sum<1>(sums, row, column,
                    [&](int t, int s, float sum) { put(scores, t, s, first_tile ? sum : scores(t, s) + sum); });
  }

  /** Queries are decayed from the beginning of the chunk on, keys to its end. */
  FLASHATTN_DEVICE void decay_within_chunk(const ChannelTiles& tiles, bool has_queries) {
    const int b = thread_ / kKeyTile, d = thread_ % kKeyTile, first = b * kRecurrenceBlock;
    if (b >= kRecurrenceBlocks) return;
    const float before = tiles.total(0, b, d), after = tiles.total(b + 1, kRecurrenceBlocks, d);
#pragma unroll 4
    for (int t = first; t < first + kRecurrenceBlock; ++t) {
      if (has_queries) put(tiles.query, t, d, tiles.query(t, d) * before);
      put(tiles.key, t, d, tiles.key(t, d) * after);
    }
  }

  /** All of that, from loaded tiles; ends with a meeting. There are scores where there are queries. */
  FLASHATTN_DEVICE void decay_channels(const ChannelTiles& tiles, ScoresOfChunk scores, RowSets sets, int column) {
    const bool has_queries = sets.has_queries();
    if (has_queries) {
      const float* const bonus = p_.bonus ? p_.bonus + int64_t{h_} * p_.key_dim + column : nullptr;
      add_block_scores(tiles, scores, column == 0, is_exclusive(sets), bonus, p_.key_dim - column);
      ptx::sync_threads();
    }
    decay_within_blocks(tiles, sets);
    meet();
    if (has_queries) {
      add_earlier_scores(tiles, scores, column == 0);
      ptx::sync_threads();
    }
    decay_within_chunk(tiles, has_queries);
    meet();
  }

  // Scores where decays are not by channel ------------------------------------------------------------------------------

  FLASHATTN_DEVICE int score_row() const { return warp_ / 2 * 16; }
  FLASHATTN_DEVICE int score_column() const { return warp_ % 2 * 32; }
  FLASHATTN_DEVICE bool has_scores() const { return score_column() < score_row() + 16; }

  /** sums [query, key] += a tile of channels of both */
  template <Exact kExact, class Queries, class Keys>
  FLASHATTN_DEVICE void add_scores(WarpSums<2>& sums, const Queries& queries, const Keys& keys) const {
    if (!has_scores()) return;
    multiply_warp<Reach::All, kExact>(
        sums, product(score_row(), score_column(), 0, Queries::kColumns), [&](int t, int d) { return queries(t, d); },
        [&](int d, int s) { return keys(s, d); });
  }

  /** Zero where the key is later than the query, or is it itself and `strict`. */
  FLASHATTN_DEVICE void store_scores(WarpSums<2>& sums, ScoresOfChunk to, const ScalarDecays* decays, bool strict,
                                     float factor) {
    for_each_sum<2>(sums, score_row(), score_column(), [&](int t, int s, float sum) {
      const bool seen = s < t + (strict ? 0 : 1);
      put(to, t, s, seen ? factor * sum * (decays ? decays->between(t, s) : 1.0f) : 0.0f);
    });
  }

 private:
  bool odd_ = false;
  int turn_ = 0;
  const uint32_t votes_;
};

}  // namespace flashattn
