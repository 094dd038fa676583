// Rows of any length against plain loops: softmax and its gradient along two dims, layer norm and RMS norm with theirs.
#include "device_tensor.h"
#include "launch.h"

namespace flashattn::test {

namespace {

/** Of the dims batch, seq and dim, whose heads are one. */
struct View {
  int64_t batch, seq;  // strides; that of dim is 1
};

View view_of(const Tensor& tensor) { return {tensor.ref().batch, tensor.ref().seq}; }

/** Rows along dim, or where `across`, along seq, so that neighbouring rows lie side by side. */
void set_strides(int64_t (&strides)[4], const Tensor& tensor, bool across) {
  const View view = view_of(tensor);
  strides[0] = 0;
  strides[1] = view.batch;
  strides[2] = across ? 1 : view.seq;
  strides[3] = across ? view.seq : 1;
}

double relative_unit(DType dtype) { return dtype == DType::Float32 ? 0 : dtype == DType::Float16 ? 0x1p-10 : 0x1p-7; }

void expect_near(const char* what, double got, double wanted, double absolute, DType dtype) {
  const double tolerance = absolute + (1e-5 + relative_unit(dtype)) * std::fabs(wanted);
  expect(std::fabs(got - wanted) <= tolerance, "%s of %s: %g, not %g", what, name_of(dtype), got, wanted);
}

void check_softmax(int batch, int seq, int dim, bool across, bool log, DType dtype, Layout layout, Random& random) {
  Tensor x(batch, seq, 1, dim, dtype, layout), d_out(batch, seq, 1, dim, dtype, layout);
  Tensor out(batch, seq, 1, dim, dtype, layout), dx(batch, seq, 1, dim, dtype, layout);
  x.randomize(random);
  d_out.randomize(random);
  SoftmaxParams p{};
  p.x = x.ref().data;
  p.result = out.ref().data;
  p.outer[0] = 1, p.outer[1] = batch, p.outer[2] = across ? dim : seq;
  p.length = across ? seq : dim;
  set_strides(p.x_strides, x, across);
  set_strides(p.result_strides, out, across);
  p.dtype = dtype;
  p.log = log;
  check(launch_softmax(p, {}, nullptr));
  out.download();
  p.x = out.ref().data;
  p.d_out = d_out.ref().data;
  p.result = dx.ref().data;
  set_strides(p.d_out_strides, d_out, across);
  check(launch_softmax_backward(p, {}, nullptr));
  dx.download();
  const int length = static_cast<int>(p.length), rows = static_cast<int>(p.outer[2]);
  for (int b = 0; b < batch; ++b)
    for (int r = 0; r < rows; ++r) {
      const auto get = [&](const Tensor& t, int i) { return across ? t.get(b, i, 0, r) : t.get(b, r, 0, i); };
      double sum = 0, d_sum = 0;
      for (int i = 0; i < length; ++i) sum += std::exp(get(x, i));
      for (int i = 0; i < length; ++i) d_sum += get(d_out, i) * (log ? 1 : get(out, i));
      for (int i = 0; i < length; ++i) {
        const double y = get(out, i), dy = get(d_out, i);
        expect_near("softmax", y, log ? get(x, i) - std::log(sum) : std::exp(get(x, i)) / sum, 1e-6, dtype);
        expect_near("its gradient", get(dx, i), log ? dy - std::exp(y) * d_sum : y * (dy - d_sum), 1e-5, dtype);
      }
    }
  expect(out.gaps_are_intact() && dx.gaps_are_intact(), "softmax writes between rows");
}

struct NormCase {
  int rows, dim;
  bool centered, residual;
  DType dtype, parameters;
  Layout layout;
};

void check_norm(const NormCase& c, Random& random) {
  const auto matrix = [&](Layout layout) {
    Tensor t(1, c.rows, 1, c.dim, c.dtype, layout);
    t.randomize(random);
    return t;
  };
  const auto parameter = [&] {
    Tensor t(1, 1, 1, c.dim, c.parameters, c.layout);
    t.randomize(random);
    return t;
  };
  Tensor x = matrix(c.layout), residual = matrix(c.layout), d_out = matrix(c.layout), d_sum = matrix(c.layout);
  Tensor sum = matrix(Layout::SeqFirst), out = matrix(Layout::SeqFirst), dx = matrix(Layout::SeqFirst);
  Tensor gain = parameter(), bias = parameter(), d_gain = parameter(), d_bias = parameter();
  constexpr int kChunkRows = 11;
  const int chunks = (c.rows + kChunkRows - 1) / kChunkRows, partial_row = (c.dim + 15) / 16 * 16;
  DeviceArray<float> mean(c.rows, 0.0f), rstd(c.rows, 0.0f);
  DeviceArray<float> partial(static_cast<size_t>(chunks) * 4 * partial_row, NAN);
  NormParams p{};
  p.x = x.ref().data;
  if (c.residual) p.residual = residual.ref().data, p.sum = sum.ref().data;
  p.gain = gain.ref().data;
  p.bias = bias.ref().data;
  p.out = out.ref().data;
  if (c.centered) p.mean = mean.data();
  p.rstd = rstd.data();
  p.rows = c.rows;
  p.dim = c.dim;
  p.x_row = x.ref().seq, p.residual_row = residual.ref().seq;
  p.dtype = c.dtype;
  p.gain_dtype = p.bias_dtype = c.parameters;
  p.epsilon = 1e-3f;
  p.centered = c.centered;
  check(launch_norm(p, {}, nullptr));
  const Tensor& normed = c.residual ? sum : x;
  p.x = normed.ref().data;
  p.x_row = normed.ref().seq;
  p.residual = nullptr;
  p.d_out = d_out.ref().data;
  p.d_out_row = d_out.ref().seq;
  if (c.residual) p.d_sum = d_sum.ref().data;
  p.d_sum_row = d_sum.ref().seq;
  p.d_x = dx.ref().data;
  p.d_gain = d_gain.ref().data;
  p.d_bias = d_bias.ref().data;
  p.partial = partial.data();
  p.chunks = chunks;
  p.chunk_rows = kChunkRows;
  p.partial_row = partial_row;
  check(launch_norm_backward(p, {}, nullptr));
  for (Tensor* t : {&sum, &out, &dx, &d_gain, &d_bias}) t->download();

  std::vector<double> wanted_gain(c.dim), wanted_bias(c.dim), y(c.dim);
  for (int r = 0; r < c.rows; ++r) {
    double mean_x = 0, variance = 0, mean_g = 0, product = 0;
    for (int i = 0; i < c.dim; ++i) {
      if (c.residual)
        expect_near("a sum", sum.get(0, r, 0, i), x.get(0, r, 0, i) + residual.get(0, r, 0, i), 0, c.dtype);
      if (c.centered) mean_x += normed.get(0, r, 0, i) / c.dim;
    }
    for (int i = 0; i < c.dim; ++i) variance += std::pow(normed.get(0, r, 0, i) - mean_x, 2) / c.dim;
    const double rstd_x = 1 / std::sqrt(variance + p.epsilon);
    for (int i = 0; i < c.dim; ++i) {
      y[i] = (normed.get(0, r, 0, i) - mean_x) * rstd_x;
      const double dy = d_out.get(0, r, 0, i), g = dy * gain.get(0, 0, 0, i);
      if (c.centered) mean_g += g / c.dim;
      product += g * y[i] / c.dim;
      wanted_gain[i] += dy * y[i];
      wanted_bias[i] += dy;
    }
    for (int i = 0; i < c.dim; ++i) {
      expect_near("norm", out.get(0, r, 0, i), y[i] * gain.get(0, 0, 0, i) + bias.get(0, 0, 0, i), 1e-4, c.dtype);
      const double g = d_out.get(0, r, 0, i) * gain.get(0, 0, 0, i);
      const double wanted = rstd_x * (g - mean_g - y[i] * product) + (c.residual ? d_sum.get(0, r, 0, i) : 0);
      expect_near("its gradient", dx.get(0, r, 0, i), wanted, 1e-3, c.dtype);
    }
  }
  for (int i = 0; i < c.dim; ++i) {
    expect_near("d_gain", d_gain.get(0, 0, 0, i), wanted_gain[i], 1e-3, c.parameters);
    expect_near("d_bias", d_bias.get(0, 0, 0, i), wanted_bias[i], 1e-4, c.parameters);
  }
}

}  // namespace

}  // namespace flashattn::test

int main() {
  using namespace flashattn::test;
  using flashattn::DType;
  start();
  Random random(1);
  for (const DType dtype : kDTypes)
    for (const Layout layout : {Layout::SeqFirst, Layout::Padded}) {
      for (const bool log : {false, true}) {
        for (const int dim : {1, 13, 64}) check_softmax(2, 11, dim, false, log, dtype, layout, random);
        for (const int dim : {1025, 2056}) check_softmax(1, 2, dim, false, log, dtype, layout, random);
        for (const int dim : {2, 33}) check_softmax(2, 70, dim, true, log, dtype, layout, random);
      }
      for (const bool flag : {false, true}) {
        for (const int dim : {1, 35, 64}) check_norm({25, dim, flag, !flag, dtype, DType::Float32, layout}, random);
        for (const int dim : {1031, 8216}) check_norm({2, dim, !flag, flag, dtype, dtype, layout}, random);
      }
    }
  return finish();
}
