// What a launch is told. Plain 32-bit fields in a fixed order: lib/backends/wasm/params.ts writes the same struct.
// Every tensor is seen as [batch, seq, heads, dim] with the last dim contiguous; strides count elements.
#pragma once
#include "element.h"

namespace flashattn {

struct TensorRef {
  uint8_t* data;  // [batch, seq, heads, dim]
  DType dtype;
  uint32_t batch, seq, head;  // strides

  uint8_t* row(int b, size_t i, int h) const {
    return data + (b * size_t(batch) + i * seq + h * size_t(head)) * element_size(dtype);
  }
};

/** One sequence of a batch: rows [query_begin, query_begin + query_length) of its batch entry, and keys likewise. */
struct Sequence {
  int32_t query_begin, query_length, key_begin, key_length;
};

struct BiasParams {
  const float* data;                 // [batch|1, heads|1, query|1, key|1], broadcast by stride 0
  uint32_t batch, head, query, key;  // strides
};

struct AlibiParams {
  const float* slopes;  // [batch|1, heads]
  uint32_t batch;       // stride
};

/** bias(i, j) = table[buckets[key_position[j] - query_position[i] + origin]] */
struct RelativeParams {
  const float* table;  // [bucket_count, heads]
  const int32_t* buckets;
  const int32_t* query_position;  // [query_length], null: i
  const int32_t* key_position;    // [key_length], null: j
  int32_t origin, bucket_count;
};

struct DropoutParams {
  uint32_t threshold;  // an element is kept iff its random word >= threshold; 0: no dropout
  float keep_scale;    // 1 / (1 - p)
  uint32_t seed_low, seed_high;
};

/** List r is indices[offsets[r]] to indices[offsets[r + 1] - 1], rising. */
struct BlockLists {
  const int32_t* offsets;
  const int32_t* indices;
};

/** A block mask as lib/blockmask/blockMask.ts describes it; block_size 0: none. */
struct BlockMaskParams {
  BlockLists full, partial;                  // [batch|1, heads|1, query blocks] lists of key blocks
  BlockLists full_queries, partial_queries;  // [batch|1, heads|1, key blocks] lists of query blocks
  const int32_t* partial_blocks;             // which block of `bits` each entry of partial_queries is
  const uint32_t* bits;                      // [partial blocks, block_size, block_size / 32]
  int32_t block_size, batch, heads, query_blocks, key_blocks;

  int grid(int b, int h) const { return (batch == 1 ? 0 : b) * heads + (heads == 1 ? 0 : h); }
};

struct AttentionParams {
  TensorRef query, key, value, out;
  float* lse;                    // [batch, heads, query] or [heads, total]; natural logarithm
  uint32_t lse_batch, lse_head;  // strides, shared by lse, d_lse, row_terms and d_query_partial
  int32_t batch, heads, kv_heads, head_dim, value_dim, query_length, key_length;
  const Sequence* sequences;          // [batch], null: every sequence is whole
  float scale, softcap;               // softcap 0: none
  int32_t window_left, window_right;  // kUnbounded: infinite; causal is window_right <= 0
  int32_t top_left;                   // 1: the diagonal starts at the first key, 0: it ends at the last
  int32_t tiles_per_item;
  BiasParams bias;
  AlibiParams alibi;
  RelativeParams relative;
  const float* sink;  // [heads]
  DropoutParams dropout;
  BlockMaskParams block_mask;

  float* decode_states;  // [key splits, lse rows, decode_state], see decode.h; null: not decoding
  uint32_t lse_rows;     // rows of lse over all batches and heads

  // Backward only.
  TensorRef d_out, d_query, d_key, d_value;
  const float* d_lse;      // as lse
  float* row_terms;        // [3, lse rows]: see RowTerms in backward.h
  float* d_query_partial;  // [key_splits, d_query_planes, lse rows, padded head_dim]
  int32_t key_splits;
  double* d_relative_partial;                            // [key_splits, batch, heads, bucket_count]
  float* d_relative;                                     // [bucket_count, heads]
  float* d_sink;                                         // [heads]
  float* d_bias;                                         // contiguous, the shape of the bias
  int32_t bias_batch, bias_heads, bias_query, bias_key;  // that shape

  int group() const { return heads / kv_heads; }
  size_t lse_row(int b, int h, int i) const { return b * size_t(lse_batch) + h * size_t(lse_head) + i; }
  Sequence sequence(int b) const { return sequences ? sequences[b] : Sequence{0, query_length, 0, key_length}; }
};

inline constexpr int kUnbounded = 0x3fffffff;

}  // namespace flashattn
