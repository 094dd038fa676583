// Attention whose heads are mixed, before the softmax and after it (lib/attention/headMixing.ts has the algebra), forward and
// backward.
#pragma once
#include "types.h"

namespace flashattn {

// Tiles of pairs: all heads of one are held at a time.
inline constexpr int kMixedQueries = 32;
inline constexpr int kMixedKeys = 64;

/**
 * How the heads of the pair of query i and key j are mixed: out_g = bias_g + sum_h (matrix_i,gh + sum_r up_j,rg down_j,rh) in_h
 * + diagonal_j,g in_g. Arrays are contiguous but for the strides of the matrix; without a matrix out is in.
 */
struct HeadMix {
  Pointer<const float> matrix;    // [batch, queries, out heads, in heads], or one for all of them: own is 0 then
  Pointer<const float> bias;      // [out heads], or null
  Pointer<const float> down, up;  // [batch, keys, rank, in heads] and [batch, keys, rank, out heads]
  Pointer<const float> diagonal;  // [batch, keys, heads], or null
  Pointer<float> d_matrix;        // as matrix, of all entries or one for all of them; backward only, as what follows
  Pointer<float> d_bias;          // of weights
  Pointer<float> d_down, d_up, d_diagonal;
  // Sums that are added up in the end: of a matrix of its own [batch, key splits, query tiles, out heads * in heads,
  // kMixedQueries], of others [walkers, out heads * in heads], and behind them [walkers, out heads] of a bias.
  Pointer<float> sums;
  int32_t own;   // 1: each query has a matrix
  int32_t rank;  // 0: keys have no factors
};
FLASHATTN_FIELDS(HeadMix, matrix, bias, down, up, diagonal, d_matrix, d_bias, d_down, d_up, d_diagonal, sums, own,
                 rank);

struct HeadMixingParams {
  TensorRef query, key, value, out;          // [batch, seq, heads, dim]
  TensorRef d_out, d_query, d_key, d_value;  // backward only
  HeadMix logits, weights;
  // [2, batch, softmax heads, padded queries]: what logits are seen from, and the inverse sum of powers; null: not kept
  Pointer<float> rows;
  Pointer<float> deltas;       // [batch, softmax heads, padded queries], the sum over keys of P dP; backward only
  Pointer<float> memory;       // [walkers, walker_floats]: what each of them works with
  Pointer<float> d_query_sum;  // [batch, key splits, padded queries, heads, padded head dim]
  int64_t walker_floats;
  int32_t batch, queries, keys;
  int32_t heads, softmax_heads, value_heads;
  int32_t head_dim, value_dim;
  int32_t window_left, window_right;  // kUnbounded: infinite; aligned at the last query and the last key
  int32_t walkers;                    // items: each walks over tiles of its own
  int32_t kept_tiles;                 // key tiles whose probabilities a walker keeps; 0: they are computed twice
  int32_t key_splits;                 // of backward
  float scale;

  constexpr int query_tiles() const { return (queries + kMixedQueries - 1) / kMixedQueries; }
  constexpr int padded_queries() const { return query_tiles() * kMixedQueries; }
};
FLASHATTN_FIELDS(HeadMixingParams, query, key, value, out, d_out, d_query, d_key, d_value, logits, weights, rows,
                 deltas, memory, d_query_sum, walker_floats, batch, queries, keys, heads, softmax_heads, value_heads,
                 head_dim, value_dim, window_left, window_right, walkers, kept_tiles, key_splits, scale);

}  // namespace flashattn
