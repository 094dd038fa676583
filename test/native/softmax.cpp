// Softmax and its gradient on memory of exactly its size, against plain loops.
#include "ops/softmax.h"

#include <vector>

#include "cases.h"
#include "check.h"

namespace flashattn::test {

namespace {

/** [2, outer, length, inner] in memory in either order of the last two, with steps between its elements. */
struct Rows {
  Rows(Random& random, int outer, int length, int inner, DType dtype, int most_step)
      : outer(outer),
        length(length),
        inner(inner),
        step(random.integer(1, most_step)),
        transposed(random.chance(30)),
        dtype(dtype),
        bytes((size_t(2) * outer * length * inner * step - step + 1) * element_size(dtype)) {}

  int64_t along() const { return int64_t{transposed ? 1 : inner} * step; }
  int64_t across() const { return int64_t{transposed ? length : 1} * step; }
  void strides(int64_t (&to)[4]) const {
    to[1] = int64_t{length} * inner * step;
    to[0] = to[1] * outer;
    to[2] = across();
    to[3] = along();
  }
  uint8_t* at(int b, int o, int i, int c) const {
    const int64_t row = (int64_t{b} * outer + o) * length * inner * step;
    return bytes.data() + (row + i * along() + c * across()) * element_size(dtype);
  }
  double get(int b, int o, int i, int c) const { return decode(at(b, o, i, c), dtype); }

  template <class F>
  void set_all(F f) {
    for (int b = 0; b < 2; ++b)
      for (int o = 0; o < outer; ++o)
        for (int i = 0; i < length; ++i)
          for (int c = 0; c < inner; ++c) encode(at(b, o, i, c), dtype, f());
  }

  int outer, length, inner, step;
  bool transposed;
  DType dtype;
  Array<uint8_t> bytes;
};

template <class F>
void for_each_row(const Rows& rows, F f) {
  for (int b = 0; b < 2; ++b)
    for (int o = 0; o < rows.outer; ++o)
      for (int c = 0; c < rows.inner; ++c) f(b, o, c);
}

template <class Count, class Run>
void run_backwards(const SoftmaxParams& p, Count count, Run run) {
  const auto workspace = poisoned_workspace<LongRowWorkspace>();
  for (int item = count(p) - 1; item >= 0; --item) run(p, item, *workspace);
}

}  // namespace

bool softmax_case(uint64_t seed) {
  Random random(seed);
  Check check({"softmax", seed});
  const int kind = random.integer(1, 10);
  const int length =
      kind == 1 ? random.integer(kLongRow - 1, 2 * kLongRow + 20) : random.integer(1, kind == 2 ? 1100 : 150);
  const int inner = random.chance(40) ? 1 : random.integer(1, length > 1000 ? 5 : 90);
  const int outer = length > 1000 ? 1 : random.integer(1, 3);
  const auto dtype = static_cast<DType>(random.integer(0, 2));
  const bool log = random.chance(50);
  Rows x(random, outer, length, inner, dtype, random.chance(70) ? 1 : 3), d_out(random, outer, length, inner, dtype, 1);
  Rows out(random, outer, length, inner, dtype, 1), dx(random, outer, length, inner, dtype, 1);
  x.set_all([&] { return random.chance(2) ? -kInfinity : 4 * random.number(); });
  d_out.set_all([&] { return random.number(); });

  SoftmaxParams p{};
  p.x = x.bytes.data();
  p.result = out.bytes.data();
  p.outer[0] = 2, p.outer[1] = outer, p.outer[2] = inner;
  p.length = length;
  x.strides(p.x_strides);
  out.strides(p.result_strides);
  p.dtype = dtype;
  p.log = log;
  run_backwards(p, softmax_items, softmax_item);
  // Twice the rounding, for what float32 changes may move a value over the middle between two neighbours.
  const double unit = 2 * rounding(dtype);
  for_each_row(x, [&](int b, int o, int c) {
    double maximum = -kInfinity, sum = 0;
    for (int i = 0; i < length; ++i) maximum = fmax(maximum, x.get(b, o, i, c));
    for (int i = 0; i < length; ++i) sum += exp(x.get(b, o, i, c) - maximum);
    for (int i = 0; i < length; ++i) {
      const double less = x.get(b, o, i, c) - maximum, got = out.get(b, o, i, c);
      const double wanted = log ? less - std::log(sum) : exp(less) / sum;
      if (wanted != wanted && got != got) continue;
      check.near(log ? "a logarithm" : "an element", got, wanted, 1e-7, 3e-6 + unit);
    }
  });
  if (!check.passed()) return false;

  SoftmaxParams back = p;
  back.x = out.bytes.data();
  back.d_out = d_out.bytes.data();
  back.result = dx.bytes.data();
  out.strides(back.x_strides);
  d_out.strides(back.d_out_strides);
  dx.strides(back.result_strides);
  run_backwards(back, softmax_items, softmax_backward_item);
  for_each_row(x, [&](int b, int o, int c) {
    double sum = 0, size = 0;
    for (int i = 0; i < length; ++i) {
      const double term = d_out.get(b, o, i, c) * (log ? 1 : out.get(b, o, i, c));
      sum += term, size += fabs(term);
    }
    for (int i = 0; i < length; ++i) {
      const double y = out.get(b, o, i, c), dy = d_out.get(b, o, i, c), got = dx.get(b, o, i, c);
      const double wanted = log ? dy - exp(y) * sum : y * (dy - sum);
      if (wanted != wanted && got != got) continue;
      check.near("a gradient", got, wanted, 1e-6 * (1 + size), 1e-6 + unit);
    }
  });
  return check.passed();
}

}  // namespace flashattn::test
