// What a launch is told, shared by host and device. lib/backends/cuda/params.ts writes the same structs, so every field
// has a fixed size and place: 8-byte fields first within a struct, 4-byte fields after them, no implicit padding.
// Every tensor is seen as [batch, seq, heads, dim] with the last dim contiguous; strides count elements.
#pragma once
#include <cstdint>

namespace flashattn {

enum class DType : int32_t { Float32, Float16, BFloat16 };

struct TensorRef {
  void* data;                // [batch, seq, heads, dim]
  int64_t batch, seq, head;  // strides
};

/** One sequence of a batch: rows [query_begin, query_begin + query_length) of its batch entry, and keys likewise. */
struct Sequence {
  int32_t query_begin, query_length, key_begin, key_length;
};

struct BiasParams {
  const float* data;                // [batch|1, heads|1, query|1, key|1], broadcast by stride 0
  int64_t batch, head, query, key;  // strides
};

struct AlibiParams {
  const float* slopes;  // [batch|1, heads]
  int64_t batch;        // stride
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
  int32_t block_size, batch, heads, query_blocks, key_blocks, reserved;
};

struct AttentionParams {
  TensorRef query, key, value, out;
  float* lse;                   // [batch, heads, query] or [heads, total]; natural logarithm
  int64_t lse_batch, lse_head;  // strides, shared by lse, d_lse, delta and d_query_sum
  const Sequence* sequences;    // [batch], null: every sequence is whole
  BiasParams bias;
  AlibiParams alibi;
  RelativeParams relative;
  const float* sink;  // [heads]
  BlockMaskParams block_mask;
  DropoutParams dropout;
  DType dtype;  // of every TensorRef
  int32_t batch, heads, kv_heads, head_dim, value_dim, query_length, key_length;
  float scale, softcap;               // softcap 0: none
  int32_t window_left, window_right;  // kUnbounded: infinite; causal is window_right <= 0
  int32_t top_left;                   // 1: the diagonal starts at the first key, 0: it ends at the last
  int32_t deterministic;              // backward adds to d_query_sum in a fixed order

  // Backward only.
  TensorRef d_out, d_query, d_key, d_value;
  const float* d_lse;         // as lse, or null
  float* delta;               // as lse: sum(d_out * out) - d_lse; behind it row weights, as lse, and head ranges
  float* d_query_sum;         // [lse rows, bucket of head_dim]: the sum that becomes d_query
  int32_t* turns;             // [1 + batch * heads * query tiles]: tickets, then whose turn it is per query tile
  float* d_relative_partial;  // [relative_slices, heads, bucket_count, 2]: sums, and what they are too large by
  float* d_relative;          // [bucket_count, heads], or null
  float* d_sink;              // [heads], or null
  float* d_bias;              // contiguous, the shape of the bias, or null
  int64_t lse_rows;           // rows of lse over all batches and heads
  int32_t bias_batch, bias_heads, bias_query, bias_key;  // the shape of the bias
  int32_t relative_slices, reserved;
};

/** One of the states that `merge` combines: an out of any dtype and its lse. */
struct MergePart {
  TensorRef out;     // [batch, query, heads, value_dim]
  TensorRef d_out;   // backward only
  const float* lse;  // [batch, heads, query]
  float* d_lse;      // backward only
  DType dtype;       // of out and d_out
  int32_t reserved;
};

struct MergeParams {
  const MergePart* parts;  // [part_count], in device memory
  TensorRef out, d_out;    // d_out: backward only
  float* lse;              // [batch, heads, query]
  const float* d_lse;      // backward only, or null
  DType dtype;             // of out and d_out
  int32_t part_count, batch, heads, query_length, value_dim;
};

/** result[b, row] = scale * the sum of source[b, r] over the rows r of list `row`. */
struct GatherParams {
  const void* source;                // [batch, source rows, row_elements]
  void* result;                      // [batch, rows, row_elements], contiguous
  int64_t source_batch, source_row;  // strides
  BlockLists lists;                  // [rows] lists of source rows
  DType dtype;                       // of both
  int32_t batch, rows, row_elements;
  float scale;
  int32_t reserved;
};

/** to[i] = from[i], rounded to nearest even. */
struct ConvertParams {
  const void* from;  // [count]
  void* to;          // [count]
  int64_t count;
  DType from_dtype, to_dtype;
};

/** Fills `count` 32-bit words. */
struct FillParams {
  uint32_t* data;  // [count]
  int64_t count;
  uint32_t bits;
  int32_t reserved;
};

inline constexpr int kUnbounded = 0x3fffffff;
inline constexpr int kHeadDims[] = {32, 64, 96, 128, 192, 256};

/** The dims that kernels are compiled for: tiles are zero beyond the real dim. */
constexpr int head_dim_bucket(int dim) {
  for (const int bucket : kHeadDims)
    if (dim <= bucket) return bucket;
  return 0;
}

/** Of the larger of the two dims: one bucket serves queries, keys and values. */
constexpr int head_dim_bucket(const AttentionParams& p) {
  return head_dim_bucket(p.head_dim > p.value_dim ? p.head_dim : p.value_dim);
}

}  // namespace flashattn
