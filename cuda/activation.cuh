// Activations, to float32 accuracy over the whole range: the tails on the left are products, not differences of numbers
// near 1. NaN in gives NaN out; -Infinity gives the limit. As native/cpu/simd/activation.h.
#pragma once
#include "functions.cuh"
#include "structs/activation.h"

namespace flashattn {

namespace detail {

/** What lies below `least` is taken for it: -Infinity times 0 is a NaN. NaN stays. */
FLASHATTN_DEVICE float at_least(float x, float least) { return x < least ? least : x; }

}  // namespace detail

FLASHATTN_DEVICE float gelu(float x) { return detail::at_least(x, -16.0f) * ptx::normal_cdf(x); }

/** With 0.5 (1 + tanh(u)) as 1 / (1 + e^-2u). */
FLASHATTN_DEVICE float gelu_tanh(float x) {
  constexpr float kTwice = 1.59576912f;  // 2 sqrt(2 / pi)
  return detail::at_least(x, -16.0f) * sigmoid_of(x * fmaf(x * x, kTwice * 0.044715f, kTwice));
}

FLASHATTN_DEVICE float silu(float x) { return detail::at_least(x, -128.0f) * sigmoid_of(x); }

FLASHATTN_DEVICE float relu(float x) { return x < 0.0f ? 0.0f : x; }

/** All of `x`: a branch that a whole grid takes together. */
template <int Count>
FLASHATTN_DEVICE void activate(Activation activation, float (&x)[Count]) {
  const auto apply = [&](auto f) {
#pragma unroll
    for (float& value : x) value = f(value);
  };
  if (activation == Activation::None) return;
  if (activation == Activation::Gelu)
    apply([](float value) { return gelu(value); });
  else if (activation == Activation::GeluTanh)
    apply([](float value) { return gelu_tanh(value); });
  else if (activation == Activation::Silu)
    apply([](float value) { return silu(value); });
  else
    apply([](float value) { return relu(value); });
}

}  // namespace flashattn
