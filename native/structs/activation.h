// Functions that are applied to every element of a result before it is written.
#pragma once
#include <stdint.h>

namespace flashattn {

enum class Activation : int32_t {
  None,
  Gelu,      // x P(X <= x) of a normal X (Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016)
  GeluTanh,  // their approximation: 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
  Silu,      // x / (1 + e^-x)
  Relu,      // max(x, 0)
};

}  // namespace flashattn
