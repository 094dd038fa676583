// From Q K^T to logits: scale, softcap, bias, relative positions, ALiBi, score_mod and the mask, on the accumulators of one
// warp.
// Logits are natural, so that no finite one becomes infinite on the way. Forward has queries down the rows of its score
// tile and keys along its columns, backward the other way round.
#pragma once
#include "band.cuh"
#include "fragment.cuh"
#include "philox.cuh"
#include "score_mod.cuh"

namespace flashattn {

inline constexpr float kLog2E = 1.44269504088896340736f;
inline constexpr float kLn2 = 0.69314718055994530942f;
inline constexpr float kInfinity = __builtin_huge_valf();
inline constexpr float kLargest = 3.4028234663852886e38f;

/**
 * Logits of this size are subtracted from each other before they are scaled to units of log 2, and rows with such an lse
 * know what their probabilities add up to (row_weights.cuh). Where float32 numbers lie far apart, a row of equal logits
 * would else get probabilities of 0 or Infinity.
 */
inline constexpr float kCoarse = 1024.0f;
FLASHATTN_DEVICE bool is_coarse(float logit) { return fabsf(logit) >= kCoarse; }
FLASHATTN_DEVICE bool is_coarse_lse(float lse) { return is_coarse(lse) && lse != -kInfinity; }

enum class RowsAre { Queries, Keys };

/** A warp's score tile. */
template <int RowTiles, int ColumnTiles>
using Scores = Sums<RowTiles, ColumnTiles>;

/** Where a lane's elements of a score tile lie; positions are local to the sequence. */
template <RowsAre Orientation>
struct Positions {
  int row, column;  // of element 0

  FLASHATTN_DEVICE Positions(int first_row, int first_column, Lane lane)
      : row(first_row + lane.group),
        column(first_column + 2 * lane.quad) {}

  FLASHATTN_DEVICE int row_of(int m, int e) const { return row + m * 16 + e / 2 * 8; }
  FLASHATTN_DEVICE int column_of(int n, int e) const { return column + n * 8 + e % 2; }
  FLASHATTN_DEVICE int query(int m, int n, int e) const {
    return Orientation == RowsAre::Queries ? row_of(m, e) : column_of(n, e);
  }
  FLASHATTN_DEVICE int key(int m, int n, int e) const {
    return Orientation == RowsAre::Queries ? column_of(n, e) : row_of(m, e);
  }
};

/** f(element, query, key) for every element of a lane. */
template <RowsAre Orientation, int RowTiles, int ColumnTiles, class F>
FLASHATTN_DEVICE void for_each_score(Scores<RowTiles, ColumnTiles>& scores, const Positions<Orientation>& at, F f) {
#pragma unroll
  for (int m = 0; m < RowTiles; ++m)
#pragma unroll
    for (int n = 0; n < ColumnTiles; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) f(scores.s[m][n][e], at.query(m, n, e), at.key(m, n, e));
}

/** Which head of which sequence, and what is the same for all of its tiles. */
struct Head {
  const AttentionParams& p;
  int b, h;
  Sequence sequence;
  int diagonal;
  Band band;

  FLASHATTN_DEVICE Head(const AttentionParams& params, int batch, int head, Sequence of_batch)
      : p(params),
        b(batch),
        h(head),
        sequence(of_batch),
        diagonal(diagonal_of(params, sequence)),
        band(params, diagonal) {}
  FLASHATTN_DEVICE Head(const AttentionParams& params, int batch, int head)
      : Head(params, batch, head, sequence_of(params, batch)) {}

  FLASHATTN_DEVICE int kv_head() const { return h / (p.heads / p.kv_heads); }
  FLASHATTN_DEVICE int64_t lse_row(int query) const {
    return b * p.lse_batch + h * p.lse_head + sequence.query_begin + query;
  }
  /** Of backward: the sum of e^(logit - lse) over a row, 1 but for the rounding of lse. Where lse is coarse. */
  FLASHATTN_DEVICE float* row_weight(int query) const { return p.row_terms + p.lse_rows + lse_row(query); }
  FLASHATTN_DEVICE Range keys_at(int begin, int count) const {
    return {begin, min_of(begin + count, sequence.key_length)};
  }
  FLASHATTN_DEVICE Range queries_at(int begin, int count) const {
    return {begin, min_of(begin + count, sequence.query_length)};
  }
};

/** The bits of a query for the keys from `key` on, up to the next multiple of 32. */
FLASHATTN_DEVICE uint32_t bits_from(const BlockMaskParams& m, const uint32_t* bits, int query, int key) {
  const int inside = m.block_size - 1;  // a power of 2
  const int row = query & inside, column = key & inside;
  return ptx::load_global(bits + row * (m.block_size >> 5) + (column >> 5)) >> (column & 31);
}

/** Whether a pair is visible: within both lengths, in the band, and by the bits of its block, if it is a partial one. */
FLASHATTN_DEVICE bool is_visible(const Head& head, const uint32_t* bits, int query, int key) {
  return key < head.sequence.key_length && query < head.sequence.query_length && head.band.sees(query, key) &&
         (!bits || bits_from(head.p.block_mask, bits, query, key) & 1);
}

namespace detail {

/** Of a tile of queries by keys: a word holds four accumulators of a row. */
template <int RowTiles, int ColumnTiles>
FLASHATTN_DEVICE void hide_by_bits(const BlockMaskParams& mask, const uint32_t* bits,
                                   const Positions<RowsAre::Queries>& at, Scores<RowTiles, ColumnTiles>& scores) {
#pragma unroll
  for (int m = 0; m < RowTiles; ++m)
#pragma unroll
    for (int e = 0; e < 4; e += 2)
#pragma unroll
      for (int first = 0; first < ColumnTiles; first += 4) {
        const uint32_t word = bits_from(mask, bits, at.row_of(m, e), at.column_of(first, 0));
#pragma unroll
        for (int n = first; n < first + 4 && n < ColumnTiles; ++n) {
          if (!(word >> ((n - first) * 8) & 1)) scores.s[m][n][e] = -kInfinity;
          if (!(word >> ((n - first) * 8 + 1) & 1)) scores.s[m][n][e + 1] = -kInfinity;
        }
      }
}

/** Of a tile of keys by queries: a word holds both keys of a column. */
template <int RowTiles, int ColumnTiles>
FLASHATTN_DEVICE void hide_by_bits(const BlockMaskParams& mask, const uint32_t* bits,
                                   const Positions<RowsAre::Keys>& at, Scores<RowTiles, ColumnTiles>& scores) {
#pragma unroll
  for (int m = 0; m < RowTiles; ++m)
#pragma unroll
    for (int n = 0; n < ColumnTiles; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const uint32_t word = bits_from(mask, bits, at.column_of(n, e), at.row_of(m, 0));
        if (!(word & 1)) scores.s[m][n][e] = -kInfinity;
        if (!(word >> 8 & 1)) scores.s[m][n][e + 2] = -kInfinity;
      }
}

}  // namespace detail

/** What backward knows of a row of forward. */
struct SavedRow {
  float lse;             // of an empty row +Infinity, so that every probability is 0
  float inverse_weight;  // 1 / Head::row_weight
  float delta;

  FLASHATTN_DEVICE static SavedRow load(const Head& head, int query) {
    const int64_t row = head.lse_row(query);
    const float lse = ptx::load_global(head.p.lse + row);
    const float weight = is_coarse_lse(lse) ? ptx::load_global(head.row_weight(query)) : 1.0f;
    return {lse == -kInfinity ? kInfinity : lse, 1.0f / weight, ptx::load_global(head.p.row_terms + row)};
  }
  FLASHATTN_DEVICE bool is_empty() const { return lse == kInfinity; }
  FLASHATTN_DEVICE float probability(float logit) const { return ptx::exp2((logit - lse) * kLog2E) * inverse_weight; }
};

/** Hidden scores become -Infinity, whatever they were. */
template <RowsAre Orientation, int RowTiles, int ColumnTiles>
FLASHATTN_DEVICE void hide_scores(const Head& head, const uint32_t* bits, const Positions<Orientation>& at,
                                  Scores<RowTiles, ColumnTiles>& scores) {
  for_each_score(scores, at, [&](float& s, int query, int key) {
    if (!is_visible(head, nullptr, query, key)) s = -kInfinity;
  });
  if (bits) detail::hide_by_bits(head.p.block_mask, bits, at, scores);
}

// The steps from q.k to a logit, for one pair. Biases are read for pairs within both lengths only.

struct Capped {
  float score, slope;  // d(softcap) / d(its argument)
};

FLASHATTN_DEVICE Capped cap_score(const AttentionParams& p, float score) {
  // Of a subnormal softcap 1 / softcap may be infinite, and its product with 0 no number.
  const float t = ptx::tanh(score * p.scale * fminf(1.0f / p.softcap, kLargest));
  return {ptx::product(t, p.softcap), 1.0f - t * t};
}

/** A bias of -Infinity hides a key, and its NaN with it. */
FLASHATTN_DEVICE float add_bias(const Head& head, float score, int query, int key) {
  const BiasParams& bias = head.p.bias;
  const float value =
      ptx::load_global(bias.data + head.b * bias.batch + head.h * bias.head + query * bias.query + key * bias.key);
  return value == -kInfinity ? value : score + value;
}

namespace detail {

FLASHATTN_DEVICE int position_of(const int32_t* positions, int i) {
  return positions ? ptx::load_global(positions + i) : i;
}

}  // namespace detail

FLASHATTN_DEVICE int relative_bucket(const RelativeParams& r, int query, int key) {
  const int offset = detail::position_of(r.key_position, key) - detail::position_of(r.query_position, query);
  return ptx::load_global(r.buckets + offset + r.origin);
}

FLASHATTN_DEVICE float add_relative(const Head& head, float score, int query, int key) {
  const RelativeParams& r = head.p.relative;
  const int64_t row = relative_bucket(r, query, key);
  return score + ptx::load_global(r.table + row * head.p.heads + head.h);
}

FLASHATTN_DEVICE float alibi_slope(const Head& head) {
  return ptx::load_global(head.p.alibi.slopes + head.b * head.p.alibi.batch + head.h);
}

FLASHATTN_DEVICE float add_alibi(const Head& head, float score, float slope, int query, int key) {
  const int distance = query + head.diagonal - key;
  return score - slope * static_cast<float>(distance < 0 ? -distance : distance);
}

/**
 * In: q.k of a pair. Out: its logit, and the slope of softcap and score_mod. Without `HasExtras` the latter is left out: a
 * call of it in a kernel that has none changes how registers are given out.
 */
template <bool HasExtras>
FLASHATTN_DEVICE Capped finish_score(const Head& head, float dot, int query, int key) {
  const AttentionParams& p = head.p;
  Capped capped = p.softcap > 0 ? cap_score(p, dot) : Capped{ptx::product(dot, p.scale), 1.0f};
  if (p.bias.data) capped.score = add_bias(head, capped.score, query, key);
  if (p.relative.table) capped.score = add_relative(head, capped.score, query, key);
  if (p.alibi.slopes) capped.score = add_alibi(head, capped.score, alibi_slope(head), query, key);
  if (HasExtras && p.score_mod.program) {
    const float4 scores = make_float4(capped.score, 0.0f, 0.0f, 0.0f);
    const ModifiedScores modified = modify_scores(p, {head.b, head.h, query, key, false}, scores, true);
    capped.score = modified.value.x;
    capped.slope *= modified.slope.x;
  }
  return capped;
}

namespace detail {

/** Puts `next` behind the others; the first is lost: see `shift`. */
template <int RowTiles, int ColumnTiles>
FLASHATTN_DEVICE void shift_quads(Scores<RowTiles, ColumnTiles>& scores, float4 next) {
#pragma unroll
  for (int quad = 0; quad < RowTiles * ColumnTiles; ++quad) {
    const int after = quad + 1;
    float(&to)[4] = scores.s[quad / ColumnTiles][quad % ColumnTiles];
    if (after == RowTiles * ColumnTiles) {
      to[0] = next.x, to[1] = next.y, to[2] = next.z, to[3] = next.w;
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e) to[e] = scores.s[after / ColumnTiles][after % ColumnTiles][e];
    }
  }
}

/** Replaces the scores of a tile; `slopes` (optional) are multiplied by the derivatives. */
template <RowsAre Orientation, int RowTiles, int ColumnTiles>
FLASHATTN_DEVICE void modify_tile(const Head& head, const Positions<Orientation>& at,
                                  Scores<RowTiles, ColumnTiles>& scores, Scores<RowTiles, ColumnTiles>* slopes) {
#pragma unroll 1
  for (int quad = 0; quad < RowTiles * ColumnTiles; ++quad) {
    const int row = at.row + quad / ColumnTiles * 16, column = at.column + quad % ColumnTiles * 8;
    const ScorePlace place{head.b, head.h, row, column, Orientation == RowsAre::Keys};
    const float(&first)[4] = scores.s[0][0];
    const ModifiedScores modified =
        modify_scores(head.p, place, make_float4(first[0], first[1], first[2], first[3]), slopes != nullptr);
    shift_quads(scores, modified.value);
    if (!slopes) continue;
    const float(&slope)[4] = slopes->s[0][0];
    shift_quads(*slopes, make_float4(slope[0] * modified.slope.x, slope[1] * modified.slope.y,
                                     slope[2] * modified.slope.z, slope[3] * modified.slope.w));
  }
}

}  // namespace detail

/** What slopes are the derivatives of logits by: q.k times the scale, or what score_mod is given. */
enum class SlopesBy { Product, Score };

/**
 * The same for a tile. `slopes` (optional): by the product, it is written where softcap or score_mod make some; by the score,
 * it is multiplied by those of score_mod. `HasMod`: see HasExtras.
 */
template <SlopesBy By = SlopesBy::Product, bool HasMod = true, RowsAre Orientation, int RowTiles, int ColumnTiles>
FLASHATTN_DEVICE void finish_scores(const Head& head, const Positions<Orientation>& at,
                                    Scores<RowTiles, ColumnTiles>& scores,
                                    Scores<RowTiles, ColumnTiles>* slopes = nullptr) {
  const AttentionParams& p = head.p;
  const Sequence& s = head.sequence;
  const auto exists = [&](int query, int key) { return query < s.query_length && key < s.key_length; };
  if (p.softcap > 0) {
#pragma unroll
    for (int m = 0; m < RowTiles; ++m)
#pragma unroll
      for (int n = 0; n < ColumnTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const Capped capped = cap_score(p, scores.s[m][n][e]);
          scores.s[m][n][e] = capped.score;
          if (By == SlopesBy::Product && slopes) slopes->s[m][n][e] = capped.slope;
        }
  } else {
    for_each_score(scores, at, [&](float& score, int, int) { score = ptx::product(score, p.scale); });
  }
  if (p.bias.data)
    for_each_score(scores, at, [&](float& score, int query, int key) {
      if (exists(query, key)) score = add_bias(head, score, query, key);
    });
  if (p.relative.table)
    for_each_score(scores, at, [&](float& score, int query, int key) {
      if (exists(query, key)) score = add_relative(head, score, query, key);
    });
  if (p.alibi.slopes) {
    const float slope = alibi_slope(head);
    for_each_score(scores, at,
                   [&](float& score, int query, int key) { score = add_alibi(head, score, slope, query, key); });
  }
  if (HasMod && p.score_mod.program) {
    if (By == SlopesBy::Product && slopes && !(p.softcap > 0))
      for_each_score(*slopes, at, [](float& slope, int, int) { slope = 1.0f; });
    detail::modify_tile(head, at, scores, slopes);
  }
}

/** dS of probabilities p. Slopes of hidden pairs may be anything. */
template <int RowTiles, int ColumnTiles>
FLASHATTN_DEVICE void multiply_by_slopes(Scores<RowTiles, ColumnTiles>& d, const Scores<RowTiles, ColumnTiles>& p,
                                         const Scores<RowTiles, ColumnTiles>& slopes) {
#pragma unroll
  for (int m = 0; m < RowTiles; ++m)
#pragma unroll
    for (int n = 0; n < ColumnTiles; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) d.s[m][n][e] *= p.s[m][n][e] == 0.0f ? 0.0f : slopes.s[m][n][e];
}

/** Whether scores that the mask shows may be -Infinity, which hides. */
FLASHATTN_DEVICE bool scores_hide(const AttentionParams& p) { return p.bias.data || p.score_mod.program; }

/** The four words that decide about keys 4 floor(key / 4) to + 3 of a query. */
FLASHATTN_DEVICE Philox random_of(const Head& head, int query, int key) {
  const uint32_t stream = static_cast<uint32_t>(head.b * head.p.heads + head.h);
  return philox(static_cast<uint32_t>(key) / 4, static_cast<uint32_t>(query), stream, head.p.dropout.seed_low,
                head.p.dropout.seed_high);
}

/** Dropout's factor of a pair, 0 or 1 / (1 - p): it depends on seed, head and position alone. */
FLASHATTN_DEVICE float keep_factor(const Head& head, const Philox& random, int key) {
  const uint32_t low = key % 2 ? random.word[1] : random.word[0], high = key % 2 ? random.word[3] : random.word[2];
  return (key % 4 >= 2 ? high : low) >= head.p.dropout.threshold ? head.p.dropout.keep_scale : 0.0f;
}

/** Multiplies by dropout's factors. */
template <RowsAre Orientation, int RowTiles, int ColumnTiles>
FLASHATTN_DEVICE void drop_out(const Head& head, const Positions<Orientation>& at,
                               Scores<RowTiles, ColumnTiles>& values) {
#pragma unroll
  for (int m = 0; m < RowTiles; ++m)
#pragma unroll
    for (int n = 0; n < ColumnTiles; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        // Along a row of keys, two neighbours of a lane always share the four words of one counter.
        constexpr bool kShared = Orientation == RowsAre::Queries;
        if (kShared && e % 2) continue;
        const int key = at.key(m, n, e);
        const Philox random = random_of(head, at.query(m, n, e), key);
        values.s[m][n][e] *= keep_factor(head, random, key);
        if constexpr (kShared) values.s[m][n][e + 1] *= keep_factor(head, random, key + 1);
      }
}

}  // namespace flashattn
