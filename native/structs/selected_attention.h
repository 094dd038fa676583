// What attention is told whose queries have lists of key blocks of their own, forward and backward.
#pragma once
#include "types.h"

namespace flashattn {

/**
 * Query heads that share a kv head share a list of blocks at each position, and see the keys of these blocks up to their own
 * position. Forward and backward take the same struct; what one does not use is null.
 */
struct SelectedAttentionParams {
  TensorRef query, key, value, out;  // [batch, seq, heads or kv heads, head_dim or value_dim]
  Pointer<const int32_t> blocks;     // [batch, seq, kv heads, slots]; what is not in [0, blocks) is no block
  Pointer<float> lse;                // [batch, heads, seq]
  Pointer<float> row_terms;          // [2, batch, heads, seq], reference and logarithm of the sum; null: not kept

  // Backward only.
  TensorRef d_out, d_query, d_key, d_value;
  Pointer<const float> d_lse;             // as lse, or null: zero
  Pointer<float> d_key_sum, d_value_sum;  // [splits, planes, batch, kv heads, seq, padded dim]

  int32_t batch, seq, heads, kv_heads, head_dim, value_dim, slots, block_size;
  int32_t split_positions;  // of a part of the sequence that has sums of its own
  int32_t planes;           // of its sums: 2 where many are added up
  float scale;
  int32_t reserved;

  constexpr int group() const { return heads / kv_heads; }
  constexpr int splits() const { return (seq + split_positions - 1) / split_positions; }
  constexpr size_t lse_rows() const {
    return static_cast<size_t>(batch) * static_cast<size_t>(heads) * static_cast<size_t>(seq);
  }
  constexpr size_t lse_row(int b, int h, int i) const {
    return (static_cast<size_t>(b) * static_cast<size_t>(heads) + static_cast<size_t>(h)) * static_cast<size_t>(seq) +
           static_cast<size_t>(i);
  }
};
FLASHATTN_FIELDS(SelectedAttentionParams, query, key, value, out, blocks, lse, row_terms, d_out, d_query, d_key,
                 d_value, d_lse, d_key_sum, d_value_sum, batch, seq, heads, kv_heads, head_dim, value_dim, slots,
                 block_size, split_positions, planes, scale, reserved);

}  // namespace flashattn
