// The cross entropy of rows of logits: each row is read twice, once for its largest logit and once for the sum of exponentials.
#pragma once
#include "simd/math.h"
#include "simd/rows.h"
#include "structs/cross_entropy.h"

namespace flashattn {

namespace detail {

inline int loss_rows_per_item(const CrossEntropyParams& p) {
  constexpr int kElementsPerItem = 1 << 14;
  return max(1, min(kRowsPerItem, kElementsPerItem / max(1, p.classes)));
}

/** Elements [begin, begin + length) of a row of logits, -Infinity up to a whole vector. */
inline void load_logits(float* to, const CrossEntropyParams& p, int row, int begin, int length) {
  const uint8_t* from = bytes_of(p.logits) + (row * p.logits_row + begin) * element_size(p.dtype);
  load_row(to, from, p.dtype, length);
  for (int at = length; at % kLanes != 0; ++at) to[at] = -kInfinity;
}

inline bool is_class(const CrossEntropyParams& p, int32_t target) {
  return static_cast<uint32_t>(target) < static_cast<uint32_t>(p.classes);
}

struct LossRow {
  float maximum = -kInfinity;
  double sum = 0;    // of e^(x - maximum)
  double total = 0;  // of x

  LossRow(const CrossEntropyParams& p, int row, float* chunk /* [kRowElements] */) {
    Vec largest = splat(maximum);
    for (int begin = 0; begin < p.classes; begin += kRowElements) {
      const int length = min(kRowElements, p.classes - begin);
      load_logits(chunk, p, row, begin, length);
      for (int at = 0; at < length; at += kLanes) largest = max(largest, load(chunk + at));
    }
    for (int lane = 0; lane < kLanes; ++lane)
      if (largest[lane] > maximum) maximum = largest[lane];
    // Where all logits are -Infinity so is what is left of them, and their sum is 0.
    const Vec shift = splat(maximum == -kInfinity ? 0.0f : maximum);
    for (int begin = 0; begin < p.classes; begin += kRowElements) {
      const int length = min(kRowElements, p.classes - begin);
      load_logits(chunk, p, row, begin, length);
      Vec powers{};
      for (int at = 0; at < length; at += kLanes) powers += natural_exp(load(chunk + at) - shift);
      sum += sum_lanes(powers);
      if (p.smoothing == 0) continue;
      Vec logits{};
      for (int at = length; at % kLanes != 0; ++at) chunk[at] = 0;
      for (int at = 0; at < length; at += kLanes) logits += load(chunk + at);
      total += sum_lanes(logits);
    }
  }

  /** lse - maximum; of finite logits at least 0. */
  double log_sum() const { return sum > 0 ? ln(static_cast<float>(sum)) : sum == 0 ? -double{kInfinity} : sum; }
};

}  // namespace detail

inline int cross_entropy_items(const CrossEntropyParams& p) { return divide_up(p.rows, detail::loss_rows_per_item(p)); }

FLASHATTN_CALLED void cross_entropy_item(const CrossEntropyParams& p, int item, RowWorkspace& ws) {
  using namespace detail;
  const int rows = loss_rows_per_item(p), first = item * rows;
  for (int row = first; row < first + min(rows, p.rows - first); ++row) {
    const int32_t target = p.targets[row];
    float &lse = p.lse[row], &rest = p.lse[size_t(p.rows) + row], &loss = p.losses[row];
    if (target == p.ignored) {
      lse = rest = loss = 0;
      continue;
    }
    const LossRow statistics(p, row, ws.row[0]);
    const double maximum = statistics.maximum == -kInfinity ? 0 : statistics.maximum, log_sum = statistics.log_sum();
    lse = static_cast<float>(maximum + log_sum);
    const double missing = maximum - lse + log_sum;
    rest = missing - missing == 0 ? static_cast<float>(missing) : 0.0f;
    if (!is_class(p, target)) {
      loss = __builtin_nanf("");
      continue;
    }
    load_logits(ws.row[0], p, row, target, 1);
    const double of_target = maximum - ws.row[0][0] + log_sum;
    double sum = of_target;
    if (p.smoothing != 0) sum += p.smoothing * (maximum - statistics.total / p.classes + log_sum - of_target);
    if (p.z != 0) sum += p.z * (maximum + log_sum) * (maximum + log_sum);
    loss = static_cast<float>(sum);
  }
}

inline int cross_entropy_reduce_items(const CrossEntropyParams& p) { return p.result ? 1 : 0; }

FLASHATTN_CALLED void cross_entropy_reduce_item(const CrossEntropyParams& p, int) {
  double sum = 0;
  int counted = 0;
  for (int begin = 0; begin < p.rows; begin += kRowElements) {
    const int count = min(kRowElements, p.rows - begin);
    const float* losses = p.losses + begin;
    const int32_t* targets = p.targets + begin;
    double part[4] = {};
    for (int i = 0; i < count; ++i) part[i % 4] += losses[i];
    for (int i = 0; i < count; ++i) counted += targets[i] != p.ignored;
    sum += (part[0] + part[1]) + (part[2] + part[3]);
  }
  *p.result = static_cast<float>(p.reduction == LossReduction::Mean ? sum / counted : sum);
  *p.counted = static_cast<float>(counted);
}

FLASHATTN_CALLED void cross_entropy_backward_item(const CrossEntropyParams& p, int item, RowWorkspace& ws) {
  using namespace detail;
  const int rows = loss_rows_per_item(p), first = item * rows;
  float* chunk = ws.row[0];
  for (int row = first; row < first + min(rows, p.rows - first); ++row) {
    const int32_t target = p.targets[row];
    const bool ignored = target == p.ignored, none = !ignored && !is_class(p, target);
    float d_loss = p.d_loss[row * p.d_loss_row];
    if (p.reduction == LossReduction::Mean) d_loss /= *p.counted;
    const float lse = p.lse[row], scale = d_loss * (1 + 2 * p.z * lse), uniform = d_loss * (p.smoothing / p.classes);
    const Vec shift = splat(lse), rest = splat(p.lse[size_t(p.rows) + row]);
    for (int begin = 0; begin < p.classes; begin += kRowElements) {
      const int length = min(kRowElements, p.classes - begin);
      if (ignored || none) {
        fill(chunk, none ? __builtin_nanf("") : 0.0f, length);
      } else {
        load_logits(chunk, p, row, begin, length);
        for (int at = 0; at < length; at += kLanes)
          store(chunk + at, natural_exp(load(chunk + at) - shift - rest) * splat(scale) - splat(uniform));
        if (target >= begin && target < begin + length) chunk[target - begin] -= d_loss * (1 - p.smoothing);
      }
      store_row(bytes_of(p.d_logits) + (row * p.d_logits_row + begin) * element_size(p.dtype), p.dtype, chunk, length);
    }
  }
}

}  // namespace flashattn
