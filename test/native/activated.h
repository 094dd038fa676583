// Activations in double, by their definitions.
#pragma once
#include <cmath>

#include "structs/activation.h"

namespace flashattn::test {

inline double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::Gelu: return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
    case Activation::GeluTanh: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::Silu: return x / (1 + std::exp(-x));
    case Activation::Relu: return x > 0 ? x : 0;
    default: return x;
  }
}

}  // namespace flashattn::test
