// Sums whose error does not grow with the number of terms: Kahan, "Further remarks on reducing truncation errors" (1965).
#pragma once
#include "ptx.cuh"

namespace flashattn {

/** sum - lost += x, where `lost` is what rounding has made `sum` too large by. No sum may become infinite. */
FLASHATTN_DEVICE void add_compensated_finite(float& sum, float& lost, float x) {
  const float added = x - lost, before = sum;
  sum = before + added;
  lost = sum - before - added;
}

/** The same of any numbers. */
FLASHATTN_DEVICE void add_compensated(float& sum, float& lost, float x) {
  add_compensated_finite(sum, lost, x);
  if (lost != lost) lost = 0.0f;  // an infinite sum stays one
}

}  // namespace flashattn
