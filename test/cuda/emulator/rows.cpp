// The row-wise parts of backward against plain loops: delta, d_query from its sum, d_sink.
#include "sm80/backward_parts.h"

#include "head_dim.h"

#include "device_tensor.h"

namespace flashattn::test {

namespace {

struct Problem {
  int batch, heads, head_dim, value_dim;
  std::vector<int> lengths;  // of each sequence where they are packed, else the one length
  bool packed;
  DType dtype;
  Layout layout;

  int tensor_batch() const { return packed ? 1 : batch; }
  int longest() const { return *std::max_element(lengths.begin(), lengths.end()); }
  int rows() const {  // of the tensors
    int total = 0;
    for (const int length : lengths) total += length;
    return total;
  }
};

/** The tensors and arrays of a problem, and what the launches are told about them. */
class Backward {
 public:
  Backward(const Problem& problem, Random& random)
      : problem(problem),
        out(tensor(problem.value_dim)),
        d_out(tensor(problem.value_dim)),
        d_query(tensor(problem.head_dim)),
        value(tensor(problem.value_dim)),
        lse(random_floats(lse_rows(), random)),
        d_lse(random_floats(lse_rows(), random)),
        delta(2 * lse_rows() + kRangeFloats, kUnset),
        d_query_sum(random_floats(lse_rows() * bucket(), random)),
        sink(random_floats(problem.heads, random)),
        d_sink(problem.heads, kUnset),
        sequences(packed_sequences()) {
    out.randomize(random);
    d_out.randomize(random);
    value.randomize(random);
  }

  static constexpr float kUnset = 12345;
  static constexpr size_t kRangeFloats = 1000;  // more than any problem here needs
  int bucket() const { return head_dim_bucket(std::max(problem.head_dim, problem.value_dim)); }
  size_t lse_rows() const { return static_cast<size_t>(problem.tensor_batch()) * problem.heads * problem.rows(); }

  AttentionParams params() const {
    AttentionParams p{};
    p.out = out.ref();
    p.d_out = d_out.ref();
    p.value = value.ref();
    p.d_query = d_query.ref();
    p.lse = lse.data();
    p.lse_head = problem.rows();
    p.lse_batch = problem.packed ? 0 : int64_t{problem.heads} * problem.rows();
    p.lse_rows = static_cast<int64_t>(lse_rows());
    if (problem.packed) p.out.batch = p.d_out.batch = p.d_query.batch = p.value.batch = 0;
    p.sequences = problem.packed ? sequences.data() : nullptr;
    p.sink = sink.data();
    p.d_sink = d_sink.data();
    p.d_lse = d_lse.data();
    p.row_terms = delta.data();
    p.d_query_sum = d_query_sum.data();
    p.batch = problem.packed ? static_cast<int>(problem.lengths.size()) : problem.batch;
    p.heads = p.kv_heads = problem.heads;
    p.head_dim = problem.head_dim;
    p.value_dim = problem.value_dim;
    p.query_length = p.key_length = problem.longest();
    p.scale = 0.125f;
    return p;
  }

  /** f(b, row of the tensors, head, row of lse) */
  template <class F>
  void for_rows(F f) const {
    for (int b = 0; b < out.batch; ++b)
      for (int h = 0; h < problem.heads; ++h)
        for (int i = 0; i < problem.rows(); ++i)
          f(b, i, h, static_cast<size_t>(b * problem.heads + h) * problem.rows() + i);
  }

  const Problem problem;
  Tensor out, d_out, d_query, value;
  DeviceArray<float> lse, d_lse, delta, d_query_sum, sink, d_sink;
  DeviceArray<Sequence> sequences;

 private:
  Tensor tensor(int dim) const {
    return Tensor(problem.tensor_batch(), problem.rows(), problem.heads, dim, problem.dtype, problem.layout);
  }
  std::vector<Sequence> packed_sequences() const {
    std::vector<Sequence> packed;
    int begin = 0;
    for (const int length : problem.lengths) {
      packed.push_back({begin, length, begin, length});
      begin += length;
    }
    return packed;
  }
};

void check_delta(Backward& t, bool with_d_lse) {
  AttentionParams p = t.params();
  if (!with_d_lse) p.d_lse = nullptr;
  check(launch_backward_rows(p, nullptr));
  t.delta.download();
  t.for_rows([&](int b, int i, int h, size_t row) {
    double sum = with_d_lse ? -t.d_lse.host[row] : 0;
    for (int d = 0; d < t.problem.value_dim; ++d) sum += t.out.get(b, i, h, d) * t.d_out.get(b, i, h, d);
    const double got = t.delta.host[row];
    expect(close(DType::Float32, got, sum, 10), "delta of row %zu: %g, not %g", row, got, sum);
  });
}

void check_finish(Backward& t) {
  const AttentionParams p = t.params();
  check(launch_backward_finish(p, nullptr));
  t.d_query.download();
  t.for_rows([&](int b, int i, int h, size_t row) {
    for (int d = 0; d < p.head_dim; ++d) {
      const double expected = round_to(t.problem.dtype, p.scale * t.d_query_sum.host[row * t.bucket() + d]);
      const double got = t.d_query.get(b, i, h, d);
      expect(got == expected, "d_query [%d, %d, %d, %d]: %g, not %g", b, i, h, d, got, expected);
    }
  });
  expect(t.d_query.gaps_are_intact(), "d_query is written beyond its elements");
}

void check_sink(Backward& t) {
  const AttentionParams p = t.params();
  for (size_t row = 0; row < t.lse_rows(); row += 3) {  // empty rows, whatever their delta
    t.lse.host[row] = -INFINITY;
    t.delta.host[row] = NAN;
  }
  t.lse.upload();
  t.delta.upload();
  check(launch_backward_sink(p, nullptr));
  t.d_sink.download();
  std::vector<double> expected(p.heads);
  t.for_rows([&](int, int, int h, size_t row) {
    if (t.lse.host[row] == -INFINITY) return;
    expected[h] -= std::exp(double{t.sink.host[h]} - t.lse.host[row]) * t.delta.host[row];
  });
  for (int h = 0; h < p.heads; ++h)
    expect(close(DType::Float32, t.d_sink.host[h], expected[h], t.problem.rows()), "d_sink of head %d: %g, not %g", h,
           t.d_sink.host[h], expected[h]);

  const std::vector<float> first = t.d_sink.host;
  check(launch_backward_sink(p, nullptr));
  t.d_sink.download();
  expect(first == t.d_sink.host, "d_sink differs from run to run");
}

void check_problem(const Problem& problem, Random& random) {
  const int before = failures;
  Backward t(problem, random);
  check_delta(t, false);
  check_delta(t, true);
  check_finish(t);
  check_sink(t);
  if (failures == before) return;
  std::printf("in batch %d, heads %d, rows %d%s, head dim %d, value dim %d, %s, layout %d\n", problem.batch,
              problem.heads, problem.rows(), problem.packed ? " packed" : "", problem.head_dim, problem.value_dim,
              name_of(problem.dtype), static_cast<int>(problem.layout));
}

}  // namespace

}  // namespace flashattn::test

int main() {
  using namespace flashattn::test;
  start();
  Random random(1);
  constexpr int kDims[][2] = {{1, 1}, {8, 8}, {20, 33}, {64, 64}, {100, 7}, {128, 192}, {256, 256}};
  for (const auto& [head_dim, value_dim] : kDims)
    for (const flashattn::DType dtype : kDTypes)
      for (const Layout layout : kLayouts) {
        check_problem({2, 3, head_dim, value_dim, {5}, false, dtype, layout}, random);
        check_problem({1, 2, head_dim, value_dim, {4, 0, 9, 1}, true, dtype, layout}, random);
      }
  check_problem({2, 1, 16, 16, {700}, false, flashattn::DType::Float16, Layout::SeqFirst}, random);
  return finish();
}
