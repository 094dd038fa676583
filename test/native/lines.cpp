// Operations along one axis on memory of exactly their size, against plain loops.
#include <algorithm>
#include <vector>

#include "cases.h"
#include "check.h"
#include "ops/lines.h"

namespace flashattn::test {

namespace {

/** [rows, length, columns], of which some numbers come several times, and some are not finite. */
struct Cube {
  Cube(int rows, int length, int columns, DType dtype)
      : rows(rows),
        length(length),
        columns(columns),
        dtype(dtype),
        bytes(size_t(rows) * length * columns * element_size(dtype)) {}
  size_t index(int r, int i, int c) const { return (size_t(r) * length + i) * columns + c; }
  uint8_t* at(int r, int i, int c) const { return bytes.data() + index(r, i, c) * element_size(dtype); }
  double get(int r, int i, int c) const { return decode(at(r, i, c), dtype); }
  void randomize(Random& random, bool finite) {
    for (int r = 0; r < rows; ++r)
      for (int i = 0; i < length; ++i)
        for (int c = 0; c < columns; ++c) {
          float x = random.number();
          if (!finite && random.chance(3)) x = random.chance(50) ? NAN : random.chance(50) ? kInfinity : -kInfinity;
          if (!finite && random.chance(3)) x = -0.0f;
          encode(at(r, i, c), dtype, x);
        }
  }
  int rows, length, columns;
  DType dtype;
  Array<uint8_t> bytes;
};

template <class Run>
void run_items(int items, Run run) {
  const auto workspace = poisoned_workspace<LineWorkspace>();
  for (int item = items - 1; item >= 0; --item) run(item, *workspace);
}

struct Lines {
  explicit Lines(Random& random)
      : rows(random.integer(1, 4)),
        length(random.chance(20) ? random.integer(2000, 5000) : random.integer(1, 300)),
        columns(random.chance(50) ? 1 : random.integer(2, length > 300 ? 3 : 300)),
        dtype(static_cast<DType>(random.integer(0, 2))),
        data(rows, length, columns, dtype) {
    if (rows * length * columns > 60000) rows = 1, data = Cube(rows, length, columns, dtype);
  }
  LinesParams params(const Cube& others, const Array<int32_t>& indices) const {
    return {data.bytes.data(),
            others.bytes.data(),
            indices.data(),
            nullptr,
            dtype,
            others.dtype,
            0,
            rows * columns,
            length,
            others.length,
            columns,
            0};
  }
  template <class F>
  void for_each(F f) const {
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < columns; ++c) f(r, c);
  }
  int rows, length, columns;
  DType dtype;
  Cube data;
};

/** Whether a is before b, as PyTorch sorts: NaN is larger than everything. */
bool before(double a, double b, bool reversed) {
  if (reversed) std::swap(a, b);
  return b != b ? a == a : a < b;
}

void check_sort(Check& check, Random& random) {
  Lines lines(random);
  lines.data.randomize(random, false);
  const int count = random.chance(50) ? lines.length : random.integer(0, lines.length);
  const Cube values(lines.rows, count, lines.columns, lines.dtype);
  const Array<int32_t> indices(size_t(lines.rows) * count * lines.columns);
  LinesParams p = lines.params(values, indices);
  p.reversed = random.chance(50);
  const int all = p.lines;
  for (p.first = 0; p.first < all; p.first += p.lines) {
    p.lines = random.integer(1, all - p.first);
    const Array<uint64_t> keys(size_t(2) * p.lines * lines.length);
    p.keys = keys.data();
    run_items(sort_items(p), [&](int item, LineWorkspace& ws) { sort_item(p, item, ws); });
  }
  lines.for_each([&](int r, int c) {
    std::vector<int> order(lines.length);
    for (int i = 0; i < lines.length; ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
      return before(lines.data.get(r, a, c), lines.data.get(r, b, c), p.reversed);
    });
    for (int i = 0; i < count; ++i) {
      check.equal("an index of a sort", indices[values.index(r, i, c)], order[i]);
      if (memcmp(values.at(r, i, c), lines.data.at(r, order[i], c), element_size(lines.dtype)) != 0)
        check.fail("a sorted value", values.get(r, i, c), lines.data.get(r, order[i], c));
    }
  });

  const Cube one(lines.rows, 1, lines.columns, lines.dtype);
  const Array<int32_t> largest(size_t(lines.rows) * lines.columns);
  const LinesParams q = lines.params(one, largest);
  run_items(line_items(q), [&](int item, LineWorkspace& ws) { argmax_item(q, item, ws); });
  lines.for_each([&](int r, int c) {
    int wanted = 0;
    for (int i = 1; i < lines.length; ++i)
      if (before(lines.data.get(r, i, c), lines.data.get(r, wanted, c), true)) wanted = i;
    check.equal("the largest", largest[one.index(r, 0, c)], wanted);
  });
}

void check_along(Check& check, Random& random) {
  Lines lines(random);
  lines.data.randomize(random, true);
  const int count = random.chance(20) ? 0 : random.integer(1, 40);
  Cube others(lines.rows, count, lines.columns, lines.dtype);
  const Array<int32_t> indices(size_t(lines.rows) * count * lines.columns);
  for (size_t at = 0; at < indices.size(); ++at) indices[at] = random.integer(-1, lines.length);
  const LinesParams p = lines.params(others, indices);
  for (int item = take_along_items(p) - 1; item >= 0; --item) take_along_item(p, item);
  const auto index_at = [&](int r, int i, int c) { return indices[others.index(r, i, c)]; };
  lines.for_each([&](int r, int c) {
    for (int i = 0; i < count; ++i) {
      const int index = index_at(r, i, c);
      const double got = others.get(r, i, c);
      if (index < 0 || index >= lines.length) {
        if (got == got) check.fail("an element of no place", got, NAN);
      } else {
        check.equal("an element that is taken", got, lines.data.get(r, index, c));
      }
    }
  });

  others = Cube(lines.rows, count, lines.columns, static_cast<DType>(random.integer(0, 2)));
  others.randomize(random, true);
  const LinesParams q = lines.params(others, indices);
  run_items(add_along_items(q), [&](int item, LineWorkspace& ws) { add_along_item(q, item, ws); });
  lines.for_each([&](int r, int c) {
    std::vector<double> sums(lines.length);
    for (int i = 0; i < count; ++i)
      if (const int index = index_at(r, i, c); index >= 0 && index < lines.length) sums[index] += others.get(r, i, c);
    for (int j = 0; j < lines.length; ++j)
      check.near("an element that is added up", lines.data.get(r, j, c), sums[j], 0, rounding(lines.dtype));
  });
}

void check_cumulative_sum(Check& check, Random& random) {
  Lines lines(random);
  lines.data.randomize(random, true);
  const Cube sums(lines.rows, lines.length, lines.columns, static_cast<DType>(random.integer(0, 2)));
  LinesParams p = lines.params(sums, {});
  p.reversed = random.chance(50);
  run_items(cumulative_sum_items(p), [&](int item, LineWorkspace& ws) { cumulative_sum_item(p, item, ws); });
  lines.for_each([&](int r, int c) {
    double sum = 0;
    for (int n = 0; n < lines.length; ++n) {
      const int i = p.reversed ? lines.length - 1 - n : n;
      sum += lines.data.get(r, i, c);
      check.near("a sum up to an element", sums.get(r, i, c), sum, 0, rounding(sums.dtype));
    }
  });
}

}  // namespace

bool lines_case(uint64_t seed) {
  Random random(seed);
  Check check({"lines", seed});
  check_sort(check, random);
  check_along(check, random);
  check_cumulative_sum(check, random);
  return check.passed();
}

}  // namespace flashattn::test
