// The logarithm of a sum of powers in one pass (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018).
#pragma once
#include "sum.cuh"
#include "vector.cuh"

namespace flashattn {

FLASHATTN_DEVICE float natural_exp(float x) {
  constexpr float kLog2E = 1.4426950408889634f;
  return ptx::exp2(x * kLog2E);
}

FLASHATTN_DEVICE float larger(float a, float b) { return a < b ? b : a; }

/** Of the elements so far the largest, and the sum of e^(x - largest) with what its roundings have made it too large by. */
struct OnlineSum {
  float maximum = -INFINITY, sum = 0, lost = 0;

  FLASHATTN_DEVICE void take(const float (&x)[kVector]) {
    float most = maximum;
    for (int e = 0; e < kVector; ++e) most = larger(most, x[e]);
    if (most > maximum) {
      const float shrink = natural_exp(maximum - most);
      sum *= shrink;
      lost *= shrink;
      maximum = most;
    }
    // Less -Infinity all would be NaN, also of rows that have other elements.
    const float reference = maximum == -INFINITY ? 0.0f : maximum;
    float powers[kVector];
    for (int e = 0; e < kVector; ++e) powers[e] = natural_exp(x[e] - reference);
    add_compensated(sum, lost, sum_part(powers));
  }

  /** The sum as it is above a maximum of several such sums. */
  FLASHATTN_DEVICE float above(float largest) const {
    const float share = maximum == largest || maximum == -INFINITY ? 1.0f : natural_exp(maximum - largest);
    return (sum - lost) * share;
  }
};

}  // namespace flashattn
