#include "problem.h"

#include <cmath>

#include <algorithm>
#include <iterator>

#include "attention/backward.h"
#include "attention/decode.h"

namespace flashattn::test {

Tensor::Tensor(int batch, int rows, int heads, int dim, DType dtype, Layout layout)
    : batch(batch),
      rows(rows),
      heads(heads),
      dim(dim),
      dtype(dtype),
      layout(layout),
      bytes(size_t(batch) * rows * heads * dim * element_size(dtype)) {}

TensorRef Tensor::ref() const {
  const int64_t whole = int64_t{rows} * heads * dim;
  if (layout == Layout::SequenceFirst) return {bytes.data(), whole, int64_t{heads} * dim, dim, dtype, 0};
  return {bytes.data(), whole, dim, int64_t{rows} * dim, dtype, 0};
}

void Tensor::randomize(Random& random) {
  for (int b = 0; b < batch; ++b)
    for (int i = 0; i < rows; ++i)
      for (int h = 0; h < heads; ++h)
        for (int d = 0; d < dim; ++d) set(b, i, h, d, random.number());
}

void Tensor::set_row(int b, int i, int h, float value) {
  for (int d = 0; d < dim; ++d) set(b, i, h, d, value);
}

bool Tensor::is_untouched(int b, int i, int h) const {
  const uint8_t* row = at(b, i, h, 0);
  return std::all_of(row, row + dim * element_size(dtype), [](uint8_t byte) { return byte == 0xa5; });
}

namespace {

/** Lists as a kernel reads them, from a list of lists. */
void flatten(const std::vector<std::vector<int32_t>>& lists, Array<int32_t>& offsets, Array<int32_t>& indices) {
  size_t total = 0;
  for (const auto& list : lists) total += list.size();
  offsets = Array<int32_t>(lists.size() + 1);
  indices = Array<int32_t>(total);
  int32_t at = 0;
  for (size_t row = 0; row < lists.size(); ++row) {
    offsets[row] = at;
    for (const int32_t index : lists[row]) indices[at++] = index;
  }
  offsets[lists.size()] = at;
}

}  // namespace

BlockMask::BlockMask(int block_size, int batch, int heads, int queries, int keys, Random& random)
    : block_size(block_size),
      batch(batch),
      heads(heads),
      query_blocks(divide_up(queries, block_size)),
      key_blocks(divide_up(keys, block_size)),
      visible(size_t(batch) * heads * queries * keys) {
  const int grids = batch * heads;
  std::vector<std::vector<int32_t>> full(grids * query_blocks), partial(grids * query_blocks);
  std::vector<std::vector<int32_t>> full_queries(grids * key_blocks), partial_queries(grids * key_blocks);
  std::vector<std::vector<int32_t>> block_numbers(grids * key_blocks);
  std::vector<uint32_t> words;
  int32_t blocks = 0;
  for (int list = 0; list < grids * query_blocks; ++list) {
    const int grid = list / query_blocks, query_block = list % query_blocks;
    const int rows = std::min(block_size, queries - query_block * block_size);
    for (int key_block = 0; key_block < key_blocks; ++key_block) {
      const int kind = random.integer(0, 2), transposed = grid * key_blocks + key_block;
      if (kind == 0) continue;  // empty
      const int columns = std::min(block_size, keys - key_block * block_size);
      (kind == 1 ? full : partial)[list].push_back(key_block);
      (kind == 1 ? full_queries : partial_queries)[transposed].push_back(query_block);
      if (kind == 2) {
        block_numbers[transposed].push_back(blocks++);
        words.resize(words.size() + block_size * block_size / 32);
      }
      const int density = random.integer(0, 3) * 33;
      for (int i = 0; i < rows; ++i)
        for (int j = 0; j < columns; ++j) {
          if (kind == 2 && !random.chance(density)) continue;
          const int query = query_block * block_size + i, key = key_block * block_size + j;
          visible[(size_t(grid) * queries + query) * keys + key] = 1;
          if (kind == 2)
            words[words.size() - block_size * block_size / 32 + (i * block_size + j) / 32] |= 1u << (j % 32);
        }
    }
  }
  flatten(full, full_offsets, full_indices);
  flatten(partial, partial_offsets, partial_indices);
  flatten(full_queries, full_queries_offsets, full_queries_indices);
  flatten(partial_queries, partial_queries_offsets, partial_queries_indices);
  Array<int32_t> unused;
  flatten(block_numbers, unused, partial_blocks);
  bits = Array<uint32_t>(words.size());
  std::copy(words.begin(), words.end(), bits.data());
}

BlockMaskParams BlockMask::params() const {
  return {{full_offsets.data(), full_indices.data()},
          {partial_offsets.data(), partial_indices.data()},
          {full_queries_offsets.data(), full_queries_indices.data()},
          {partial_queries_offsets.data(), partial_queries_indices.data()},
          partial_blocks.data(),
          bits.data(),
          block_size,
          batch,
          heads,
          query_blocks,
          key_blocks,
          0};
}

Problem::Problem(uint64_t seed) : seed(seed) {
  Random random(seed);
  batch = random.integer(1, 3);
  kv_heads = random.integer(1, 2);
  heads = kv_heads * random.integer(1, 3);
  head_dim = random.chance(10) ? random.integer(129, 256) : random.integer(1, 70);
  value_dim = random.chance(50) ? head_dim : random.integer(1, 70);
  query_length = random.chance(10) ? 1 : random.chance(20) ? random.integer(2, 8) : random.integer(1, 140);
  key_length = random.chance(30) ? query_length : random.integer(1, query_length <= 8 ? 600 : 140);
  dtype = static_cast<DType>(random.integer(0, 2));
  draw_sequences(random);
  draw_tensors(random);
  draw_options(random);
  draw_decoding();
  poison_unseen_keys();
}

void Problem::draw_sequences(Random& random) {
  packed = random.chance(25);
  tensor_batch = packed ? 1 : batch;
  query_rows = query_length;
  key_rows = key_length;
  if (!packed && !random.chance(30)) return;
  sequences = Array<Sequence>(batch);
  int query_begin = 0, key_begin = 0, longest_query = 0, longest_key = 0;
  for (int b = 0; b < batch; ++b) {
    const int queries = random.chance(10) ? 0 : random.integer(0, query_length);
    const int keys = random.chance(10) ? 0 : random.integer(0, key_length);
    sequences[b] = {packed ? query_begin : 0, queries, packed ? key_begin : 0, keys};
    query_begin += queries;
    key_begin += keys;
    longest_query = std::max(longest_query, queries);
    longest_key = std::max(longest_key, keys);
  }
  if (!packed) return;
  query_length = longest_query;
  key_length = longest_key;
  query_rows = query_begin + random.integer(0, 2);
  key_rows = key_begin + random.integer(0, 2);
}

void Problem::draw_tensors(Random& random) {
  const Layout layout = !packed && random.chance(50) ? Layout::HeadsFirst : Layout::SequenceFirst;
  const auto tensor = [&](int rows, int tensor_heads, int dim) {
    return Tensor(tensor_batch, rows, tensor_heads, dim, dtype, layout);
  };
  query = tensor(query_rows, heads, head_dim);
  key = tensor(key_rows, kv_heads, head_dim);
  value = tensor(key_rows, kv_heads, value_dim);
  d_out = tensor(query_rows, heads, value_dim);
  for (Tensor* t : {&query, &key, &value, &d_out}) t->randomize(random);
  out = tensor(query_rows, heads, value_dim);
  d_query = tensor(query_rows, heads, head_dim);
  d_key = tensor(key_rows, kv_heads, head_dim);
  d_value = tensor(key_rows, kv_heads, value_dim);
  const size_t rows = size_t(tensor_batch) * heads * query_rows;
  lse = Array<float>(rows);
  row_terms = Array<float>(3 * rows);
  if (random.chance(50)) d_lse = random_array(rows, random);
  key_splits = random.integer(1, 3);
}

void Problem::draw_options(Random& random) {
  scale = random.chance(80) ? 1 / sqrtf(static_cast<float>(head_dim)) : 0.25f;
  softcap = random.chance(25) ? 1.5f : 0;
  top_left = random.chance(30);
  window_left = random.chance(30) ? random.integer(0, 90) : kUnbounded;
  window_right = random.chance(30) ? 0 : random.chance(20) ? random.integer(0, 90) : kUnbounded;
  if (random.chance(35)) {
    const int full[4] = {batch, heads, query_length, key_length};
    for (int axis = 0; axis < 4; ++axis) bias_shape[axis] = random.chance(40) ? 1 : full[axis];
    const size_t count = size_t(bias_shape[0]) * bias_shape[1] * bias_shape[2] * bias_shape[3];
    bias = random_array(count, random);
    for (size_t at = 0; at < count; ++at)
      if (random.chance(5)) bias[at] = -INFINITY;
    d_bias = Array<float>(count);
  }
  if (random.chance(25)) {
    alibi_batched = random.chance(50);
    alibi = random_array((alibi_batched ? batch : 1) * heads, random);
    for (size_t at = 0; at < alibi.size(); ++at) alibi[at] = fabsf(alibi[at]) / 16;
  }
  if (random.chance(25)) draw_relative(random);
  if (random.chance(25)) {
    sink = random_array(heads, random);
    d_sink = Array<float>(heads);
  }
  if (random.chance(25))
    dropout = {random.integer(0, 1) ? 0x40000000u : 0xc0000000u, 1.5f, 7, static_cast<uint32_t>(seed)};
  tiles_per_item = random.integer(1, kMaxTilesPerItem);
  if (random.chance(50)) {
    const int block_size = random.chance(50) ? 64 : 128;
    mask = BlockMask(block_size, random.chance(50) ? 1 : batch, random.chance(50) ? 1 : heads, query_length, key_length,
                     random);
    tiles_per_item = random.chance(50) ? kMaxTilesPerItem : block_size / kQueryTile;
  }
  if (random.chance(25)) draw_mod(random);
  const int planes = d_query_planes(key_length, backward_key_tile(mask.block_size), key_splits);
  d_query_partial = Array<float>(key_splits * planes * lse.size() * round_up(head_dim, kLanes));
}

void Problem::draw_decoding() {
  const bool heads_differ = bias.size() || alibi.size() || bucket_count || mod.size() || dropout.threshold;
  const DecodeColumns columns(heads / kv_heads, query_length, heads_differ);
  decode_states =
      Array<float>(lse.size() * decode_floats(columns, query_length, key_length, value_dim, mask.block_size != 0));
}

void Problem::draw_relative(Random& random) {
  bucket_count = random.integer(1, 20);
  table = random_array(bucket_count * heads, random);
  d_relative = Array<float>(bucket_count * heads);
  d_relative_partial = Array<double>(size_t(key_splits) * batch * heads * bucket_count);
  const bool positions = random.chance(50);
  const int largest = positions ? 15 : std::max({query_length, key_length, 1}) - 1;
  if (positions) {
    query_position = Array<int32_t>(query_length);
    key_position = Array<int32_t>(key_length);
    for (const Array<int32_t>* position : {&query_position, &key_position})
      for (size_t at = 0; at < position->size(); ++at) (*position)[at] = random.integer(0, largest);
  }
  origin = largest;
  buckets = Array<int32_t>(2 * largest + 1);
  for (size_t at = 0; at < buckets.size(); ++at) buckets[at] = random.integer(0, bucket_count - 1);
}

void Problem::draw_mod(Random& random) {
  mod = Array<ScoreProgram>(1);
  mod_table = random_array(random.integer(1, std::max(1, key_length)), random);
  mod_hidden = random.integer(0, key_length);
  constexpr int kScore = 0, kKey = 4, kThree = 5, kOne = 6, kHidden = 7, kMinusInfinity = 8, kFirst = 9;
  const auto word = [](Opcode opcode, int to, int a, int b = 0, int c = 0) {
    return uint32_t(opcode) | uint32_t(kFirst + to) << 8 | uint32_t(a) << 14 | uint32_t(b) << 20 | uint32_t(c) << 26;
  };
  const auto temporary = [](int number) { return kFirst + number; };
  const uint32_t words[] = {
      word(Opcode::lookup, 0, kKey, 1),
      word(Opcode::tanh, 1, kScore),
      word(Opcode::mul, 2, temporary(1), kThree),
      word(Opcode::add, 0, temporary(0), temporary(2)),
      word(Opcode::equal, 3, kKey, kHidden),
      word(Opcode::where, 0, temporary(3), kMinusInfinity, temporary(0)),
      word(Opcode::mul, 1, temporary(1), temporary(1)),
      word(Opcode::sub, 1, kOne, temporary(1)),
      word(Opcode::mul, 1, temporary(1), kThree),
  };
  ScoreProgram& program = mod[0];
  program = {};
  std::copy(std::begin(words), std::end(words), program.instructions);
  const float constants[] = {3, 1, static_cast<float>(mod_hidden), -INFINITY};
  std::copy(std::begin(constants), std::end(constants), program.constants);
  program.value_count = 6, program.count = std::size(words), program.constant_count = 4;
  program.value = temporary(0), program.slope = temporary(1);
  program.reads = 1 << kScore | 1 << kKey;
}

AttentionParams Problem::params() const {
  AttentionParams p{};
  p.query = query.ref();
  p.key = key.ref();
  p.value = value.ref();
  p.out = out.ref();
  p.d_out = d_out.ref();
  p.d_query = d_query.ref();
  p.d_key = d_key.ref();
  p.d_value = d_value.ref();
  if (packed)
    for (TensorRef* t : {&p.query, &p.key, &p.value, &p.out, &p.d_out, &p.d_query, &p.d_key, &p.d_value}) t->batch = 0;
  p.lse = lse.data();
  p.lse_batch = packed ? 0 : heads * query_rows;
  p.lse_head = query_rows;
  p.batch = batch;
  p.heads = heads;
  p.kv_heads = kv_heads;
  p.head_dim = head_dim;
  p.value_dim = value_dim;
  p.query_length = query_length;
  p.key_length = key_length;
  p.sequences = sequences.size() ? sequences.data() : nullptr;
  p.scale = scale;
  p.softcap = softcap;
  p.window_left = window_left;
  p.window_right = window_right;
  p.top_left = top_left;
  p.tiles_per_item = tiles_per_item;
  if (bias.size()) {
    const auto& [batches, bias_heads, queries, keys] = bias_shape;
    const auto stride = [](int size, int elements) { return size == 1 ? int64_t{0} : int64_t{elements}; };
    p.bias = {bias.data(), stride(batches, bias_heads * queries * keys), stride(bias_heads, queries * keys),
              stride(queries, keys), stride(keys, 1)};
    p.d_bias = d_bias.data();
    p.bias_batch = batches;
    p.bias_heads = bias_heads;
    p.bias_query = queries;
    p.bias_key = keys;
  }
  if (alibi.size()) p.alibi = {alibi.data(), alibi_batched ? heads : 0};
  if (bucket_count) {
    p.relative = {table.data(), buckets.data(), query_position.data(), key_position.data(), origin, bucket_count};
    p.d_relative_partial = d_relative_partial.data();
    p.d_relative = d_relative.data();
  }
  p.sink = sink.data();
  p.d_sink = d_sink.data();
  p.dropout = dropout;
  if (mod.size()) {
    p.score_mod.program = mod.data();
    p.score_mod.tables[1] = {mod_table.data(), static_cast<int32_t>(mod_table.size()), DType::Float32};
  }
  if (mask.block_size) p.block_mask = mask.params();
  p.d_lse = d_lse.data();
  p.row_terms = row_terms.data();
  p.d_query_sum = d_query_partial.data();
  p.lse_rows = static_cast<int64_t>(lse.size());
  p.decode_states = decode_states.size() ? decode_states.data() : nullptr;
  p.key_splits = key_splits;
  return p;
}

float Problem::bias_at(int b, int h, int i, int j) const {
  if (!bias.size()) return 0;
  const int index[4] = {b, h, i, j};
  size_t at = 0;
  for (int axis = 0; axis < 4; ++axis) at = at * bias_shape[axis] + (bias_shape[axis] == 1 ? 0 : index[axis]);
  return bias[at];
}

bool Problem::sees(int b, int h, int i, int j) const {
  const Sequence s = sequence(b);
  const int distance = j - i - (top_left ? 0 : s.key_length - s.query_length);
  if (window_left != kUnbounded && distance < -window_left) return false;
  if (window_right != kUnbounded && distance > window_right) return false;
  if (bias_at(b, h, i, j) == -INFINITY || (mod.size() && j == mod_hidden)) return false;
  if (!mask.block_size) return true;
  const int grid = (mask.batch == 1 ? 0 : b) * mask.heads + (mask.heads == 1 ? 0 : h);
  return mask.visible[(size_t(grid) * query_length + i) * key_length + j];
}

void Problem::poison_unseen_keys() {
  for (int e = 0; e < tensor_batch; ++e)
    for (int kv_head = 0; kv_head < kv_heads; ++kv_head) {
      std::vector<bool> seen(key_rows);
      for (int b = 0; b < batch; ++b) {
        if (entry(b) != e) continue;
        const Sequence s = sequence(b);
        const int group = heads / kv_heads;
        for (int h = kv_head * group; h < (kv_head + 1) * group; ++h)
          for (int i = 0; i < s.query_length; ++i)
            for (int j = 0; j < s.key_length; ++j)
              if (sees(b, h, i, j)) seen[s.key_begin + j] = true;
      }
      for (int row = 0; row < key_rows; ++row) {
        if (seen[row]) continue;
        key.set_row(e, row, kv_head, NAN);
        value.set_row(e, row, kv_head, NAN);
      }
    }
}

}  // namespace flashattn::test
