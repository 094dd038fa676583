// Activations on vectors, to float32 accuracy over the whole range: the tails on the left are products, not differences
// of numbers near 1. NaN in gives NaN out; -Infinity gives the limit.
#pragma once
#include "simd/functions.h"
#include "structs/activation.h"

namespace flashattn {

namespace detail {

/** What lies below `least` is taken for it: -Infinity times 0 is a NaN. NaN stays. */
FLASHATTN_INLINE Vec at_least(Vec x, float least) { return select(x < splat(least), splat(least), x); }

}  // namespace detail

FLASHATTN_INLINE Vec gelu(Vec x) { return detail::at_least(x, -16.0f) * normal_cdf(x); }

/** With 0.5 (1 + tanh(u)) as 1 / (1 + e^-2u). */
FLASHATTN_INLINE Vec gelu_tanh(Vec x) {
  constexpr float kTwice = 1.5957691216057308f;  // 2 sqrt(2 / pi)
  const Vec u = x * multiply_add(x * x, splat(kTwice * 0.044715f), splat(kTwice));
  return detail::at_least(x, -16.0f) * sigmoid(u);
}

FLASHATTN_INLINE Vec silu(Vec x) { return detail::at_least(x, -128.0f) * sigmoid(x); }

FLASHATTN_INLINE Vec relu(Vec x) { return select(x < Vec{}, Vec{}, x); }

/** Whole vectors of a row; its last may reach beyond `count`. */
inline void activate(Activation activation, float* row /* [count] */, int count) {
  const auto apply = [&](auto f) {
    for (int n = 0; n < count; n += kLanes) store(row + n, f(load(row + n)));
  };
  switch (activation) {
    case Activation::None: break;
    case Activation::Gelu: return apply([](Vec x) { return gelu(x); });
    case Activation::GeluTanh: return apply([](Vec x) { return gelu_tanh(x); });
    case Activation::Silu: return apply([](Vec x) { return silu(x); });
    case Activation::Relu: return apply([](Vec x) { return relu(x); });
  }
}

}  // namespace flashattn
