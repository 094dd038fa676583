// Rows by their index and the cross entropy of rows, against plain loops in double.
#include "device_tensor.h"
#include "launch.h"

namespace flashattn::test {

namespace {

/** Ids of which some are named often and some name no row. */
DeviceArray<int32_t> random_ids(int count, int rows, Random& random) {
  std::vector<int32_t> ids(count);
  for (int i = 0; i < count; ++i) {
    ids[i] = random.below(random.below(2) ? std::min(rows, 3) : rows);
    if (random.below(30) == 0) ids[i] = random.below(2) ? -1 - random.below(9) : rows + random.below(9);
  }
  return DeviceArray<int32_t>(std::move(ids));
}

RowsByIndexParams params_of(const Tensor& table, const Tensor& values, const DeviceArray<int32_t>& ids) {
  return {table.ref().data,
          values.ref().data,
          ids.data(),
          table.ref().seq,
          values.ref().seq,
          table.dtype,
          values.dtype,
          table.seq,
          values.seq,
          table.dim,
          0};
}

void check_take(int rows, int count, int elements, DType dtype, Layout layout, Random& random) {
  Tensor table(1, rows, 1, elements, dtype, layout), values(1, count, 1, elements, dtype, layout);
  table.randomize(random);
  const DeviceArray<int32_t> ids = random_ids(count, rows, random);
  check(launch_take_rows(params_of(table, values, ids), {}, nullptr));
  values.download();
  values.for_each([&](int, int i, int, int e) {
    const int id = ids.host[i];
    const double expected = id < 0 || id >= rows ? kNaN : table.get(0, id, 0, e), got = values.get(0, i, 0, e);
    expect(close(dtype, got, expected, 0), "take [%d, %d] of %d %s: %g, not %g", i, e, elements, name_of(dtype), got,
           expected);
  });
  expect(values.gaps_are_intact(), "take of %d %s writes between rows", elements, name_of(dtype));
}

void check_add(int rows, int count, int elements, DType to, DType from, Layout layout, bool accumulate,
               Random& random) {
  Tensor table(1, rows, 1, elements, to, layout), values(1, count, 1, elements, from, layout);
  table.randomize(random);
  values.randomize(random);
  const DeviceArray<int32_t> ids = random_ids(count, rows, random);
  std::vector<double> expected(static_cast<size_t>(rows) * elements);
  if (accumulate)
    table.for_each([&](int, int row, int, int e) { expected[row * elements + e] = table.get(0, row, 0, e); });
  values.for_each([&](int, int i, int, int e) {
    const int id = ids.host[i];
    if (id >= 0 && id < rows) expected[id * elements + e] += values.get(0, i, 0, e);
  });
  RowsByIndexParams p = params_of(table, values, ids);
  p.accumulate = accumulate;
  check(launch_add_rows(p, {}, nullptr));
  table.download();
  table.for_each([&](int, int row, int, int e) {
    const double wanted = expected[row * elements + e], got = table.get(0, row, 0, e);
    expect(close(to, got, wanted), "add [%d, %d] of %d %s to %s: %g, not %g", row, e, elements, name_of(from),
           name_of(to), got, wanted);
  });
  expect(table.gaps_are_intact(), "add of %d %s writes between rows", elements, name_of(to));
}

struct LossCase {
  int rows, classes;
  DType dtype;
  Layout layout;
  LossReduction reduction;
  float smoothing, z;
  bool in_place;
};

void check_cross_entropy(const LossCase& c, Random& random) {
  constexpr int kIgnored = -100;
  Tensor logits(1, c.rows, 1, c.classes, c.dtype, c.layout), other(1, c.rows, 1, c.classes, c.dtype, c.layout);
  logits.for_each([&](int, int row, int, int i) { logits.set(0, row, 0, i, random.uniform(-4, 4)); });
  logits.upload();
  const Tensor before = [&] {
    Tensor copy(1, c.rows, 1, c.classes, c.dtype, c.layout);
    copy.for_each([&](int, int row, int, int i) { copy.set(0, row, 0, i, logits.get(0, row, 0, i)); });
    return copy;
  }();
  DeviceArray<int32_t> targets = random_ids(c.rows, c.classes, random);
  targets.host[c.rows / 2] = kIgnored;
  if (c.reduction != LossReduction::None)
    for (int32_t& target : targets.host)
      if (target < 0 || target >= c.classes) target = kIgnored;
  targets.upload();
  DeviceArray<float> losses(c.rows, -1.0f), lse(2 * c.rows, -1.0f), result(1, -1.0f), counted(1, -1.0f);
  const DeviceArray<float> d_loss = random_floats(c.rows, random);
  const bool reduces = c.reduction != LossReduction::None;
  Tensor& gradients = c.in_place ? logits : other;
  const CrossEntropyParams p{logits.ref().data,
                             targets.data(),
                             losses.data(),
                             lse.data(),
                             reduces ? result.data() : nullptr,
                             reduces ? counted.data() : nullptr,
                             d_loss.data(),
                             gradients.ref().data,
                             logits.ref().seq,
                             gradients.ref().seq,
                             reduces ? 0 : 1,
                             c.dtype,
                             c.rows,
                             c.classes,
                             kIgnored,
                             c.smoothing,
                             c.z,
                             c.reduction,
                             0};
  check(launch_cross_entropy(p, {}, nullptr));
  check(launch_cross_entropy_backward(p, {}, nullptr));
  for (DeviceArray<float>* array : {&losses, &lse, &result, &counted}) array->download();
  gradients.download();
  double total = 0, count = 0;
  std::vector<double> exact(c.rows);
  for (int row = 0; row < c.rows; ++row) {
    const int target = targets.host[row];
    double sum = 0, mean = 0;
    for (int i = 0; i < c.classes; ++i) {
      sum += std::exp(before.get(0, row, 0, i));
      mean += before.get(0, row, 0, i) / c.classes;
    }
    exact[row] = std::log(sum);
    double loss = 0;
    if (target != kIgnored) {
      ++count;
      loss = kNaN;
      if (target >= 0 && target < c.classes)
        loss = exact[row] - (1 - c.smoothing) * before.get(0, row, 0, target) - c.smoothing * mean +
               c.z * exact[row] * exact[row];
      expect(close(DType::Float32, double{lse.host[row]} + lse.host[c.rows + row], exact[row]), "lse [%d]", row);
    }
    expect(close(DType::Float32, losses.host[row], loss, 4), "loss [%d] of %d: %g, not %g", row, c.classes,
           losses.host[row], loss);
    total += loss;
  }
  if (reduces) {
    const double wanted = c.reduction == LossReduction::Mean ? total / count : total;
    expect(close(DType::Float32, result.host[0], wanted, std::fabs(wanted)), "reduced: %g, not %g", result.host[0],
           wanted);
    expect(counted.host[0] == count, "counted: %g, not %g", counted.host[0], count);
  }
  gradients.for_each([&](int, int row, int, int i) {
    const int target = targets.host[row];
    double d = d_loss.host[reduces ? 0 : row];
    if (c.reduction == LossReduction::Mean) d /= count;
    const double softmax = std::exp(before.get(0, row, 0, i) - exact[row]);
    double wanted =
        d * (softmax * (1 + 2 * c.z * exact[row]) - (i == target ? 1 - c.smoothing : 0) - c.smoothing / c.classes);
    if (target == kIgnored) wanted = 0;
    if (target != kIgnored && (target < 0 || target >= c.classes)) wanted = kNaN;
    const double got = gradients.get(0, row, 0, i);
    expect(close(c.dtype, got, wanted), "d_logits [%d, %d] of %d %s: %g, not %g", row, i, c.classes, name_of(c.dtype),
           got, wanted);
  });
  expect(gradients.gaps_are_intact(), "d_logits of %d %s writes between rows", c.classes, name_of(c.dtype));
}

}  // namespace

}  // namespace flashattn::test

int main() {
  using namespace flashattn::test;
  using flashattn::DType;
  using flashattn::LossReduction;
  start();
  Random random(5);
  for (const int elements : {1, 8, 33, 264})
    for (const DType dtype : kDTypes)
      for (const Layout layout : {Layout::SeqFirst, Layout::Padded}) {
        check_take(11, 40, elements, dtype, layout, random);
        const DType from = kDTypes[random.below(3)];
        check_add(11, 150, elements, dtype, from, layout, false, random);
        check_add(11, 40, elements, dtype, from, layout, true, random);
      }
  check_take(3, 0, 8, DType::Float16, Layout::SeqFirst, random);
  check_add(9, 0, 8, DType::Float32, DType::Float16, Layout::SeqFirst, false, random);
  constexpr LossReduction kReductions[] = {LossReduction::None, LossReduction::Sum, LossReduction::Mean};
  for (const int classes : {1, 7, 40, 301, 2500})
    for (const DType dtype : kDTypes)
      for (const Layout layout : {Layout::SeqFirst, Layout::Padded})
        check_cross_entropy({classes > 1000 ? 3 : 21, classes, dtype, layout, kReductions[random.below(3)],
                             random.below(2) ? 0.125f : 0.0f, random.below(2) ? 0.25f : 0.0f, random.below(2) == 0},
                            random);
  return finish();
}
