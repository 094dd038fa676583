// A random problem of attention: its dims and options, its tensors, and what the kernels are told about them.
#pragma once
#include <algorithm>
#include <vector>

#include "memory.h"
#include "structs/attention.h"

namespace flashattn::test {

enum class Layout { SequenceFirst, HeadsFirst };

/** [batch, rows, heads, dim] in memory of exactly its size. */
struct Tensor {
  int batch = 0, rows = 0, heads = 0, dim = 0;
  DType dtype = DType::Float32;
  Layout layout = Layout::SequenceFirst;
  Array<uint8_t> bytes;

  Tensor() = default;
  Tensor(int batch, int rows, int heads, int dim, DType dtype, Layout layout);

  TensorRef ref() const;
  uint8_t* at(int b, int i, int h, int d) const { return ref().row(b, i, h) + d * element_size(dtype); }
  double get(int b, int i, int h, int d) const { return decode(at(b, i, h, d), dtype); }
  void set(int b, int i, int h, int d, float value) { encode(at(b, i, h, d), dtype, value); }
  void randomize(Random& random);
  void set_row(int b, int i, int h, float value);
  /** Whether a row still holds what memory is filled with before use. */
  bool is_untouched(int b, int i, int h) const;
};

struct BlockMask {
  int block_size = 0, batch = 1, heads = 1, query_blocks = 0, key_blocks = 0;
  std::vector<uint8_t> visible;  // [batch, heads, query, key]
  Array<int32_t> full_offsets, full_indices, partial_offsets, partial_indices;
  Array<int32_t> full_queries_offsets, full_queries_indices, partial_queries_offsets, partial_queries_indices;
  Array<int32_t> partial_blocks;
  Array<uint32_t> bits;

  BlockMask() = default;
  BlockMask(int block_size, int batch, int heads, int queries, int keys, Random& random);

  BlockMaskParams params() const;
};

/** Which tensors and options there are follows from the seed alone. */
struct Problem {
  explicit Problem(uint64_t seed);

  uint64_t seed;
  int batch, heads, kv_heads, head_dim, value_dim, query_length, key_length;
  bool packed;
  int tensor_batch, query_rows, key_rows;
  DType dtype;
  Tensor query, key, value, out, d_out, d_query, d_key, d_value;
  Array<Sequence> sequences;  // empty: every sequence is whole
  Array<float> lse, decode_states, d_lse, row_terms, d_query_partial;
  Array<float> bias, d_bias;
  int bias_shape[4] = {1, 1, 1, 1};
  Array<float> alibi;
  bool alibi_batched = false;
  Array<float> table, d_relative;
  Array<double> d_relative_partial;
  Array<int32_t> buckets, query_position, key_position;
  int bucket_count = 0, origin = 0;
  Array<float> sink, d_sink;
  BlockMask mask;
  DropoutParams dropout{0, 1, 0, 0};
  /** 3 tanh(score) + mod_table[j], -Infinity for key `mod_hidden`; empty: none. */
  Array<ScoreProgram> mod;
  Array<float> mod_table;
  int mod_hidden = -1;
  float scale, softcap;
  int window_left, window_right, tiles_per_item, key_splits;
  bool top_left;

  AttentionParams params() const;

  Sequence sequence(int b) const { return sequences.size() ? sequences[b] : Sequence{0, query_length, 0, key_length}; }
  /** The batch entry of the tensors that sequence b lies in. */
  int entry(int b) const { return packed ? 0 : b; }
  size_t lse_row(int b, int h, int i) const {
    return (size_t(entry(b)) * heads + h) * query_rows + sequence(b).query_begin + i;
  }
  float bias_at(int b, int h, int i, int j) const;
  float mod_table_at(int j) const { return mod_table[std::min(size_t(j), mod_table.size() - 1)]; }
  /** Whether query i of sequence b sees key j: band, block mask and a bias or score_mod of -Infinity. */
  bool sees(int b, int h, int i, int j) const;
  /** Hides NaN in every key that nobody sees. */
  void poison_unseen_keys();

 private:
  void draw_sequences(Random& random);
  void draw_tensors(Random& random);
  void draw_options(Random& random);
  void draw_decoding();
  void draw_relative(Random& random);
  void draw_mod(Random& random);
};

}  // namespace flashattn::test
