// The forward kernel of one element type, ELEMENT, and head dim 64 against plain loops: what seeded bugs are shown on.
#include <memory>

#include "device_tensor.h"
#include "sm80/forward.cuh"

namespace flashattn::test {

namespace {

struct Problem {
  int batch, heads, kv_heads, queries, keys, dim;
  bool causal;
  Layout layout;
};

constexpr DeviceLimits kLimits[] = {{8, 0, 166912, 1}, {8, 6, 101376, 1 << 20}};  // large tiles, small tiles

class Forward {
 public:
  Forward(const Problem& problem, Random& random)
      : problem(problem),
        query(make(problem.queries, problem.heads)),
        key(make(problem.keys, problem.kv_heads)),
        value(make(problem.keys, problem.kv_heads)),
        out(make(problem.queries, problem.heads)),
        lse(static_cast<size_t>(problem.batch) * problem.heads * problem.queries, 0.0f) {
    for (Tensor* tensor : {&query, &key, &value}) tensor->randomize(random);
    if (problem.causal) hide_a_nan();
    if (problem.keys > 2 * kCarryRows) raise_maxima();
  }

  AttentionParams params() {
    AttentionParams p{};
    p.query = query.ref();
    p.key = key.ref();
    p.value = value.ref();
    p.out = out.ref();
    p.lse = lse.data();
    p.lse_batch = static_cast<int64_t>(problem.heads) * problem.queries;
    p.lse_head = problem.queries;
    p.batch = problem.batch;
    p.heads = problem.heads;
    p.kv_heads = problem.kv_heads;
    p.head_dim = p.value_dim = problem.dim;
    p.query_length = problem.queries;
    p.key_length = problem.keys;
    p.scale = 1 / std::sqrt(static_cast<float>(problem.dim));
    p.window_left = kUnbounded;
    p.window_right = problem.causal ? 0 : kUnbounded;
    return p;
  }

  void check_results() {
    out.download();
    lse.download();
    for (int b = 0; b < problem.batch; ++b)
      for (int h = 0; h < problem.heads; ++h)
        for (int i = 0; i < problem.queries; ++i) check_row(b, i, h);
    expect(out.gaps_are_intact(), "out: written beyond its rows");
  }

  const Problem problem;
  Tensor query, key, value, out;
  DeviceArray<float> lse;

 private:
  Tensor make(int rows, int heads) const {
    return {problem.batch, rows, heads, problem.dim, ELEMENT::kDType, problem.layout};
  }

  /** The last key is seen by the last query alone. */
  void hide_a_nan() {
    value.set(0, problem.keys - 1, 0, 0, kNaN);
    value.upload();
  }

  /** The first query's largest score so far is one of those after each carry. */
  void raise_maxima() {
    for (int carries = 1; carries <= 2; ++carries)
      for (int d = 0; d < problem.dim; ++d) key.set(0, carries * kCarryRows + 1, 0, d, carries * query.get(0, 0, 0, d));
    key.upload();
  }

  void check_row(int b, int i, int h) {
    const int kv_head = h / (problem.heads / problem.kv_heads), diagonal = problem.keys - problem.queries;
    const int end = problem.causal ? std::clamp(i + diagonal + 1, 0, problem.keys) : problem.keys;
    std::vector<double> sum(problem.dim, 0.0);
    double total = 0;
    for (int j = 0; j < end; ++j) {
      double score = 0;
      for (int d = 0; d < problem.dim; ++d) score += query.get(b, i, h, d) * key.get(b, j, kv_head, d);
      const double weight = std::exp(score / std::sqrt(problem.dim));
      total += weight;
      for (int d = 0; d < problem.dim; ++d) sum[d] += weight * value.get(b, j, kv_head, d);
    }
    const float found = lse.host[(static_cast<size_t>(b) * problem.heads + h) * problem.queries + i];
    expect(close(DType::Float32, found, std::log(total)), "lse [%d, %d, %d]: %g", b, h, i, found);
    for (int d = 0; d < problem.dim; ++d) {
      const double wanted = total > 0 ? sum[d] / total : 0, got = out.get(b, i, h, d);
      // Probabilities are rounded to float16 before they meet the values.
      const double tolerance = ELEMENT::kDType == DType::Float32 ? 2e-6 : 2e-3;
      const bool right = std::isnan(wanted) ? std::isnan(got) : std::fabs(got - wanted) <= tolerance;
      expect(right, "out [%d, %d, %d, %d]: %g instead of %g", b, i, h, d, got, wanted);
    }
  }
};

}  // namespace

}  // namespace flashattn::test

int main() {
  using namespace flashattn;
  using namespace flashattn::test;
  start();
  Random random(1);
  std::vector<Problem> problems = {{1, 2, 1, 150, 200, 64, true, Layout::SeqFirst},
                                   {2, 1, 1, 70, 33, 50, true, Layout::HeadsFirst},
                                   {1, 2, 2, 1, 130, 64, false, Layout::Padded}};
  // More keys than a sum takes.
  if (kCarries<ELEMENT>) problems.push_back({1, 1, 1, 5, 2 * kCarryRows + 45, 50, false, Layout::Padded});
  for (const DeviceLimits& limits : kLimits)
    for (const Problem& problem : problems) {
      Forward forward(problem, random);
      check(launch_forward_bucket<ELEMENT, 64>(forward.params(), limits, nullptr));
      forward.check_results();
    }
  for (const emulator::ConflictSite& site : emulator::conflict_sites())
    // Pairs of float32 are stored at two to a bank.
    expect(ELEMENT::kDType == DType::Float32, "%llu bank conflicts at %s",
           static_cast<unsigned long long>(site.conflicts), site.place.c_str());
  return finish();
}
