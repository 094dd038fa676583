// What attention is told, forward and backward.
#pragma once
#include "score_mod.h"

namespace flashattn {

/** One sequence of a batch: rows [query_begin, query_begin + query_length) of its batch entry, and keys likewise. */
struct Sequence {
  int32_t query_begin, query_length, key_begin, key_length;
};

struct BiasParams {
  Pointer<const float> data;        // [batch, heads, query, key]
  int64_t batch, head, query, key;  // strides; 0 where it broadcasts
};
FLASHATTN_FIELDS(BiasParams, data, batch, head, query, key);

struct AlibiParams {
  Pointer<const float> slopes;  // [batch|1, heads]
  int64_t batch;                // stride
};
FLASHATTN_FIELDS(AlibiParams, slopes, batch);

/** bias(i, j) = table[buckets[key_position[j] - query_position[i] + origin]] */
struct RelativeParams {
  Pointer<const float> table;  // [bucket_count, heads]
  Pointer<const int32_t> buckets;
  Pointer<const int32_t> query_position;  // [query_length], null: i
  Pointer<const int32_t> key_position;    // [key_length], null: j
  int32_t origin, bucket_count;
};
FLASHATTN_FIELDS(RelativeParams, table, buckets, query_position, key_position, origin, bucket_count);

struct RotaryAngles {
  Pointer<const float> cos, sin;  // [positions, pairs]
};
FLASHATTN_FIELDS(RotaryAngles, cos, sin);

/** Dims i and i + pairs, or 2 i and 2 i + 1, are turned by angle [position, i]; pairs 0: none are. On processors. */
struct RotaryParams {
  RotaryAngles query, key;
  int32_t pairs, interleaved;
};
FLASHATTN_FIELDS(RotaryParams, query, key, pairs, interleaved);

/**
 * Keys and values in pages: position j of a sequence is row [table[b][j / size] * size + j % size] of tensors without a batch;
 * size 0: they are where a sequence says. On processors.
 */
struct PageParams {
  Pointer<const int32_t> table;  // [batch, pages]
  int32_t size, pages;

  constexpr int64_t row(int b, int j) const { return int64_t{table[b * int64_t{pages} + j / size]} * size + j % size; }
};
FLASHATTN_FIELDS(PageParams, table, size, pages);

struct DropoutParams {
  uint32_t threshold;  // an element is kept iff its random word >= threshold; 0: no dropout
  float keep_scale;    // 1 / (1 - p)
  uint32_t seed_low, seed_high;
};
FLASHATTN_FIELDS(DropoutParams, threshold, keep_scale, seed_low, seed_high);

/** A block mask as lib/blockmask/blockMask.ts describes it; block_size 0: none. */
struct BlockMaskParams {
  BlockLists full, partial;                  // [batch|1, heads|1, query blocks] lists of key blocks
  BlockLists full_queries, partial_queries;  // [batch|1, heads|1, key blocks] lists of query blocks
  Pointer<const int32_t> partial_blocks;     // which block of `bits` each entry of partial_queries is
  Pointer<const uint32_t> bits;              // [partial blocks, block_size, block_size / 32]
  int32_t block_size, batch, heads, query_blocks, key_blocks, reserved;

  constexpr int grid(int b, int h) const { return (batch == 1 ? 0 : b) * heads + (heads == 1 ? 0 : h); }
};
FLASHATTN_FIELDS(BlockMaskParams, full, partial, full_queries, partial_queries, partial_blocks, bits, block_size, batch,
                 heads, query_blocks, key_blocks, reserved);

struct AttentionParams {
  TensorRef query, key, value, out;
  Pointer<float> lse;                 // [batch, heads, query] or [heads, total]; natural logarithm
  int64_t lse_batch, lse_head;        // strides, shared by lse, d_lse, row_terms and d_query_sum
  Pointer<const Sequence> sequences;  // [batch], null: every sequence is whole
  BiasParams bias;
  AlibiParams alibi;
  RelativeParams relative;
  Pointer<const float> sink;  // [heads]
  BlockMaskParams block_mask;
  RotaryParams rotary;
  PageParams pages;
  DropoutParams dropout;
  ScoreModParams score_mod;
  int32_t batch, heads, kv_heads, head_dim, value_dim, query_length, key_length;
  float scale, softcap;               // softcap 0: none
  int32_t window_left, window_right;  // kUnbounded: infinite; causal is window_right <= 0
  int32_t top_left;                   // 1: the diagonal starts at the first key, 0: it ends at the last
  int32_t offset;                     // how many keys further right it lies
  int32_t deterministic;              // backward adds to d_query_sum in a fixed order
  int32_t tiles_per_item;             // on processors: query tiles that share each loaded key tile; decoding, kv heads
  int32_t reserved;

  // Where few queries meet many keys on processors (native/cpu/attention/decode.h); null otherwise.
  Pointer<float> decode_states;  // [key splits, lse rows, state]
  int64_t lse_rows;              // rows of lse over all batches and heads

  // Backward only.
  TensorRef d_out, d_query, d_key, d_value;
  Pointer<const float> d_lse;        // as lse, or null
  Pointer<float> row_terms;          // what backward keeps of each row: native/cpu/attention/row_terms.h, cuda/rows.cuh
  Pointer<float> d_query_sum;        // [planes, lse rows, padded head_dim]: sums that become d_query
  Pointer<int32_t> turns;            // CUDA: [1 + batch * heads * query tiles], tickets, then whose turn it is per tile
  Pointer<void> d_relative_partial;  // [relative_slices, heads, bucket_count], 8 bytes each: sums and what they lack
  Pointer<float> d_relative;         // [bucket_count, heads], or null
  Pointer<float> d_sink;             // [heads], or null
  Pointer<float> d_bias;             // contiguous, the shape of the bias, or null
  int32_t bias_batch, bias_heads, bias_query, bias_key;  // the shape of the bias
  int32_t relative_slices, key_splits;

  constexpr int group() const { return heads / kv_heads; }
  constexpr size_t lse_row(int b, int h, int i) const {
    return static_cast<size_t>(b * lse_batch + h * lse_head) + static_cast<size_t>(i);
  }
  Sequence sequence(int b) const { return sequences ? sequences[b] : Sequence{0, query_length, 0, key_length}; }
};
FLASHATTN_FIELDS(AttentionParams, query, key, value, out, lse, lse_batch, lse_head, sequences, bias, alibi, relative,
                 sink, block_mask, rotary, pages, dropout, score_mod, batch, heads, kv_heads, head_dim, value_dim,
                 query_length, key_length, scale, softcap, window_left, window_right, top_left, offset, deterministic,
                 tiles_per_item, reserved, decode_states, lse_rows, d_out, d_query, d_key, d_value, d_lse, row_terms,
                 d_query_sum, turns, d_relative_partial, d_relative, d_sink, d_bias, bias_batch, bias_heads, bias_query,
                 bias_key, relative_slices, key_splits);

inline constexpr int kUnbounded = 0x3fffffff;

/** What the choice of tiles and the size of scratch memory depend on: a problem without its tensors. */
struct AttentionShape {
  int64_t lse_rows;
  DType dtype;
  int32_t batch, heads, kv_heads, head_dim, value_dim, query_length, key_length;
  int32_t block_size;    // of the block mask; 0: none
  int32_t bucket_count;  // of the table of relative positions; 0: none
  int32_t options;  // softcap, a bias of any kind, score_mod or dropout: scores need more than their scale and the mask
  int32_t deterministic;
  int32_t heads_differ;  // what is added to scores, or dropped, is not the same for all heads
  int32_t paged;         // keys are in pages: see PageParams
  float scale;
};
FLASHATTN_FIELDS(AttentionShape, lse_rows, dtype, batch, heads, kv_heads, head_dim, value_dim, query_length, key_length,
                 block_size, bucket_count, options, deterministic, heads_differ, paged, scale);

/** How a device cuts a problem into pieces, and what its launches need besides the tensors. */
struct AttentionPartition {
  int64_t items;                                              // independent pieces of forward: blocks of CUDA
  int64_t decode_states;                                      // words of a scratch array of forward
  int64_t row_terms, d_query_sum, turns, d_relative_partial;  // and of backward
  int32_t relative_slices, key_splits, tiles_per_item;        // for AttentionParams
  int32_t query_tile, key_tile;
  int32_t threads, shared_memory;  // of a block of CUDA, forward
  int32_t reserved;
};
FLASHATTN_FIELDS(AttentionPartition, items, decode_states, row_terms, d_query_sum, turns, d_relative_partial,
                 relative_slices, key_splits, tiles_per_item, query_tile, key_tile, threads, shared_memory, reserved);

}  // namespace flashattn
