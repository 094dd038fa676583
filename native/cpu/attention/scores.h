// From Q K^T to logits: softcap, bias, relative positions, ALiBi and the mask, on one score tile [key][query].
//
// Logits are float32 in their natural unit, so that they reach as far as their inputs do: a finite one, however low, is
// a logit like any other, and only -Infinity hides. What leaves the range of float32 on its way (q.k, or a sum of its
// terms) is infinite, as it is in any float32 arithmetic: -Infinity hides the key, +Infinity makes the row NaN.
#pragma once
#include "attention/block_mask.h"
#include "simd/math.h"
#include "simd/philox.h"

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

// The scale is applied where it cannot overflow what fits in the end: to the queries when it makes them smaller, to their
// products with the keys when it makes those larger. One of the two factors is 1.
inline float query_factor(const AttentionParams& p) { return __builtin_fabsf(p.scale) < 1 ? p.scale : 1.0f; }
inline float product_factor(const AttentionParams& p) { return __builtin_fabsf(p.scale) < 1 ? 1.0f : p.scale; }

namespace detail {

/**
 * Visits the tile's elements, visible or not, one by one: f(score, query position, key position). Leaves out those among
 * both the first `done_queries` queries and the first `done_keys` keys.
 */
template <class F>
inline void for_each_score(const Place& at, float* scores, int done_queries, int done_keys, F f) {
  for (int j = 0; j < at.key_count(); ++j)
    for (int i = j < done_keys ? done_queries : 0; i < at.query_count(); ++i)
      f(scores[j * kQueryTile + i], at.queries.begin + i, at.keys.begin + j);
}

/** Visits whole vectors of queries: f(score vector address, query positions, key position). */
template <class F>
FLASHATTN_INLINE void for_each_vector(const Place& at, float* scores, F f) {
  for (int j = at.keys.begin; j < at.keys.end; ++j) {
    float* row = scores + (j - at.keys.begin) * kQueryTile;
    for (int v = 0; v < at.query_vectors(); ++v) f(row + v * kLanes, iota(at.queries.begin + v * kLanes), j);
  }
}

FLASHATTN_CALLED void apply_softcap(const Place& at, float* scores, float* slopes) {
  const Vec cap = splat(at.p.softcap);
  for_each_vector(at, scores, [&](float* s, IntVec, int) {
    const Vec t = tanh(load(s) / cap);
    if (slopes) store(slopes + (s - scores), splat(1.0f) - t * t);
    store(s, cap * t);
  });
}

/** A bias of -Infinity hides a key, and its NaN with it. */
FLASHATTN_INLINE Vec biased(Vec score, Vec bias) { return select(bias == splat(-kInfinity), bias, score + bias); }

/** Adds a square of kLanes queries x kLanes keys whose rows are contiguous in the bias. */
FLASHATTN_INLINE void add_bias_square(float* scores /* [key][query] */, const float* bias, size_t query_stride) {
  Vec square[kLanes];
#pragma clang loop unroll(full)
  for (int i = 0; i < kLanes; ++i) square[i] = load(bias + i * query_stride);
  transpose_lanes(square);
#pragma clang loop unroll(full)
  for (int j = 0; j < kLanes; ++j) store(scores + j * kQueryTile, biased(load(scores + j * kQueryTile), square[j]));
}

FLASHATTN_CALLED void add_bias(const Place& at, float* scores) {
  const BiasParams& bias = at.p.bias;
  const float* base = bias.data + at.b * size_t(bias.batch) + at.h * size_t(bias.head);
  // Where keys are contiguous, whole squares are transposed in registers; the rest goes one by one.
  const bool contiguous = bias.key == 1;
  const int square_keys = contiguous ? at.key_count() / kLanes * kLanes : 0;
  const int square_queries = contiguous ? at.query_count() / kLanes * kLanes : 0;
  for (int j = 0; j < square_keys; j += kLanes)
    for (int i = 0; i < square_queries; i += kLanes)
      add_bias_square(scores + j * kQueryTile + i,
                      base + (at.queries.begin + i) * size_t(bias.query) + at.keys.begin + j, bias.query);
  for_each_score(at, scores, square_queries, square_keys, [&](float& s, int i, int j) {
    const float b = base[i * size_t(bias.query) + j * size_t(bias.key)];
    s = b == -kInfinity ? b : s + b;
  });
}

FLASHATTN_CALLED void add_alibi(const Place& at, float* scores) {
  const Vec slope = splat(-at.p.alibi.slopes[at.b * size_t(at.p.alibi.batch) + at.h]);
  for_each_vector(at, scores, [&](float* s, IntVec i, int j) {
    const IntVec offset = i + (at.diagonal - j), sign = offset >> 31;
    const IntVec distance = (offset ^ sign) - sign;
    store(s, multiply_add(slope, __builtin_convertvector(distance, Vec), load(s)));
  });
}

}  // namespace detail

FLASHATTN_CALLED void scale_scores(const Place& at, float* scores, float factor) {
  for (int row = 0; row < at.key_count() * kQueryTile; row += kQueryTile)
    for (int v = 0; v < at.query_vectors() * kLanes; v += kLanes)
      store(scores + row + v, load(scores + row + v) * splat(factor));
}

inline int relative_bucket(const RelativeParams& r, int i, int j) {
  const int query = r.query_position ? r.query_position[i] : i, key = r.key_position ? r.key_position[j] : j;
  return r.buckets[key - query + r.origin];
}

/**
 * In: q.k, `factor` times smaller than it is to be. Out: logits. `softcap_slopes` (optional) receives d(softcap) / d(its
 * argument).
 */
FLASHATTN_CALLED void finish_scores(const Place& at, float* scores, float factor, float* softcap_slopes = nullptr) {
  const AttentionParams& p = at.p;
  if (factor != 1) scale_scores(at, scores, factor);
  if (p.softcap > 0) detail::apply_softcap(at, scores, softcap_slopes);
  if (p.bias.data) detail::add_bias(at, scores);
  if (p.relative.table)
    detail::for_each_score(at, scores, 0, 0, [&](float& s, int i, int j) {
      s += p.relative.table[relative_bucket(p.relative, i, j) * p.heads + at.h];
    });
  if (p.alibi.slopes) detail::add_alibi(at, scores);
}

/** Masked scores become -Infinity, whatever they were. */
FLASHATTN_CALLED void hide_scores(const Place& at, float* scores) {
  const Vec hidden = splat(-kInfinity);
  if (at.band.cover(at.queries, at.keys) == Cover::Partial) {
    detail::for_each_vector(at, scores, [&](float* s, IntVec i, int j) {
      const IntVec distance = j - i;
      store(s, select((distance >= at.band.low) & (distance <= at.band.high), load(s), hidden));
    });
  }
  if (!at.bits.words) return;
  for (int v = 0; v < at.query_vectors() * kLanes; v += kLanes) {
    UintVec visible{};
    for (int j = at.keys.begin; j < at.keys.end; ++j) {
      const int bit = j - at.bits.key;
      if (bit % 32 == 0 || j == at.keys.begin) visible = at.bits.gather(at.queries.begin + v, at.queries.end, bit / 32);
      float* s = scores + (j - at.keys.begin) * kQueryTile + v;
      store(s, select((IntVec)(visible << (31 - bit % 32)) < 0, load(s), hidden));
    }
  }
}

/** Which pairs a guarded product must skip: those hidden by the mask or by a bias of -Infinity. */
inline void mark_hidden(const Place& at, const float* scores, uint32_t* hidden /* [key][query] */) {
  for (int at_row = 0; at_row < at.key_count() * kQueryTile; at_row += kQueryTile)
    for (int v = 0; v < at.query_vectors() * kLanes; v += kLanes)
      store_bits(hidden + at_row + v, (UintVec)(load(scores + at_row + v) == splat(-kInfinity)));
}

/** Dropout factors of a tile: 0 or 1 / (1 - p). One Philox call yields four consecutive keys of a query. */
FLASHATTN_CALLED void dropout_factors(const Place& at, float* factors /* [key][query] */) {
  const DropoutParams& d = at.p.dropout;
  const uint32_t stream = static_cast<uint32_t>(at.b * at.p.heads + at.h);
  for (int j = at.keys.begin & ~3; j < at.keys.end; j += 4) {
    for (int v = 0; v < at.query_vectors(); ++v) {
      const UintVec i = (UintVec)iota(at.queries.begin + v * kLanes);
      const Philox random =
          philox(UintVec{} + uint32_t(j) / 4, i, UintVec{} + stream, UintVec{}, d.seed_low, d.seed_high);
      for (int w = 0; w < 4; ++w) {
        if (j + w < at.keys.begin || j + w >= at.keys.end) continue;
        const IntVec kept = random.word[w] >= d.threshold;
        store(factors + (j + w - at.keys.begin) * kQueryTile + v * kLanes,
              (Vec)((UintVec)splat(d.keep_scale) & (UintVec)kept));
      }
    }
  }
}

FLASHATTN_CALLED void multiply_scores(const Place& at, float* scores, const float* factors) {
  for (int row = 0; row < at.key_count() * kQueryTile; row += kQueryTile)
    for (int v = 0; v < at.query_vectors() * kLanes; v += kLanes)
      store(scores + row + v, load(scores + row + v) * load(factors + row + v));
}

}  // namespace flashattn
