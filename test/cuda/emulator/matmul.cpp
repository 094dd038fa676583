// The kernels of matmul for one element type, ELEMENT, against plain loops: every tile, every way in which factors lie, and
// what the last step adds. Also what seeded bugs are shown on.
#include "sm80/matmul.cuh"
#include "device_tensor.h"

namespace flashattn::test {

namespace {

/** How a matrix lies in memory. */
struct Lie {
  bool transposed;
  int pad;       // elements between rows
  int step = 1;  // elements from one column to the next
};
constexpr Lie kAligned{false, 0}, kTurned{true, 0};

/** [batch, rows, columns] of which entries are a matrix apart, or all the same. */
class TestMatrix {
 public:
  const int rows, columns;
  const DType dtype;

  TestMatrix(int batch, int rows, int columns, DType dtype, Lie lie)
      : rows(rows),
        columns(columns),
        dtype(dtype),
        lie_(lie),
        length_((lie.transposed ? rows : columns) * lie.step),
        stride_((length_ + 7) / 8 * 8 + lie.pad),
        entry_(batch == 1 ? 0 : int64_t{stride_} * (lie.transposed ? columns : rows)),
        entries_(batch),
        bytes_(static_cast<size_t>(stride_) * (lie.transposed ? columns : rows) * batch * format_of(dtype).bytes,
               kGap) {}

  MatrixRef ref() const {
    const int64_t row = lie_.transposed ? lie_.step : stride_, column = lie_.transposed ? stride_ : lie_.step;
    return {bytes_.data(), row, column, {0, 0, 0, entry_}, dtype, 0};
  }
  double get(int b, int i, int j) const { return decode(dtype, read_bits(dtype, bytes_.host.data(), at(b, i, j))); }
  void set(int b, int i, int j, double x) { write_bits(dtype, bytes_.host.data(), at(b, i, j), encode(dtype, x)); }
  void randomize(Random& random, double low) {
    for_each([&](int b, int i, int j) { set(b, i, j, random.uniform(low, 1)); });
    upload();
  }
  void upload() { bytes_.upload(); }
  void download() { bytes_.download(); }
  bool gaps_are_intact() const {
    std::vector<uint8_t> rest = bytes_.host;
    for_each([&](int b, int i, int j) { write_bits(dtype, rest.data(), at(b, i, j), 0xffffffffu); });
    return std::all_of(rest.begin(), rest.end(), [](uint8_t byte) { return byte == kGap; });
  }

 private:
  static constexpr uint8_t kGap = 0xff;  // a NaN in every dtype

  template <class F>
  void for_each(F f) const {
    for (int b = 0; b < entries_; ++b)
      for (int i = 0; i < rows; ++i)
        for (int j = 0; j < columns; ++j) f(b, i, j);
  }
  int64_t at(int b, int i, int j) const {
    return b * entry_ + int64_t{stride_} * (lie_.transposed ? j : i) + (lie_.transposed ? i : j) * lie_.step;
  }

  Lie lie_;
  int length_, stride_;
  int64_t entry_;
  int entries_;
  DeviceArray<uint8_t> bytes_;
};

enum class Bias { None, Columns, Rows, Whole };

struct Problem {
  int batch, rows, columns, inner;
  Lie a = kAligned, b = kAligned, c = kAligned;
  DType result = ELEMENT::kDType;
  Bias bias = Bias::None;
  Activation activation = Activation::None;
  bool accumulate = false, shares_b = false, infinite = false;
  float alpha = 1;
};

double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::Gelu: return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
    case Activation::GeluTanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / 3.14159265358979) * (x + 0.044715 * x * x * x)));
    case Activation::Silu: return x / (1 + std::exp(-x));
    case Activation::Relu: return x > 0 ? x : 0;
    default: return x;
  }
}

cudaError_t launch(const MatmulParams& p, MatmulTile tile, bool carries, bool a_outer, bool b_outer) {
  using enum Along;
  if (a_outer && b_outer) return launch_matmul_layout<ELEMENT, Outer, Outer>(p, tile, carries, nullptr);
  if (a_outer) return launch_matmul_layout<ELEMENT, Outer, Inner>(p, tile, carries, nullptr);
  if (b_outer) return launch_matmul_layout<ELEMENT, Inner, Outer>(p, tile, carries, nullptr);
  return launch_matmul_layout<ELEMENT, Inner, Inner>(p, tile, carries, nullptr);
}

void check_product(const Problem& problem, MatmulTile tile, Random& random) {
  const auto& [batch, rows, columns, inner, lie_a, lie_b, lie_c, result, bias_kind, activation, accumulate, shares_b,
               infinite, alpha] = problem;
  const bool carries = result == DType::Float32 && inner > kCarryRows;
  // Of one sign where rounding of long sums is to be seen.
  const double low = carries ? 0.5 : -1;
  TestMatrix a(batch, rows, inner, ELEMENT::kDType, lie_a);
  TestMatrix b(shares_b ? 1 : batch, inner, columns, ELEMENT::kDType, lie_b);
  TestMatrix c(batch, rows, columns, result, lie_c);
  TestMatrix bias(bias_kind == Bias::Whole ? batch : 1, bias_kind == Bias::Columns ? 1 : rows,
                  bias_kind == Bias::Rows ? 1 : columns, ELEMENT::kDType, kAligned);
  a.randomize(random, low);
  b.randomize(random, low);
  bias.randomize(random, -1);
  c.randomize(random, -1);
  if (infinite) {
    a.set(0, 5, 9, kInf);
    b.set(0, 20, 3, -kInf);
    b.set(0, 9, 3, kInf);
    b.set(0, 11, 7, kNaN);
    a.upload();
    b.upload();
  }
  const TestMatrix before = [&] {
    TestMatrix copy(batch, rows, columns, result, kAligned);
    for (int e = 0; e < batch; ++e)
      for (int i = 0; i < rows; ++i)
        for (int j = 0; j < columns; ++j) copy.set(e, i, j, c.get(e, i, j));
    return copy;
  }();

  MatmulParams p{};
  p.a = a.ref();
  p.b = b.ref();
  p.c = c.ref();
  if (bias_kind != Bias::None) p.bias = bias.ref();
  if (bias_kind == Bias::Columns) p.bias.row = 0;
  if (bias_kind == Bias::Rows) p.bias.column = 0;
  p.batch[0] = p.batch[1] = p.batch[2] = 1;
  p.batch[3] = batch;
  p.rows = rows;
  p.columns = columns;
  p.inner = inner;
  p.alpha = alpha;
  p.accumulate = accumulate;
  p.activation = activation;
  const bool a_outer = lie_a.transposed && lie_a.step == 1 && tile != MatmulTile::Thin;
  const bool b_outer = !lie_b.transposed && lie_b.step == 1;
  check(launch(p, tile, carries, a_outer, b_outer));
  c.download();
  for (int e = 0; e < batch; ++e)
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < columns; ++j) {
        double sum = 0, scale = 0;
        for (int k = 0; k < inner; ++k) {
          const double term = a.get(e, i, k) * b.get(e, k, j);
          sum += term;
          scale += std::fabs(term);
        }
        double wanted = alpha * sum;
        if (bias_kind != Bias::None)
          wanted += bias.get(bias_kind == Bias::Whole ? e : 0, bias_kind == Bias::Columns ? 0 : i,
                             bias_kind == Bias::Rows ? 0 : j);
        wanted = activated(activation, wanted);
        if (accumulate) wanted += before.get(e, i, j);
        const double got = c.get(e, i, j);
        expect(close(result, got, wanted, scale), "C [%d, %d, %d] of %d x %d x %d in tile %d: %.9g instead of %.9g", e,
               i, j, rows, columns, inner, static_cast<int>(tile), got, wanted);
      }
  expect(c.gaps_are_intact(), "C: written beyond its rows");
}

constexpr DType kOther = ELEMENT::kDType == DType::Float32 ? DType::BFloat16 : DType::Float32;

}  // namespace

}  // namespace flashattn::test

int main() {
  using namespace flashattn;
  using namespace flashattn::test;
  start();
  Random random(1);
  for (const MatmulTile tile : {MatmulTile::Large, MatmulTile::Small, MatmulTile::Thin}) {
    const MatmulShape shape = matmul_shape(sizeof(ELEMENT::Storage), tile);
    // Two tiles each way, of which the second is not whole, and an inner dim that is longer than the slots.
    const int rows = shape.rows + 2, columns = shape.columns + 9, inner = shape.slots * shape.inner + 8;
    for (const bool turn_a : {false, true})
      for (const bool turn_b : {false, true})
        check_product(
            {.batch = 1, .rows = rows, .columns = columns, .inner = inner, .a = {turn_a, 0}, .b = {turn_b, 0}}, tile,
            random);
    check_product({.batch = 1, .rows = shape.rows, .columns = shape.columns, .inner = 2 * shape.inner}, tile, random);
    for (const int size : {1, 7}) check_product({.batch = 2, .rows = size, .columns = 3, .inner = size}, tile, random);
    const Problem small{.batch = 2, .rows = 19, .columns = 21, .inner = 37};
    const auto with = [&](auto change) {
      Problem problem = small;
      change(problem);
      check_product(problem, tile, random);
    };
    with([](Problem& p) { p.inner = 0, p.bias = Bias::Columns; });
    for (const int pad : {4, 2, 1}) with([&](Problem& p) { p.a.pad = p.b.pad = p.c.pad = pad, p.accumulate = true; });
    with([](Problem& p) { p.a.step = p.b.step = p.c.step = 2, p.bias = Bias::Whole, p.accumulate = true; });
    with([](Problem& p) { p.a = p.b = {true, 1, 2}, p.c = kTurned, p.bias = Bias::Rows, p.alpha = -0.5f; });
    with([](Problem& p) { p.shares_b = true, p.result = kOther, p.bias = Bias::Columns, p.accumulate = true; });
    using enum Activation;
    for (const Activation activation : {Gelu, GeluTanh, Silu, Relu})
      with([&](Problem& p) { p.activation = activation, p.bias = Bias::Columns, p.alpha = 2; });
    with([](Problem& p) { p.infinite = true; });
    with([](Problem& p) {
      p.batch = 1, p.rows = p.columns = 3, p.inner = 2 * kCarryRows + 45, p.result = DType::Float32;
    });
  }
  for (const emulator::ConflictSite& site : emulator::conflict_sites())
    expect(false, "%llu bank conflicts at %s", static_cast<unsigned long long>(site.conflicts), site.place.c_str());
  return finish();
}
