// Online softmax (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018) over the key tiles of one
// warp's query rows: what FlashAttention keeps instead of the score matrix.
#pragma once
#include "scores.cuh"

namespace flashattn {

template <int RowTiles>
struct SoftmaxState {
  float maximum[RowTiles][2];  // of the scores so far, in their own unit
  float sum[RowTiles][2];      // of this lane's exponentials

  FLASHATTN_DEVICE SoftmaxState() {
#pragma unroll
    for (int m = 0; m < RowTiles; ++m) {
      maximum[m][0] = maximum[m][1] = -kInfinity;
      sum[m][0] = sum[m][1] = 0.0f;
    }
  }

  /**
   * Turns scores into exponentials relative to the new maximum, 2^(unit (s - maximum)), and scales what was accumulated
   * under the old one.
   */
  template <int ColumnTiles, int OutTiles>
  FLASHATTN_DEVICE void advance(Scores<RowTiles, ColumnTiles>& scores, float unit, Scores<RowTiles, OutTiles>& out) {
#pragma unroll
    for (int m = 0; m < RowTiles; ++m)
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
        float largest = maximum[m][lower];
#pragma unroll
        for (int n = 0; n < ColumnTiles; ++n)
          largest = fmaxf(largest, fmaxf(scores.s[m][n][lower * 2], scores.s[m][n][lower * 2 + 1]));
        largest = fmaxf(largest, ptx::shuffle_xor(largest, 1));
        largest = fmaxf(largest, ptx::shuffle_xor(largest, 2));
        const float origin = largest == -kInfinity ? 0.0f : largest * unit;
        // Most tiles leave every maximum of the warp as it is: then nothing has to be rescaled.
        if (ptx::ballot(largest != maximum[m][lower])) {
          const float correction = ptx::exp2(maximum[m][lower] * unit - origin);
          maximum[m][lower] = largest;
          sum[m][lower] *= correction;
#pragma unroll
          for (int d = 0; d < OutTiles; ++d) {
            out.s[m][d][lower * 2] *= correction;
            out.s[m][d][lower * 2 + 1] *= correction;
          }
        }
#pragma unroll
        for (int n = 0; n < ColumnTiles; ++n)
#pragma unroll
          for (int e = lower * 2; e < lower * 2 + 2; ++e) {
            scores.s[m][n][e] = ptx::exp2(scores.s[m][n][e] * unit - origin);
            sum[m][lower] += scores.s[m][n][e];
          }
      }
  }

  struct Row {
    float factor;  // what the accumulated out has to be multiplied by
    float lse;     // natural logarithm; -Infinity for a row that sees nothing
  };

  /** Of row group + 8 `lower` of row tile m; `sink` in units of log 2, -Infinity for none. All lanes of a group agree. */
  FLASHATTN_DEVICE Row finish(int m, int lower, float unit, float sink) const {
    float total = sum[m][lower];
    total += ptx::shuffle_xor(total, 1);
    total += ptx::shuffle_xor(total, 2);
    const float largest = maximum[m][lower] == -kInfinity ? -kInfinity : maximum[m][lower] * unit;
    const float top = fmaxf(largest, sink);
    if (top == -kInfinity) return {total == 0.0f ? 0.0f : 1.0f / total, total == 0.0f ? -kInfinity : total};
    // The sink is a key of value zero: it takes its share of the sum and adds nothing to out.
    const float weight = ptx::exp2(largest - top);
    const float whole = total * weight + (sink == -kInfinity ? 0.0f : ptx::exp2(sink - top));
    return {whole == 0.0f ? 0.0f : weight / whole, top * kLn2 + ptx::log(whole)};
  }
};

}  // namespace flashattn
