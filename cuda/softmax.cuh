// Online softmax (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018) over the key tiles of one
// warp's query rows: what FlashAttention keeps instead of the score matrix.
//
// Sums over keys do not lose more the more keys there are: those of a tile are few, and what an addition of a tile cuts
// off is added with the next (sum.cuh). That holds for the denominator. The sums of out are left to tensor cores in 16
// bits, which keep no more than float32 and cut below it: of values of one sign over N keys they lose up to N / 16 units of
// 2^-24, more than half a unit of float16 from about 130,000 keys on, of bfloat16 from a million. In float32 they are
// rounded once for every 16 keys, and carried to memory every kCarryRows keys (carry.cuh).
#pragma once
#include "range.cuh"
#include "scores.cuh"
#include "sum.cuh"

namespace flashattn {

/** From scores to logits, and to the exponentials that are kept. */
struct SoftmaxUnit {
  float logit;  // a score times this is a logit
  int shift;    // exponentials are kept as 2^shift times their value

  /** A score times this is a logit in units of log 2. */
  FLASHATTN_DEVICE float log2() const { return logit * kLog2E; }
  /** What is taken from scores in units of log 2: the largest of them, but for a rounding that all share, and the shift. */
  FLASHATTN_DEVICE float origin(float largest) const {
    return ptx::product(largest, log2()) - static_cast<float>(shift);
  }
};

/** `Carries`: whether sums of out are carried to memory (carry.cuh). */
template <int RowTiles, bool Carries = false>
struct SoftmaxState {
  float maximum[RowTiles][2];                // of the scores so far, in their own unit
  float sum[RowTiles][2];                    // of this lane's exponentials
  float lost[RowTiles][2];                   // what `sum` is too large by
  float carried[Carries ? RowTiles : 1][2];  // what has been carried of out is to be multiplied by

  FLASHATTN_DEVICE SoftmaxState() {
#pragma unroll
    for (int m = 0; m < RowTiles; ++m) {
      maximum[m][0] = maximum[m][1] = -kInfinity;
      sum[m][0] = sum[m][1] = lost[m][0] = lost[m][1] = 0.0f;
    }
    if constexpr (Carries) start_carry();
  }

  /** What has been summed up so far is in memory. */
  FLASHATTN_DEVICE void start_carry() {
#pragma unroll
    for (auto& row : carried) row[0] = row[1] = 1.0f;
  }

  /**
   * Turns scores into exponentials relative to the new maximum, 2^(unit (s - maximum)), and scales what was accumulated
   * under the old one. All rows take each step together: one by one, each would wait for its own maximum.
   */
  template <int ColumnTiles, int OutTiles>
  FLASHATTN_DEVICE void advance(Scores<RowTiles, ColumnTiles>& scores, SoftmaxUnit unit,
                                Scores<RowTiles, OutTiles>& out) {
    float largest[RowTiles][2], origin[RowTiles][2];
    find_maxima(scores, largest);
    bool rescales = false;
#pragma unroll
    for (int m = 0; m < RowTiles; ++m)
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
        origin[m][lower] = unit.origin(largest[m][lower]);
        rescales = rescales || is_coarse(origin[m][lower]) || largest[m][lower] != maximum[m][lower];
      }
    // Most tiles leave every maximum of the warp as it is.
    if (ptx::ballot(rescales)) rescale(scores, unit, largest, origin, out);
    const float log2 = unit.log2();
#pragma unroll
    for (int m = 0; m < RowTiles; ++m)
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
        float tile = 0.0f;
#pragma unroll
        for (int n = 0; n < ColumnTiles; ++n)
#pragma unroll
          for (int e = lower * 2; e < lower * 2 + 2; ++e) {
            scores.s[m][n][e] = ptx::exp2(scores.s[m][n][e] * log2 - origin[m][lower]);
            tile += scores.s[m][n][e];
          }
        add_compensated_finite(sum[m][lower], lost[m][lower], tile);
      }
  }

  struct Row {
    float factor;  // what the accumulated out has to be multiplied by
    float lse;     // natural logarithm; -Infinity for a row that sees nothing
  };

  /** Of row group + 8 `lower` of row tile m; `sink`: a logit, -Infinity for none. All lanes of a group agree. */
  FLASHATTN_DEVICE Row finish(int m, int lower, SoftmaxUnit unit, float sink) const {
    float total = sum[m][lower] - lost[m][lower];
    total += ptx::shuffle_xor(total, 1);
    total += ptx::shuffle_xor(total, 2);
    total *= power_of_two(-unit.shift);
    const float largest = maximum[m][lower];
    const bool empty = largest == -kInfinity;
    // As in `advance`, in units of log 2 as long as that is exact enough.
    float top_of_keys = unit.origin(largest) + static_cast<float>(unit.shift), top_of_sink = sink * kLog2E;
    float to_log2 = 1.0f, to_natural = kLn2;
    if (empty || is_coarse(unit.origin(largest)) || top_of_sink >= kCoarse) {
      top_of_keys = empty ? largest : ptx::product(largest, unit.logit);
      top_of_sink = sink;
      to_log2 = kLog2E;
      to_natural = 1.0f;
    }
    const float top = fmaxf(top_of_keys, top_of_sink);
    if (top == -kInfinity) return {total == 0.0f ? 0.0f : 1.0f / total, total == 0.0f ? -kInfinity : total};
    // The sink is a key of value zero: it takes its share of the sum and adds nothing to out.
    const float weight = ptx::exp2((top_of_keys - top) * to_log2);
    const float whole = total * weight + (sink == -kInfinity ? 0.0f : ptx::exp2((top_of_sink - top) * to_log2));
    const float factor = whole == 0.0f ? 0.0f : weight / whole * power_of_two(-unit.shift);
    return {factor, ptx::product(top, to_natural) + ptx::log(whole)};
  }

 private:
  /** The largest scores so far, of whole rows. */
  template <int ColumnTiles>
  FLASHATTN_DEVICE void find_maxima(const Scores<RowTiles, ColumnTiles>& scores, float (&largest)[RowTiles][2]) const {
#pragma unroll
    for (int m = 0; m < RowTiles; ++m)
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
        float even = maximum[m][lower], odd = -kInfinity;
#pragma unroll
        for (int n = 0; n < ColumnTiles; ++n) {
          even = fmaxf(even, scores.s[m][n][lower * 2]);
          odd = fmaxf(odd, scores.s[m][n][lower * 2 + 1]);
        }
        largest[m][lower] = fmaxf(even, odd);
      }
#pragma unroll
    for (int step = 1; step < 4; step *= 2)
#pragma unroll
      for (int m = 0; m < RowTiles; ++m)
#pragma unroll
        for (int lower = 0; lower < 2; ++lower)
          largest[m][lower] = fmaxf(largest[m][lower], ptx::shuffle_xor(largest[m][lower], step));
  }

  /**
   * From the old maxima to the new ones. Rows whose origin is coarse give their maximum up to the scores and get the
   * origin of 0; those that have seen nothing yet, whose origin is -Infinity, get it too.
   */
  template <int ColumnTiles, int OutTiles>
  FLASHATTN_DEVICE void rescale(Scores<RowTiles, ColumnTiles>& scores, SoftmaxUnit unit,
                                const float (&largest)[RowTiles][2], float (&origin)[RowTiles][2],
                                Scores<RowTiles, OutTiles>& out) {
#pragma unroll
    for (int m = 0; m < RowTiles; ++m)
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
        const float before = maximum[m][lower], now = largest[m][lower];
        const bool empty = now == -kInfinity, coarse = !empty && is_coarse(origin[m][lower]);
        if (empty || coarse) origin[m][lower] = unit.origin(0.0f);
        const float step = coarse ? (before - now) * unit.log2() : unit.origin(before) - origin[m][lower];
        const float correction = before == now ? 1.0f : ptx::exp2(step);
        maximum[m][lower] = now;
        sum[m][lower] *= correction;
        lost[m][lower] *= correction;
        if constexpr (Carries) carried[m][lower] *= correction;
#pragma unroll
        for (int d = 0; d < OutTiles; ++d) {
          out.s[m][d][lower * 2] *= correction;
          out.s[m][d][lower * 2 + 1] *= correction;
        }
#pragma unroll
        for (int n = 0; n < ColumnTiles; ++n)
#pragma unroll
          for (int e = lower * 2; e < lower * 2 + 2; ++e)
            if (coarse) scores.s[m][n][e] -= now;
      }
  }
};

}  // namespace flashattn
