// Rows by their index and the cross entropy of rows, on memory of exactly their size, against plain loops.
#include <vector>

#include "cases.h"
#include "check.h"
#include "ops/cross_entropy.h"
#include "ops/rows_by_index.h"

namespace flashattn::test {

namespace {

template <class Workspace, class Run>
void run_items(int items, Run run) {
  const auto workspace = poisoned_workspace<Workspace>();
  for (int item = items - 1; item >= 0; --item) run(item, *workspace);
}

/** Rows with gaps between them. */
struct Rows {
  Rows(Random& random, int rows, int columns, DType dtype)
      : dtype(dtype),
        columns(columns),
        stride(columns + (random.chance(30) ? random.integer(1, 9) : 0)),
        bytes((rows > 0 ? size_t(rows - 1) * stride + columns : 0) * element_size(dtype)) {
    for (int row = 0; row < rows; ++row)
      for (int c = 0; c < columns; ++c) encode(at(row, c), dtype, random.number());
  }
  uint8_t* at(int row, int c) const { return bytes.data() + (size_t(row) * stride + c) * element_size(dtype); }
  double get(int row, int c) const { return decode(at(row, c), dtype); }

  DType dtype;
  int columns, stride;
  Array<uint8_t> bytes;
};

/** Ids of which some are named often and some name no row. */
Array<int32_t> random_ids(Random& random, int count, int rows) {
  Array<int32_t> ids(count);
  const int few = random.integer(1, rows);
  for (int i = 0; i < count; ++i) {
    ids[i] = random.integer(0, (random.chance(50) ? few : rows) - 1);
    if (random.chance(3)) ids[i] = random.chance(50) ? -random.integer(1, 9) : rows + random.integer(0, 9);
  }
  return ids;
}

struct ByIndex {
  explicit ByIndex(Random& random)
      : rows(random.chance(20) ? random.integer(1000, 1600) : random.integer(1, 200)),
        count(random.chance(20) ? random.integer(5000, 12000) : random.integer(0, 300)),
        columns(random.chance(20) ? random.integer(250, 600) : random.integer(1, 40)) {
    if (count > 300) columns = random.integer(1, 9);
    table_dtype = static_cast<DType>(random.integer(0, 2));
    values_dtype = static_cast<DType>(random.integer(0, 2));
    ids = random_ids(random, count, random.chance(20) ? 1 : rows);
  }
  RowsByIndexParams params(const Rows& table, const Rows& values) const {
    return {table.bytes.data(), values.bytes.data(), ids.data(), table.stride, values.stride,
            table.dtype,        values.dtype,        rows,       count,        columns,
            accumulate};
  }
  int rows, count, columns, accumulate = 0;
  DType table_dtype, values_dtype;
  Array<int32_t> ids;
};

void check_take(Check& check, Random& random) {
  const ByIndex c(random);
  const Rows table(random, c.rows, c.columns, c.table_dtype), values(random, c.count, c.columns, c.table_dtype);
  const RowsByIndexParams p = c.params(table, values);
  run_items<RowWorkspace>(take_rows_items(p), [&](int item, RowWorkspace& ws) { take_rows_item(p, item, ws); });
  for (int i = 0; i < c.count; ++i)
    for (int e = 0; e < c.columns; ++e) {
      const double got = values.get(i, e);
      if (c.ids[i] < 0 || c.ids[i] >= c.rows) {
        if (got == got) check.fail("a row of no id", got, NAN);
      } else {
        check.equal("a row that is taken", got, table.get(c.ids[i], e));
      }
    }
}

void check_add(Check& check, Random& random) {
  ByIndex c(random);
  c.accumulate = random.chance(50);
  const Rows table(random, c.rows, c.columns, c.table_dtype), values(random, c.count, c.columns, c.values_dtype);
  std::vector<double> wanted(size_t(c.rows) * c.columns);
  for (int row = 0; c.accumulate && row < c.rows; ++row)
    for (int e = 0; e < c.columns; ++e) wanted[size_t(row) * c.columns + e] = table.get(row, e);
  for (int i = 0; i < c.count; ++i)
    for (int e = 0; e < c.columns; ++e)
      if (c.ids[i] >= 0 && c.ids[i] < c.rows) wanted[size_t(c.ids[i]) * c.columns + e] += values.get(i, e);
  const RowsByIndexParams p = c.params(table, values);
  run_items<IndexWorkspace>(add_rows_items(p), [&](int item, IndexWorkspace& ws) { add_rows_item(p, item, ws); });
  for (int row = 0; row < c.rows; ++row)
    for (int e = 0; e < c.columns; ++e)  // sums of these numbers are exact in float32
      check.near("a row that is added up", table.get(row, e), wanted[size_t(row) * c.columns + e], 0,
                 rounding(c.table_dtype));
}

struct Losses {
  explicit Losses(Random& random)
      : rows(random.integer(1, 90)),
        classes(random.chance(20) ? random.integer(250, 3000) : random.integer(1, 70)),
        dtype(static_cast<DType>(random.integer(0, 2))),
        logits(random, rows, classes, dtype),
        gradients(random, rows, classes, dtype),
        targets(random_ids(random, rows, classes)),
        losses(rows),
        lse(size_t(2) * rows),
        result(1),
        counted(1),
        d_loss(random_array(rows, random)) {
    const auto reduction = static_cast<LossReduction>(random.integer(0, 2));
    const bool reduces = reduction != LossReduction::None;
    for (int row = 0; row < rows; ++row)
      if (random.chance(10)) targets[row] = -100;
    for (int row = 0; row < rows; ++row)
      for (int c = 0; c < classes; ++c)
        if (c != targets[row] && random.chance(5)) encode(logits.at(row, c), dtype, -kInfinity);
    p.logits = logits.bytes.data();
    p.targets = targets.data();
    p.losses = losses.data();
    p.lse = lse.data();
    p.result = reduces ? result.data() : nullptr;
    p.counted = reduces ? counted.data() : nullptr;
    p.d_loss = d_loss.data();
    const bool in_place = random.chance(30);
    p.d_logits = in_place ? logits.bytes.data() : gradients.bytes.data();
    p.logits_row = logits.stride;
    p.d_logits_row = in_place ? logits.stride : gradients.stride;
    p.d_loss_row = reduces ? 0 : 1;
    p.dtype = dtype;
    p.rows = rows;
    p.classes = classes;
    p.ignored = -100;
    p.smoothing = 0;
    p.z = random.chance(30) ? 0.25f : 0;
    p.reduction = reduction;
  }
  bool ignores(int row) const { return targets[row] == -100; }
  bool has_target(int row) const { return targets[row] >= 0 && targets[row] < classes; }

  int rows, classes;
  DType dtype;
  Rows logits, gradients;
  Array<int32_t> targets;
  Array<float> losses, lse, result, counted, d_loss;
  CrossEntropyParams p{};
};

}  // namespace

bool rows_by_index_case(uint64_t seed) {
  Random random(seed);
  Check check({"rows by index", seed});
  check_take(check, random);
  check_add(check, random);
  return check.passed();
}

bool cross_entropy_case(uint64_t seed) {
  Random random(seed);
  Losses c(random);
  CrossEntropyParams& p = c.p;
  // Smoothing meets every logit: none of them may be -Infinity for a loss that is finite.
  if (random.chance(40)) {
    p.smoothing = 0.125f;
    for (int row = 0; row < c.rows; ++row)
      for (int i = 0; i < c.classes; ++i)
        if (c.logits.get(row, i) == -INFINITY) encode(c.logits.at(row, i), c.dtype, -1.5f);
  }
  std::vector<double> softmax(size_t(c.rows) * c.classes), lse(c.rows);
  Check check({"cross entropy", seed});
  run_items<RowWorkspace>(cross_entropy_items(p), [&](int item, RowWorkspace& ws) { cross_entropy_item(p, item, ws); });
  for (int item = 0; item < cross_entropy_reduce_items(p); ++item) cross_entropy_reduce_item(p, item);
  double total = 0, counted = 0;
  for (int row = 0; row < c.rows; ++row) {
    double sum = 0, mean = 0;
    for (int i = 0; i < c.classes; ++i) {
      sum += exp(c.logits.get(row, i));
      mean += c.logits.get(row, i) / c.classes;
    }
    lse[row] = log(sum);
    for (int i = 0; i < c.classes; ++i) softmax[size_t(row) * c.classes + i] = exp(c.logits.get(row, i)) / sum;
    if (c.ignores(row)) {
      check.equal("the loss of a row that is ignored", c.losses[row], 0);
      continue;
    }
    ++counted;
    check.near("lse", double{c.lse[row]} + c.lse[c.rows + row], lse[row], 1e-6, 0);
    if (!c.has_target(row)) {
      if (c.losses[row] == c.losses[row]) check.fail("the loss of no class", c.losses[row], NAN);
      total = NAN;
      continue;
    }
    double loss = (1 - p.smoothing) * (lse[row] - c.logits.get(row, c.targets[row])) + p.z * lse[row] * lse[row];
    if (p.smoothing != 0) loss += p.smoothing * (lse[row] - mean);
    check.near("a loss", c.losses[row], loss, 2e-6, 1e-6);
    total += loss;
  }
  if (p.result) {
    const double wanted = p.reduction == LossReduction::Mean ? total / counted : total;
    if (wanted == wanted || c.result[0] == c.result[0]) check.near("the sum", c.result[0], wanted, 1e-5, 1e-6);
    check.equal("the count", c.counted[0], counted);
  }
  run_items<RowWorkspace>(cross_entropy_items(p),
                          [&](int item, RowWorkspace& ws) { cross_entropy_backward_item(p, item, ws); });
  const Rows& gradients = p.d_logits == p.logits ? c.logits : c.gradients;
  for (int row = 0; row < c.rows; ++row)
    for (int i = 0; i < c.classes; ++i) {
      const double got = gradients.get(row, i);
      if (!c.ignores(row) && !c.has_target(row)) {
        if (got == got) check.fail("the gradient of no class", got, NAN);
        continue;
      }
      double d_loss = c.d_loss[p.d_loss_row * row];
      if (p.reduction == LossReduction::Mean) d_loss /= counted;
      double wanted = softmax[size_t(row) * c.classes + i] * (1 + 2 * p.z * lse[row]) - p.smoothing / c.classes;
      if (i == c.targets[row]) wanted -= 1 - p.smoothing;
      if (c.ignores(row)) wanted = 0;
      check.near("a gradient", got, wanted * d_loss, 1e-6, 2 * rounding(c.dtype));
    }
  return check.passed();
}

}  // namespace flashattn::test
