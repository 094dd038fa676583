// A backward problem with random inputs in device memory, and its gradients in plain double arithmetic: one pair at a
// time, hidden pairs left out.
#pragma once
#include <algorithm>
#include <vector>

#include "device_tensor.h"
#include "launch.h"
#include "range.cuh"

namespace flashattn::test {

struct Problem {
  const char* name = "";
  int batch = 1, heads = 1, kv_heads = 1, queries = 0, keys = 0, head_dim = 0, value_dim = 0;
  Layout layout = Layout::SeqFirst;
  int window_left = kUnbounded, window_right = kUnbounded;
  bool top_left = false, sink = false, bias = false, alibi = false, relative = false;
  float softcap = 0, dropout = 0;
  int block_size = 0;                    // of a random block mask; 0: none
  std::vector<Sequence> sequences = {};  // packed into one batch entry; empty: `batch` whole ones
  int nan_query = -1, nan_key = -1;      // whose rows of the inputs hold a NaN, in the first sequence and head
  bool hide_nan_key = false;             // by the bits of the block mask, or the bias

  bool has_nan() const { return nan_query >= 0 || nan_key >= 0; }
};

/** A block mask in full, [query, key], and as the lists that kernels read. The same for all heads. */
class BlockMask {
 public:
  BlockMask(const Problem& p, Random& random)
      : size_(std::max(p.block_size, 1)),
        rows_((p.queries + size_ - 1) / size_),
        columns_((p.keys + size_ - 1) / size_),
        kinds_(static_cast<size_t>(rows_) * columns_),
        words_(std::max(size_ / 32, 1)) {
    for (int& kind : kinds_) kind = random.below(3);
    if (p.hide_nan_key)
      for (int row = 0; row < rows_; ++row) kind(row, p.nan_key / size_) = 2;
    for (int row = 0; row < rows_; ++row)
      for (int column = 0; column < columns_; ++column) {
        if (kind(row, column) != 2) continue;
        for (int word = 0; word < size_ * words_; ++word) bits_.push_back(random.bits());
        if (!p.hide_nan_key || column != p.nan_key / size_) continue;
        const int key = p.nan_key % size_;
        for (int i = 0; i < size_; ++i) bits_[bits_.size() - (size_ - i) * words_ + key / 32] &= ~(1u << (key % 32));
      }
    for (const bool transposed : {false, true}) add_lists(transposed);
  }

  bool sees(int query, int key) const {
    const int row = query / size_, column = key / size_;
    if (kind(row, column) != 2) return kind(row, column) == 1;
    const uint32_t word = bits_[(number(row, column) * size_ + query % size_) * words_ + key % size_ / 32];
    return word >> (key % 32) & 1;
  }

  BlockMaskParams params() {
    for (const std::vector<int32_t>& list : lists_) arrays_.emplace_back(list);
    words_on_device_.emplace_back(bits_);
    const auto lists = [&](int at) { return BlockLists{arrays_[at].data(), arrays_[at + 1].data()}; };
    return {lists(0), lists(2), lists(5), lists(7), arrays_[9].data(), words_on_device_[0].data(),
            size_,    1,        1,        rows_,    columns_,          0};
  }

 private:
  int& kind(int row, int column) { return kinds_[row * columns_ + column]; }  // 0: empty, 1: full, 2: partial
  int kind(int row, int column) const { return kinds_[row * columns_ + column]; }
  int number(int row, int column) const {  // of a partial block
    return static_cast<int>(std::count(kinds_.begin(), kinds_.begin() + row * columns_ + column, 2));
  }

  /** Offsets and indices of full blocks and of partial ones, and the numbers of these. */
  void add_lists(bool transposed) {
    std::vector<int32_t> offsets[2] = {{0}, {0}}, indices[2], numbers;
    for (int list = 0; list < (transposed ? columns_ : rows_); ++list) {
      for (int at = 0; at < (transposed ? rows_ : columns_); ++at) {
        const int row = transposed ? at : list, column = transposed ? list : at;
        if (!kind(row, column)) continue;
        indices[kind(row, column) - 1].push_back(at);
        if (kind(row, column) == 2) numbers.push_back(number(row, column));
      }
      for (const int which : {0, 1}) offsets[which].push_back(static_cast<int32_t>(indices[which].size()));
    }
    for (const auto& list : {offsets[0], indices[0], offsets[1], indices[1], numbers}) lists_.push_back(list);
  }

  int size_, rows_, columns_;
  std::vector<int> kinds_;  // [rows, columns]
  int words_;               // of a row of a block
  std::vector<uint32_t> bits_;
  std::vector<std::vector<int32_t>> lists_;
  std::vector<DeviceArray<int32_t>> arrays_;
  std::vector<DeviceArray<uint32_t>> words_on_device_;
};

/** Philox4x32-10 after its paper: the word that decides about a pair. */
inline uint32_t random_word(uint32_t key, uint32_t query, uint32_t stream, uint64_t seed) {
  uint32_t c[4] = {key / 4, query, stream, 0}, k[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xd2511f53u} * c[0], b = uint64_t{0xcd9e8d57u} * c[2];
    const uint32_t next[4] = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(b),
                              static_cast<uint32_t>(a >> 32) ^ c[3] ^ k[1], static_cast<uint32_t>(a)};
    std::copy(next, next + 4, c);
    k[0] += 0x9e3779b9u;
    k[1] += 0xbb67ae85u;
  }
  return c[key % 4];
}

/** The elements of a tensor as they were rounded, [batch, seq, heads, dim]. */
class Values {
 public:
  explicit Values(const Tensor& t) : seq_(t.seq), heads_(t.heads), dim_(t.dim) {
    t.for_each([&](int b, int row, int h, int d) { x_.push_back(t.get(b, row, h, d)); });
  }
  double* row(int b, int row, int h) { return x_.data() + index(b, row, h); }
  const double* row(int b, int row, int h) const { return x_.data() + index(b, row, h); }
  void clear() { std::fill(x_.begin(), x_.end(), 0.0); }
  double largest() const {
    double most = 0;
    for (const double x : x_) most = std::isnan(x) ? most : std::max(most, std::fabs(x));
    return most;
  }

 private:
  size_t index(int b, int row, int h) const { return ((static_cast<size_t>(b) * seq_ + row) * heads_ + h) * dim_; }

  int seq_, heads_, dim_;
  std::vector<double> x_;
};

inline double dot(const double* a, const double* b, int dim) {
  double sum = 0;
  for (int d = 0; d < dim; ++d) sum += a[d] * b[d];
  return sum;
}

inline void add(double* to, double factor, const double* x, int dim) {
  for (int d = 0; d < dim; ++d) to[d] += factor * x[d];
}

class Backward {
 public:
  static constexpr uint64_t kSeed = 0x123456789abcdefull;

  Backward(const Problem& problem, DType dtype, Random& random)
      : problem(problem),
        dtype(dtype),
        query(queries(problem.head_dim)),
        d_query(queries(problem.head_dim)),
        out(queries(problem.value_dim)),
        d_out(queries(problem.value_dim)),
        key(keys(problem.head_dim)),
        d_key(keys(problem.head_dim)),
        value(keys(problem.value_dim)),
        d_value(keys(problem.value_dim)),
        lse(lse_rows(), 0.0f),
        d_lse(random_floats(lse_rows(), random)),
        delta(2 * lse_rows() + range_floats(), 0.0f),
        sink(random_floats(problem.heads, random)),
        slopes(random_floats(problem.heads, random)),
        bias(random_floats(static_cast<size_t>(problem.heads) * problem.queries * problem.keys, random)),
        table(random_floats(static_cast<size_t>(kBuckets) * problem.heads, random)),
        buckets(random_buckets(random)),
        sequences(all_sequences()),
        mask(problem, random) {
    for (Tensor* tensor : {&query, &key, &value, &d_out}) tensor->randomize(random);
    if (problem.nan_query >= 0)
      for (Tensor* tensor : {&query, &d_out}) set_nan(*tensor, problem.nan_query);
    if (problem.nan_key >= 0)
      for (Tensor* tensor : {&key, &value}) set_nan(*tensor, problem.nan_key);
    if (problem.bias) hide_by_bias();
    const Inputs inputs{Values(query), Values(key), Values(value)};
    compute_forward(inputs);
    compute_gradients(inputs);
  }

  AttentionParams params() {
    const Problem& t = problem;
    AttentionParams p{};
    p.query = query.ref(), p.key = key.ref(), p.value = value.ref(), p.out = out.ref();
    p.d_query = d_query.ref(), p.d_key = d_key.ref(), p.d_value = d_value.ref(), p.d_out = d_out.ref();
    p.lse = lse.data(), p.d_lse = d_lse.data(), p.row_terms = delta.data();
    p.lse_head = t.queries;
    p.lse_batch = static_cast<int64_t>(t.heads) * t.queries;
    p.lse_rows = static_cast<int64_t>(lse_rows());
    if (!t.sequences.empty()) {
      p.sequences = sequences.data();
      for (TensorRef* ref : {&p.query, &p.key, &p.value, &p.out, &p.d_query, &p.d_key, &p.d_value, &p.d_out})
        ref->batch = 0;
      p.lse_batch = 0;
    }
    if (t.bias) p.bias = {bias.data(), 0, int64_t{t.queries} * t.keys, t.keys, 1};
    if (t.alibi) p.alibi = {slopes.data(), 0};
    if (t.relative) p.relative = {table.data(), buckets.data(), nullptr, nullptr, t.queries - 1, kBuckets};
    if (t.sink) p.sink = sink.data();
    if (t.block_size) p.block_mask = mask.params();
    if (t.dropout > 0) p.dropout = {threshold(), 1 / (1 - t.dropout), static_cast<uint32_t>(kSeed), kSeed >> 32};
    p.batch = sequence_count(), p.heads = t.heads, p.kv_heads = t.kv_heads;
    p.head_dim = t.head_dim, p.value_dim = t.value_dim;
    for (const Sequence& s : sequences.host) {
      p.query_length = std::max(p.query_length, s.query_length);
      p.key_length = std::max(p.key_length, s.key_length);
    }
    p.scale = static_cast<float>(scale());
    p.softcap = t.softcap;
    p.window_left = t.window_left, p.window_right = t.window_right;
    p.top_left = t.top_left;
    return p;
  }

  /** Behind delta and row weights. */
  size_t range_floats() const {
    AttentionParams p{};
    p.batch = static_cast<int>(std::max(problem.sequences.size(), static_cast<size_t>(problem.batch)));
    p.kv_heads = problem.kv_heads, p.query_length = problem.queries, p.key_length = problem.keys;
    return static_cast<size_t>(head_range_floats(shape_of(p)));
  }
  int sequence_count() const { return static_cast<int>(sequences.host.size()); }
  size_t lse_rows() const { return static_cast<size_t>(problem.batch) * problem.heads * problem.queries; }

  void check_gradients() {
    compare("d_query", d_query, expected_[0]);
    compare("d_key", d_key, expected_[1]);
    compare("d_value", d_value, expected_[2]);
  }

  const Problem problem;
  const DType dtype;
  Tensor query, d_query, out, d_out, key, d_key, value, d_value;
  DeviceArray<float> lse, d_lse, delta, sink, slopes, bias, table;
  DeviceArray<int32_t> buckets;
  DeviceArray<Sequence> sequences;
  BlockMask mask;

 private:
  static constexpr int kBuckets = 7;

  double scale() const { return static_cast<float>(1 / std::sqrt(problem.head_dim)); }
  uint32_t threshold() const { return static_cast<uint32_t>(problem.dropout * 4294967296.0); }

  Tensor queries(int dim) const { return {problem.batch, problem.queries, problem.heads, dim, dtype, problem.layout}; }
  Tensor keys(int dim) const { return {problem.batch, problem.keys, problem.kv_heads, dim, dtype, problem.layout}; }

  std::vector<Sequence> all_sequences() const {
    if (!problem.sequences.empty()) return problem.sequences;
    return std::vector<Sequence>(problem.batch, {0, problem.queries, 0, problem.keys});
  }
  std::vector<int32_t> random_buckets(Random& random) const {
    std::vector<int32_t> of_offset(problem.queries + problem.keys);
    for (int32_t& bucket : of_offset) bucket = random.below(kBuckets);
    return of_offset;
  }
  static void set_nan(Tensor& tensor, int row) {
    tensor.set(0, row, 0, 0, kNaN);
    tensor.upload();
  }
  void hide_by_bias() {
    for (size_t at = 0; at < bias.host.size(); ++at)
      if (at % 13 == 0 || (problem.hide_nan_key && static_cast<int>(at % problem.keys) == problem.nan_key))
        bias.host[at] = -INFINITY;
    bias.upload();
  }

  // A sequence's rows in tensors and in lse.
  int tensor_batch(int b) const { return problem.sequences.empty() ? b : 0; }
  size_t lse_row(int b, int h, int i) const {
    return (static_cast<size_t>(tensor_batch(b)) * problem.heads + h) * problem.queries +
           sequences.host[b].query_begin + i;
  }
  template <class V>
  auto query_row(V& v, int b, int h, int i) const {
    return v.row(tensor_batch(b), sequences.host[b].query_begin + i, h);
  }
  template <class V>
  auto key_row(V& v, int b, int h, int j) const {
    return v.row(tensor_batch(b), sequences.host[b].key_begin + j, h / (problem.heads / problem.kv_heads));
  }
  template <class F>
  void for_queries(F f) const {
    for (int b = 0; b < sequence_count(); ++b)
      for (int h = 0; h < problem.heads; ++h)
        for (int i = 0; i < sequences.host[b].query_length; ++i) f(b, h, i);
  }

  struct Inputs {
    Values query, key, value;
  };
  struct Score {
    double value = -kInf, slope = 1, factor = 1;  // after dropout
  };

  Score score_of(const Inputs& inputs, int b, int h, int i, int j) const {
    const Problem& t = problem;
    const Sequence& s = sequences.host[b];
    const int diagonal = t.top_left ? 0 : s.key_length - s.query_length, offset = j - i - diagonal;
    if (offset < -static_cast<int64_t>(t.window_left) || offset > t.window_right) return {};
    if (t.block_size && !mask.sees(i, j)) return {};
    const double added = t.bias ? bias.host[(static_cast<size_t>(h) * t.queries + i) * t.keys + j] : 0.0;
    if (added == -kInf) return {};
    Score score{0, 1, 1};
    score.value = scale() * dot(query_row(inputs.query, b, h, i), key_row(inputs.key, b, h, j), t.head_dim);
    if (t.softcap > 0) {
      const double tanh = std::tanh(score.value / t.softcap);
      score.value = tanh * t.softcap;
      score.slope = 1 - tanh * tanh;
    }
    score.value += added;
    if (t.relative) score.value += table.host[buckets.host[j - i + t.queries - 1] * t.heads + h];
    if (t.alibi) score.value -= static_cast<double>(slopes.host[h]) * std::abs(offset);
    if (t.dropout > 0) {
      const bool kept = random_word(j, i, b * t.heads + h, kSeed) >= threshold();
      score.factor = kept ? 1.0 / (1 - static_cast<double>(t.dropout)) : 0;
    }
    return score;
  }

  void compute_forward(const Inputs& inputs) {
    for_queries([&](int b, int h, int i) {
      double total = problem.sink ? std::exp(sink.host[h]) : 0;
      std::vector<double> sum(problem.value_dim);
      for (int j = 0; j < sequences.host[b].key_length; ++j) {
        const Score score = score_of(inputs, b, h, i, j);
        if (score.value == -kInf) continue;
        total += std::exp(score.value);
        add(sum.data(), std::exp(score.value) * score.factor, key_row(inputs.value, b, h, j), problem.value_dim);
      }
      lse.host[lse_row(b, h, i)] = static_cast<float>(std::log(total));
      for (int d = 0; d < problem.value_dim; ++d)
        out.set(tensor_batch(b), sequences.host[b].query_begin + i, h, d, total == 0 ? 0 : sum[d] / total);
    });
    lse.upload();
    out.upload();
  }

  /** From `out` and `lse` as they were rounded, like the kernels. */
  void compute_gradients(const Inputs& inputs) {
    for (const Tensor* tensor : {&query, &key, &value}) expected_.emplace_back(*tensor).clear();
    const Values outs(out), d_outs(d_out);
    for_queries([&](int b, int h, int i) {
      const double* d_out_row = query_row(d_outs, b, h, i);
      const float row_lse = lse.host[lse_row(b, h, i)];
      const double row_delta =
          dot(query_row(outs, b, h, i), d_out_row, problem.value_dim) - d_lse.host[lse_row(b, h, i)];
      double* dq = query_row(expected_[0], b, h, i);
      for (int j = 0; j < sequences.host[b].key_length; ++j) {
        const Score score = score_of(inputs, b, h, i, j);
        if (score.value == -kInf) continue;
        const double probability = std::exp(score.value - row_lse);
        const double dp = dot(d_out_row, key_row(inputs.value, b, h, j), problem.value_dim) * score.factor;
        const double ds = probability * (dp - row_delta) * score.slope * scale();
        double* dk = key_row(expected_[1], b, h, j);
        double* dv = key_row(expected_[2], b, h, j);
        add(dq, ds, key_row(inputs.key, b, h, j), problem.head_dim);
        add(dk, ds, query_row(inputs.query, b, h, i), problem.head_dim);
        add(dv, probability * score.factor, d_out_row, problem.value_dim);
      }
    });
  }

  /** Within what rounding P and dS to the element type leaves of random sums. */
  void compare(const char* name, Tensor& got, const Values& expected) const {
    got.download();
    const double unit = dtype == DType::Float32 ? 1e-6 : std::ldexp(1.0, -format_of(dtype).mantissa_bits);
    const double tolerance = 4 * unit * std::max(expected.largest(), 0.05);
    got.for_each([&](int b, int row, int h, int d) {
      const double wanted = expected.row(b, row, h)[d], found = got.get(b, row, h, d);
      const bool right = std::isnan(wanted) ? std::isnan(found) : std::fabs(found - wanted) <= tolerance;
      expect(right, "%s: %s [%d, %d, %d, %d]: %g instead of %g (within %g)", problem.name, name, b, row, h, d, found,
             wanted, tolerance);
    });
    expect(got.gaps_are_intact(), "%s: %s is written beyond its elements", problem.name, name);
  }

  std::vector<Values> expected_;  // d_query, d_key, d_value
};

}  // namespace flashattn::test
