// Sums whose error does not grow with the number of terms: Kahan, "Further remarks on reducing truncation errors" (1965).
#pragma once
#include "ptx.cuh"

namespace flashattn {

/** sum - lost += x, where `lost` is what rounding has made `sum` too large by. */
FLASHATTN_DEVICE void add_compensated(float& sum, float& lost, float x) {
  const float added = x - lost, before = sum;
  sum = before + added;
  const float rest = sum - before - added;
  lost = rest == rest ? rest : 0.0f;  // an infinite sum stays one
}

}  // namespace flashattn
