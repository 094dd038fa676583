// How the recurrence engine cuts a sequence, and what a worker keeps of a chunk.
//
// A chunk's keys and values are loaded once, and the state meets them once, when all queries of the chunk have read it: the
// longer chunks are, the fewer times it is read and written. Within a chunk queries are handled in blocks, whose scores with
// the keys of their chunk are one tile of one vector (or two, or four): half of the last square is computed in vain, and
// nothing else.
#pragma once
#include "attention/sums.h"
#include "simd/math.h"
#include "structs/recurrence.h"

namespace flashattn {

// Queries of a block: a whole number of vectors everywhere.
inline constexpr int kLinearBlock = 16;
// Keys of a chunk. Scores cost as much as the state at 2 * dim; from 32 on memory is no bound.
inline constexpr int kLinearChunk = 64;
static_assert(kLinearBlock % kLanes == 0 && kLinearChunk % kLinearBlock == 0);

using StateRows = float[kMaxDim * kRowStride];           // [key dim][state column], or transposed
using ChunkRows = float[kLinearChunk * kRowStride];      // [position][dim]
using BlockRows = float[kLinearBlock * kRowStride];      // [position][dim]
using BlockColumns = float[kMaxDim * kLinearBlock];      // [dim][position]
using BlockScores = float[kLinearChunk * kLinearBlock];  // [key][query]

/** The rows of one sequence of the batch. */
struct LinearSequence {
  int batch, begin, length;

  LinearSequence(const RecurrenceParams& p, int s)
      : batch(p.offsets ? 0 : s),
        begin(p.offsets ? p.offsets[s] : 0),
        length(p.offsets ? p.offsets[s + 1] - p.offsets[s] : p.length) {}
};

/** One state: of a sequence and a head. An item of a launch. */
struct StateItem {
  const RecurrenceParams& p;
  const int s, h;
  const LinearSequence sequence;

  StateItem(const RecurrenceParams& params, int item)
      : p(params),
        s(item / params.heads),
        h(item % params.heads),
        sequence(params, s) {}

  /** Which of `heads` heads of a tensor belongs to this state. */
  int head_of(int heads) const { return static_cast<int>(int64_t{h} * heads / p.heads); }
  int out_head(int g) const { return h * p.group() + g; }
  int query_head(int g) const { return p.query_heads >= p.heads ? out_head(g) : head_of(p.query_heads); }
  int row(int position) const { return sequence.begin + position; }

  /** Of the chunks of all sequences, the first of this one's. */
  size_t first_chunk() const {
    return p.offsets ? size_t(sequence.begin / kLinearChunk) + s : size_t(s) * divide_up(p.length, kLinearChunk);
  }

  size_t state_floats() const { return size_t(p.key_dim) * p.state_columns(); }
  size_t state_begin() const { return (size_t(s) * p.heads + h) * state_floats(); }
  /** Of [batch, seq, heads] floats, or of [1, total, heads]. */
  size_t scalar(int position, int head, int heads) const {
    return (size_t(sequence.batch) * p.length + row(position)) * heads + head;
  }
};

namespace detail {

/** Vectors below 2^-80 are 0: products of decays would otherwise end as denormals, which are slow. */
FLASHATTN_INLINE Vec without_dust(Vec x) { return select(x < splat(0x1p-80f), Vec{}, x); }

inline float without_dust(float x) { return x < 0x1p-80f ? 0.0f : x; }

FLASHATTN_CALLED void load_linear_rows(float* to /* [count][kRowStride] */, const TensorRef& from, const StateItem& at,
                                       int begin, int count, int head, int dim) {
  load_rows(to, from, at.sequence.batch, at.row(begin), count, head, dim);
}

inline float load_scalar(const TensorRef& from, int b, int i, int h) {
  float lanes[kLanes];
  load_row(lanes, from.row(b, i, h), from.dtype, 1);
  return lanes[0];
}

/** Values, and a column of ones behind them where states have one. */
FLASHATTN_CALLED void load_values(float* to /* [count][kRowStride] */, const StateItem& at, int begin, int count) {
  const RecurrenceParams& p = at.p;
  load_linear_rows(to, p.value, at, begin, count, at.head_of(p.value_heads), p.value_dim);
  if (p.state_columns() == p.value_dim) return;
  const int vector = p.value_dim / kLanes * kLanes;
  for (int r = 0; r < count; ++r) {
    float* const row = to + r * kRowStride;
    if (vector == p.value_dim) store(row + vector, Vec{});
    row[p.value_dim] = 1;
  }
}

/**
 * Rows that will be loaded or written soon: they lie apart, so that no processor guesses where they are. They are asked for
 * between the blocks of products, some at a time, since more at once would keep the processor waiting.
 */
class LinearAhead {
 public:
  /** The rows of a head from position `begin` to before `end`; those beyond the sequence are left out. */
  void add([[maybe_unused]] const TensorRef& from, [[maybe_unused]] const StateItem& at, [[maybe_unused]] int begin,
           [[maybe_unused]] int end, [[maybe_unused]] int head, [[maybe_unused]] int dim) {
#if !defined(__wasm__)
    const int count = min(end, at.sequence.length) - begin;
    if (count <= 0) return;
    const int size = element_size(from.dtype);
    rows_[added_++] = {from.row(at.sequence.batch, size_t(at.row(begin)), head), size_t(from.seq) * size_t(size), count,
                       dim * size};
#endif
  }

  /** Before rows are added that come after all that were. */
  void begin() {
#if !defined(__wasm__)
    ask(kMost * kLinearChunk * kMaxDim);  // for which there were too few products
    next_ = added_ = 0;
#endif
  }

  FLASHATTN_INLINE void step([[maybe_unused]] LinearAhead& ahead) {
#if !defined(__wasm__)
    ahead.ask(TileAhead::kLines);
#endif
  }

 private:
  static constexpr int kMost = 12;

  struct Rows {
    const uint8_t* row;
    size_t stride;
    int count, bytes;
  };

  /** Asks for whole rows until they have so many lines. */
  void ask(int lines) {
    for (; next_ < added_; ++next_) {
      Rows& rows = rows_[next_];
      for (; rows.count > 0; --rows.count, rows.row += rows.stride) {
        if (lines <= 0) return;
        for (int byte = 0; byte < rows.bytes; byte += int(kCacheLine), --lines)
          __builtin_prefetch(rows.row + byte, 0, 2);
      }
    }
  }

  Rows rows_[kMost];
  int added_ = 0, next_ = 0;
};

/** A product, between whose blocks rows are asked for. */
template <class S, Accumulate kMode>
inline void product(LinearAhead& ahead, int rows, int vectors, int inner, const float* a, const float* b, float* c,
                    size_t c_row, const float* row_scale = nullptr) {
  flashattn::product<S, kMode>(rows, vectors, inner, a, b, c, c_row, row_scale, ahead);
}

/** States in memory have no padding. */
FLASHATTN_CALLED void load_state(float* to /* [key dim][kRowStride] */,
                                 const float* from /* [key dim][columns] or null */, int key_dim, int columns) {
  for (int k = 0; k < key_dim; ++k) {
    if (from == nullptr)
      fill(to + k * kRowStride, 0, columns);
    else
      load_row(to + k * kRowStride, from + size_t(k) * columns, DType::Float32, columns);
  }
}

FLASHATTN_CALLED void store_state(float* to /* [key dim][columns] */, const float* from /* [key dim][kRowStride] */,
                                  int key_dim, int columns) {
  for (int k = 0; k < key_dim; ++k) store_row(to + size_t(k) * columns, DType::Float32, from + k * kRowStride, columns);
}

/** columns[d][r] = rows[r][d] * factor, zeros beyond `count` rows. */
FLASHATTN_CALLED void transpose_block(float* columns /* [dim][kLinearBlock] */,
                                      const float* rows /* [count][kRowStride] */, int count, int dim, float factor) {
  const Vec f = splat(factor);
  for (int r = 0; r < kLinearBlock; r += kLanes) {
    for (int d = 0; d < dim; d += kLanes) {
      Vec m[kLanes];
      for (int i = 0; i < kLanes; ++i) m[i] = r + i < count ? load(rows + (r + i) * kRowStride + d) * f : Vec{};
      transpose_lanes(m);
      for (int i = 0; i < kLanes; ++i) store(columns + (d + i) * kLinearBlock + r, m[i]);
    }
  }
}

inline void copy_floats(float* to, const float* from /* both [n] */, int n) {
  for (int i = 0; i < n; i += kLanes) store(to + i, load(from + i));
}

/** to[r] += factor * a[r] . b[r] */
FLASHATTN_CALLED void add_row_dots(float* to /* [count] in whole vectors */, const float* a,
                                   const float* b /* both [count][kRowStride] */, int count, int dim, float factor) {
  for (int r = 0; r < count; r += kLanes) {
    Vec sums[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      sums[i] = Vec{};
      if (r + i >= count) continue;
      const int row = (r + i) * kRowStride;
      for (int d = row; d < row + dim; d += kLanes) sums[i] = multiply_add(load(a + d), load(b + d), sums[i]);
    }
    transpose_lanes(sums);
    Vec sum{};
    for (int i = 0; i < kLanes; ++i) sum += sums[i];
    store(to + r, multiply_add(sum, splat(factor), load(to + r)));
  }
}

/** rows *= factors [dim] */
FLASHATTN_CALLED void multiply_columns(float* rows /* [count][kRowStride] */, const float* factors /* [dim] */,
                                       int count, int dim) {
  for (int d = 0; d < dim; d += kLanes) {
    const Vec f = load(factors + d);
    for (int r = d; r < d + count * kRowStride; r += kRowStride) store(rows + r, load(rows + r) * f);
  }
}

}  // namespace detail

/** The decays of a chunk. */
struct alignas(kCacheLine) ChunkDecay {
  float position[kLinearChunk];  // e^g of each position; not of Decay::Channel
  float before[kLinearChunk];    // the product from the beginning of the chunk, with the position's own
  float after[kLinearChunk];     // the product of all that follow in the chunk
  float all;                     // the product of all
};

namespace detail {

FLASHATTN_CALLED void load_scalar_decay(const StateItem& at, int begin, int count, ChunkDecay& decay) {
  const RecurrenceParams& p = at.p;
  const int head = at.head_of(p.decay_heads);
  for (int i = 0; i < kLinearChunk; i += kLanes) store(decay.position + i, Vec{});
  if (p.decay_kind == Decay::Head) {
    const float g = load_scalar(p.decay, 0, 0, head);
    for (int i = 0; i < count; ++i) decay.position[i] = g;
  } else if (p.decay_kind == Decay::Position) {
    for (int i = 0; i < count; ++i)
      decay.position[i] = load_scalar(p.decay, at.sequence.batch, at.row(begin + i), head);
  }
  for (int i = 0; i < kLinearChunk; i += kLanes) store(decay.position + i, natural_exp(load(decay.position + i)));
  float product = 1;
  for (int i = 0; i < count; ++i) {
    product = without_dust(product * decay.position[i]);
    decay.before[i] = product;
  }
  decay.all = product;
  product = 1;
  for (int i = count; i-- > 0;) {
    decay.after[i] = product;
    product = without_dust(product * decay.position[i]);
  }
}

}  // namespace detail

}  // namespace flashattn
