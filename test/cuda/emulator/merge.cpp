// Merging attention states, and its gradient, against plain loops.
#include <memory>
#include <optional>

#include "device_tensor.h"
#include "launch.h"

namespace flashattn::test {

namespace {

struct Problem {
  int parts, batch, heads, rows, dim;
  DType dtype;
  Layout layout;
};

/** Parts of every dtype and layout, some of them empty. */
class Merge {
 public:
  Merge(const Problem& problem, Random& random)
      : problem(problem),
        out(tensor(problem.dtype, problem.layout)),
        d_out(tensor(problem.dtype, problem.layout)),
        lse(lse_size(), 0.0f),
        d_lse(random_floats(lse_size(), random)) {
    d_out.randomize(random);
    for (int part = 0; part < problem.parts; ++part) {
      parts.push_back(std::make_unique<Part>(tensor(kDTypes[(part + static_cast<int>(problem.dtype)) % 3],
                                                    kLayouts[(part + static_cast<int>(problem.layout)) % 3]),
                                             random_floats(lse_size(), random)));
      Part& made = *parts.back();
      made.out.randomize(random);
      made.d_out = std::make_unique<Tensor>(tensor(made.out.dtype, problem.layout));
    }
  }

  struct Part {
    Part(Tensor tensor, DeviceArray<float> array)
        : out(std::move(tensor)),
          lse(std::move(array)),
          d_lse(lse.host.size(), 0.0f) {}
    Tensor out;
    DeviceArray<float> lse, d_lse;
    std::unique_ptr<Tensor> d_out;
  };

  size_t lse_size() const { return static_cast<size_t>(problem.batch) * problem.heads * problem.rows; }
  size_t lse_row(int b, int i, int h) const { return (static_cast<size_t>(b) * problem.heads + h) * problem.rows + i; }

  /** What the launches are told; valid until the next call. */
  MergeParams params() {
    std::vector<MergePart> refs;
    for (const auto& part : parts)
      refs.push_back({part->out.ref(), part->d_out->ref(), part->lse.data(), part->d_lse.data()});
    refs_.emplace(std::move(refs));
    return {refs_->data(), out.ref(),    d_out.ref(), lse.data(), d_lse.data(), problem.parts, problem.batch,
            problem.heads, problem.rows, problem.dim, 0};
  }

  /** f(b, i, h, row of lse) */
  template <class F>
  void for_rows(F f) const {
    for (int b = 0; b < problem.batch; ++b)
      for (int h = 0; h < problem.heads; ++h)
        for (int i = 0; i < problem.rows; ++i) f(b, i, h, lse_row(b, i, h));
  }

  const Problem problem;
  Tensor out, d_out;
  DeviceArray<float> lse, d_lse;
  std::vector<std::unique_ptr<Part>> parts;

 private:
  Tensor tensor(DType dtype, Layout layout) const {
    return Tensor(problem.batch, problem.rows, problem.heads, problem.dim, dtype, layout);
  }
  std::optional<DeviceArray<MergePart>> refs_;
};

/** Row 0 is empty in every part, row 1 in the first; in row 2 only the last weighs anything; row 3 has a NaN. */
void add_special_rows(Merge& t) {
  const int count = t.problem.parts;
  for (int part = 0; part < count; ++part) {
    Merge::Part& p = *t.parts[part];
    const bool has_nan = part == count / 2;
    if (t.problem.rows > 0) p.lse.host[t.lse_row(0, 0, 0)] = -INFINITY;
    if (t.problem.rows > 1 && part == 0) p.lse.host[t.lse_row(0, 1, 0)] = -INFINITY;
    if (t.problem.rows > 2 && part + 1 < count) p.lse.host[t.lse_row(0, 2, 0)] = -500;
    if (t.problem.rows > 3 && has_nan) p.lse.host[t.lse_row(0, 3, 0)] = NAN;
    for (int i = 0; i < std::min(t.problem.rows, 3); ++i)
      if (p.lse.host[t.lse_row(0, i, 0)] < -100) p.out.set(0, i, 0, 0, kNaN);
    p.lse.upload();
    p.out.upload();
  }
}

struct MergedRow {
  double lse;
  std::vector<double> out;
};

MergedRow merged_row(const Merge& t, int b, int i, int h) {
  double sum = 0;
  MergedRow merged{-kInf, std::vector<double>(t.problem.dim)};
  for (const auto& part : t.parts) {
    const double weight = std::exp(double{part->lse.host[t.lse_row(b, i, h)]});
    if (weight < 1e-200) continue;
    sum += weight;
    for (int d = 0; d < t.problem.dim; ++d) merged.out[d] += weight * part->out.get(b, i, h, d);
  }
  if (sum == 0) return merged;
  merged.lse = std::log(sum);
  for (double& x : merged.out) x /= sum;
  return merged;
}

void check_merge(Merge& t) {
  check(launch_merge(t.params(), {}, nullptr));
  t.out.download();
  t.lse.download();
  t.for_rows([&](int b, int i, int h, size_t row) {
    const MergedRow expected = merged_row(t, b, i, h);
    for (int d = 0; d < t.problem.dim; ++d) {
      const double got = t.out.get(b, i, h, d);
      expect(close(t.out.dtype, got, expected.out[d]), "out [%d, %d, %d, %d]: %g, not %g", b, i, h, d, got,
             expected.out[d]);
    }
    const double got = t.lse.host[row];
    expect(close(DType::Float32, got, expected.lse), "lse [%d, %d, %d]: %g, not %g", b, h, i, got, expected.lse);
  });
  expect(t.out.gaps_are_intact(), "out is written beyond its elements");
}

/** Expects out and lse as check_merge leaves them. */
void check_merge_backward(Merge& t, bool with_d_lse) {
  MergeParams p = t.params();
  if (!with_d_lse) p.d_lse = nullptr;
  check(launch_merge_backward(p, {}, nullptr));
  for (auto& part : t.parts) {
    part->d_out->download();
    part->d_lse.download();
    t.for_rows([&](int b, int i, int h, size_t row) {
      const double lse = part->lse.host[row], weight = lse < -100 ? 0 : std::exp(lse - t.lse.host[row]);
      double d_weight = with_d_lse ? t.d_lse.host[row] : 0;
      for (int d = 0; d < t.problem.dim; ++d) {
        const double d_out = t.d_out.get(b, i, h, d), expected = weight == 0 ? 0 : weight * d_out;
        const double got = part->d_out->get(b, i, h, d);
        expect(close(part->d_out->dtype, got, expected), "d_out [%d, %d, %d, %d]: %g, not %g", b, i, h, d, got,
               expected);
        d_weight += d_out * (part->out.get(b, i, h, d) - t.out.get(b, i, h, d));
      }
      const double expected = weight == 0 ? 0 : weight * d_weight, got = part->d_lse.host[row];
      expect(close(DType::Float32, got, expected, 10), "d_lse [%d, %d, %d]: %g, not %g", b, h, i, got, expected);
    });
    expect(part->d_out->gaps_are_intact(), "d_out is written beyond its elements");
  }
}

void check_problem(const Problem& problem, Random& random) {
  const int before = failures;
  Merge t(problem, random);
  add_special_rows(t);
  check_merge(t);
  check_merge_backward(t, false);
  check_merge_backward(t, true);
  if (failures == before) return;
  std::printf("in parts %d, batch %d, heads %d, rows %d, dim %d, %s, layout %d\n", problem.parts, problem.batch,
              problem.heads, problem.rows, problem.dim, name_of(problem.dtype), static_cast<int>(problem.layout));
}

}  // namespace

}  // namespace flashattn::test

int main() {
  using namespace flashattn::test;
  start();
  Random random(2);
  for (const int dim : {1, 8, 33, 64, 100, 192, 256})
    for (const flashattn::DType dtype : kDTypes)
      for (const Layout layout : kLayouts)
        for (const int parts : {1, 4}) check_problem({parts, 2, 2, 5, dim, dtype, layout}, random);
  check_problem({2, 1, 1, 1, 40, flashattn::DType::Float32, Layout::SeqFirst}, random);
  check_problem({3, 2, 2, 0, 40, flashattn::DType::Float32, Layout::SeqFirst}, random);
  return finish();
}
