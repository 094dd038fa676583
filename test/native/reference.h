// Attention and its gradients as plain loops in double.
#pragma once
#include "problem.h"

namespace flashattn::test {

struct ForwardReference {
  std::vector<double> out;  // [tensor batch, heads, query rows, value dim]
  std::vector<double> lse;  // as the problem's
};

struct BackwardReference {
  std::vector<double> d_query;         // [tensor batch, heads, query rows, head dim]
  std::vector<double> d_key, d_value;  // [tensor batch, kv heads, key rows, dim]
  std::vector<double> d_bias, d_relative, d_sink;
};

ForwardReference forward_reference(const Problem& problem);
/** Starts from the problem's out and lse, as the kernels do. */
BackwardReference backward_reference(const Problem& problem);

}  // namespace flashattn::test
