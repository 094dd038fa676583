// Operations along one axis, against plain loops.
#include "device_tensor.h"
#include "launch.h"

namespace flashattn::test {

namespace {

/** [rows, length, columns] */
struct Shape {
  int rows, length, columns;
};

Tensor cube(const Shape& s, DType dtype) { return Tensor(1, s.rows * s.length, 1, s.columns, dtype, Layout::SeqFirst); }

double get(const Tensor& t, const Shape& s, int r, int i, int c) { return t.get(0, r * s.length + i, 0, c); }

template <class F>
void for_lines(const Shape& s, F f) {
  for (int r = 0; r < s.rows; ++r)
    for (int c = 0; c < s.columns; ++c) f(r, c);
}

/** Many numbers twice, some not finite. */
Tensor random_cube(const Shape& s, DType dtype, Random& random) {
  Tensor t = cube(s, dtype);
  t.for_each([&](int, int i, int, int c) {
    const double special[] = {kNaN, kInf, -kInf, 0.0, -0.0};
    t.set(0, i, 0, c, random.below(20) == 0 ? special[random.below(5)] : random.below(101) / 16.0 - 3);
  });
  t.upload();
  return t;
}

LinesParams params_of(const Shape& s, const Tensor& data, const Tensor& others, int count,
                      const DeviceArray<int32_t>& indices) {
  return {data.ref().data,    others.ref().data, indices.data(), nullptr,   data.dtype, others.dtype, 0,
          s.rows * s.columns, s.length,          count,          s.columns, 0};
}

/** Whether a is before b, where NaN is larger than everything. */
bool before(double a, double b, bool reversed) {
  if (reversed) std::swap(a, b);
  return std::isnan(b) ? !std::isnan(a) : a < b;
}

void check_sort(const Shape& s, int count, bool reversed, DType dtype, Random& random) {
  const Shape kept{s.rows, count, s.columns};
  const Tensor data = random_cube(s, dtype, random);
  Tensor values = cube(kept, dtype), one = cube({s.rows, 1, s.columns}, dtype);
  DeviceArray<int32_t> indices(static_cast<size_t>(s.rows) * count * s.columns, -1);
  DeviceArray<int32_t> largest(static_cast<size_t>(s.rows) * s.columns, -1);
  const DeviceArray<uint64_t> keys(static_cast<size_t>(2) * s.rows * s.columns * s.length, uint64_t{0});
  LinesParams p = params_of(s, data, values, count, indices);
  p.keys = keys.data();
  p.reversed = reversed;
  check(launch_sort(p, {}, nullptr));
  check(launch_argmax(params_of(s, data, one, 1, largest), {}, nullptr));
  values.download();
  indices.download();
  largest.download();
  for_lines(s, [&](int r, int c) {
    std::vector<int> order(s.length);
    for (int i = 0; i < s.length; ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return before(get(data, s, r, a, c), get(data, s, r, b, c), reversed); });
    for (int i = 0; i < count; ++i) {
      const int index = indices.host[(static_cast<size_t>(r) * count + i) * s.columns + c];
      const double got = get(values, kept, r, i, c), wanted = get(data, s, r, order[i], c);
      expect(index == order[i], "sort of %d, %d kept: index %d is %d, not %d", s.length, count, i, index, order[i]);
      expect(got == wanted || (std::isnan(got) && std::isnan(wanted)), "sort of %d: value %d is %g, not %g", s.length,
             i, got, wanted);
    }
    int wanted = 0;
    for (int i = 1; i < s.length; ++i)
      if (before(get(data, s, r, i, c), get(data, s, r, wanted, c), true)) wanted = i;
    const int got = largest.host[static_cast<size_t>(r) * s.columns + c];
    expect(got == wanted, "argmax of %d is %d, not %d", s.length, got, wanted);
  });
}

void check_along(const Shape& s, int count, DType dtype, DType sums, Random& random) {
  const Shape taken{s.rows, count, s.columns};
  Tensor data = cube(s, dtype), others = cube(taken, dtype);
  data.randomize(random);
  std::vector<int32_t> places(static_cast<size_t>(s.rows) * count * s.columns);
  for (int32_t& place : places) place = random.below(s.length + 2) - 1;
  const DeviceArray<int32_t> indices(places);
  check(launch_take_along(params_of(s, data, others, count, indices), {}, nullptr));
  others.download();
  const auto place_at = [&](int r, int i, int c) {
    return places[(static_cast<size_t>(r) * count + i) * s.columns + c];
  };
  for_lines(s, [&](int r, int c) {
    for (int i = 0; i < count; ++i) {
      const int place = place_at(r, i, c);
      const double wanted = place < 0 || place >= s.length ? kNaN : get(data, s, r, place, c);
      expect(close(dtype, get(others, taken, r, i, c), wanted, 0), "take along [%d, %d, %d]", r, i, c);
    }
  });

  Tensor added = cube(s, sums);
  others.randomize(random);
  check(launch_add_along(params_of(s, added, others, count, indices), {}, nullptr));
  added.download();
  for_lines(s, [&](int r, int c) {
    std::vector<double> wanted(s.length);
    for (int i = 0; i < count; ++i)
      if (const int place = place_at(r, i, c); place >= 0 && place < s.length)
        wanted[place] += get(others, taken, r, i, c);
    for (int j = 0; j < s.length; ++j)
      expect(close(sums, get(added, s, r, j, c), wanted[j]), "add along [%d, %d, %d] of %d: %g, not %g", r, j, c,
             s.length, get(added, s, r, j, c), wanted[j]);
  });
}

void check_cumulative_sum(const Shape& s, bool reversed, DType dtype, DType to, Random& random) {
  Tensor data = cube(s, dtype), sums = cube(s, to);
  data.randomize(random);
  const DeviceArray<int32_t> none(0, 0);
  LinesParams p = params_of(s, data, sums, s.length, none);
  p.reversed = reversed;
  check(launch_cumulative_sum(p, {}, nullptr));
  sums.download();
  for_lines(s, [&](int r, int c) {
    double wanted = 0;
    for (int n = 0; n < s.length; ++n) {
      const int i = reversed ? s.length - 1 - n : n;
      wanted += get(data, s, r, i, c);
      expect(close(to, get(sums, s, r, i, c), wanted, std::fabs(wanted)),
             "cumulative sum [%d, %d, %d] of %d: %g, not %g", r, i, c, s.length, get(sums, s, r, i, c), wanted);
    }
  });
}

}  // namespace

}  // namespace flashattn::test

int main() {
  using namespace flashattn::test;
  start();
  Random random(7);
  const auto any_dtype = [&] { return kDTypes[random.below(3)]; };
  for (const Shape s : {Shape{1, 1, 1}, Shape{3, 2, 1}, Shape{2, 100, 1}, Shape{2, 33, 5}, Shape{1, 2048, 1}}) {
    check_sort(s, s.length, false, any_dtype(), random);
    check_sort(s, (s.length + 1) / 2, true, any_dtype(), random);
  }
  check_sort({1, 5000, 1}, 7, true, any_dtype(), random);      // the best of several chunks
  check_sort({1, 4100, 2}, 2100, false, any_dtype(), random);  // in memory
  check_sort({1, 6500, 1}, 6500, true, any_dtype(), random);
  for (const Shape s : {Shape{1, 1, 1}, Shape{3, 40, 1}, Shape{2, 9, 31}})
    for (const int count : {0, 1, 50}) check_along(s, count, any_dtype(), any_dtype(), random);
  for (const Shape s : {Shape{1, 1, 1}, Shape{300, 64, 1}, Shape{2, 100, 1}, Shape{2, 5000, 1}, Shape{2, 9, 31}})
    for (const bool reversed : {false, true}) check_cumulative_sum(s, reversed, any_dtype(), any_dtype(), random);
  return finish();
}
