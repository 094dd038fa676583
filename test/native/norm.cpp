// Layer norm and RMS norm with their gradients on memory of exactly its size, against plain loops.
#include "ops/norm.h"

#include <vector>

#include "cases.h"
#include "check.h"

namespace flashattn::test {

namespace {

/** [rows, dim], rows `stride` apart. */
struct Matrix {
  Matrix(int rows, int dim, DType dtype, int gap = 0)
      : stride(dim + gap),
        dtype(dtype),
        bytes(size_t(rows == 0 ? 0 : (rows - 1) * stride + dim) * element_size(dtype)) {}

  uint8_t* at(int r, int i) const { return bytes.data() + (int64_t{r} * stride + i) * element_size(dtype); }
  double get(int r, int i) const { return decode(at(r, i), dtype); }

  int stride;
  DType dtype;
  Array<uint8_t> bytes;
};

Matrix random_matrix(Random& random, int rows, int dim, DType dtype, float factor = 1) {
  Matrix matrix(rows, dim, dtype, random.chance(30) ? random.integer(1, 5) : 0);
  for (int r = 0; r < rows; ++r)
    for (int i = 0; i < dim; ++i) encode(matrix.at(r, i), dtype, factor * random.number());
  return matrix;
}

struct NormCase {
  explicit NormCase(Random& random)
      : rows(random.chance(30) ? random.integer(60, 200) : random.integer(0, 5)),
        dim(random.chance(15) && rows < 6 ? random.integer(kLongRow - 1, 2 * kLongRow + 9) : random.integer(1, 300)),
        dtype(static_cast<DType>(random.integer(0, 2))),
        centered(random.chance(50)),
        with_residual(random.chance(50)),
        with_gain(random.chance(80)),
        with_bias(random.chance(60)),
        wants_parameters(random.chance(80)),
        // Squares beyond float32, of which sums of few elements are not.
        factor(random.chance(10) && dtype != DType::Float16 ? 0x1p100f : 1),
        x(random_matrix(random, rows, dim, dtype, factor)),
        residual(random_matrix(random, rows, dim, dtype, factor)),
        gain(random_matrix(random, 1, dim, static_cast<DType>(random.integer(0, 2)))),
        bias(random_matrix(random, 1, dim, static_cast<DType>(random.integer(0, 2)))),
        d_out(random_matrix(random, rows, dim, dtype)),
        d_sum(random_matrix(random, rows, dim, dtype)),
        out(rows, dim, dtype),
        sum(rows, dim, dtype),
        d_x(rows, dim, dtype),
        d_gain(1, dim, gain.dtype),
        d_bias(1, dim, bias.dtype),
        mean(rows),
        rstd(rows),
        chunk_rows(random.integer(1, 90)),
        partial_row(round_up(dim, 16)),
        partial(size_t(divide_up(rows, chunk_rows)) * 4 * partial_row) {}

  const Matrix& normed() const { return with_residual ? sum : x; }

  NormParams forward() const {
    NormParams p{};
    p.x = x.bytes.data();
    if (with_residual) p.residual = residual.bytes.data();
    if (with_residual) p.sum = sum.bytes.data();
    if (with_gain) p.gain = gain.bytes.data();
    if (with_bias) p.bias = bias.bytes.data();
    p.out = out.bytes.data();
    if (centered) p.mean = mean.data();
    p.rstd = rstd.data();
    p.rows = rows;
    p.dim = dim;
    p.x_row = x.stride;
    p.residual_row = residual.stride;
    p.dtype = dtype;
    p.gain_dtype = gain.dtype;
    p.bias_dtype = bias.dtype;
    p.epsilon = kEpsilon;
    p.centered = centered;
    return p;
  }

  NormParams backward() const {
    NormParams p = forward();
    p.residual = nullptr;
    p.x = normed().bytes.data();
    p.x_row = normed().stride;
    p.d_out = d_out.bytes.data();
    p.d_out_row = d_out.stride;
    if (with_residual) p.d_sum = d_sum.bytes.data();
    p.d_sum_row = d_sum.stride;
    p.d_x = d_x.bytes.data();
    if (wants_parameters) {
      if (with_gain) p.d_gain = d_gain.bytes.data();
      p.d_bias = d_bias.bytes.data();
      p.partial = partial.data();
    }
    p.chunk_rows = chunk_rows;
    p.chunks = divide_up(rows, chunk_rows);
    p.partial_row = partial_row;
    return p;
  }

  double gain_at(int i) const { return with_gain ? gain.get(0, i) : 1; }

  static constexpr float kEpsilon = 1e-3f;

  int rows, dim;
  DType dtype;
  bool centered, with_residual, with_gain, with_bias, wants_parameters;
  float factor;
  Matrix x, residual, gain, bias, d_out, d_sum, out, sum, d_x, d_gain, d_bias;
  Array<float> mean, rstd;
  int chunk_rows, partial_row;
  Array<float> partial;
};

void check_forward(Check& check, const NormCase& c) {
  for (int r = 0; r < c.rows; ++r) {
    if (c.with_residual)
      for (int i = 0; i < c.dim; ++i)
        check.near("a sum", c.sum.get(r, i), c.x.get(r, i) + c.residual.get(r, i), 0, rounding(c.dtype));
    double mean = 0, variance = 0;
    for (int i = 0; c.centered && i < c.dim; ++i) mean += c.normed().get(r, i) / c.dim;
    for (int i = 0; i < c.dim; ++i) variance += pow(c.normed().get(r, i) - mean, 2) / c.dim;
    const double rstd = 1 / sqrt(variance + c.kEpsilon);
    check.near("rstd", c.rstd[r], rstd, 0, 1e-5);
    if (c.centered) check.near("a mean", c.mean[r], mean, 2e-7 * c.factor, 2e-7);
    for (int i = 0; i < c.dim; ++i) {
      const double wanted = (c.normed().get(r, i) - mean) * rstd * c.gain_at(i) + (c.with_bias ? c.bias.get(0, i) : 0);
      check.near("an element", c.out.get(r, i), wanted, 2e-5, rounding(c.dtype));
    }
  }
}

void check_backward(Check& check, const NormCase& c) {
  std::vector<double> d_gain(c.dim), d_bias(c.dim);
  for (int r = 0; r < c.rows; ++r) {
    const double mean = c.centered ? c.mean[r] : 0, rstd = c.rstd[r];
    const auto normed = [&](int i) { return (c.normed().get(r, i) - mean) * rstd; };
    double mean_d = 0, mean_product = 0;
    for (int i = 0; i < c.dim; ++i) {
      const double dy = c.d_out.get(r, i), d = dy * c.gain_at(i);
      if (c.centered) mean_d += d / c.dim;
      mean_product += d * normed(i) / c.dim;
      d_gain[i] += dy * normed(i);
      d_bias[i] += dy;
    }
    for (int i = 0; i < c.dim; ++i) {
      const double d = c.d_out.get(r, i) * c.gain_at(i);
      const double wanted = rstd * (d - mean_d - normed(i) * mean_product) + (c.with_residual ? c.d_sum.get(r, i) : 0);
      check.near("a gradient", c.d_x.get(r, i), wanted, 2e-5 * rstd, 1e-6 + rounding(c.dtype));
    }
  }
  if (!c.wants_parameters) return;
  for (int i = 0; i < c.dim; ++i) {
    if (c.with_gain) check.near("the gradient of gain", c.d_gain.get(0, i), d_gain[i], 1e-3, rounding(c.gain.dtype));
    check.near("the gradient of bias", c.d_bias.get(0, i), d_bias[i], 1e-4, rounding(c.bias.dtype));
  }
}

}  // namespace

bool norm_case(uint64_t seed) {
  Random random(seed);
  const NormCase c(random);
  Check check({"norm", seed});
  const auto workspace = poisoned_workspace<LongRowWorkspace>();
  const NormParams forward = c.forward(), backward = c.backward();
  for (int item = norm_items(forward) - 1; item >= 0; --item) norm_item(forward, item, *workspace);
  check_forward(check, c);
  if (!check.passed()) return false;
  for (int item = norm_backward_items(backward) - 1; item >= 0; --item) norm_backward_item(backward, item, *workspace);
  for (int item = finish_norm_items(backward) - 1; item >= 0; --item) finish_norm_item(backward, item);
  check_backward(check, c);
  return check.passed();
}

}  // namespace flashattn::test
