// The dims that kernels are compiled for: tiles are zero beyond the real dim.
#pragma once

namespace flashattn {

inline constexpr int kHeadDims[] = {32, 64, 96, 128, 192, 256};

constexpr int head_dim_bucket(int dim) {
  for (const int bucket : kHeadDims)
    if (dim <= bucket) return bucket;
  return 0;
}

/** Of the larger of the two dims: one bucket serves queries, keys and values. */
template <class Problem>
constexpr int head_dim_bucket(const Problem& p) {
  return head_dim_bucket(p.head_dim > p.value_dim ? p.head_dim : p.value_dim);
}

}  // namespace flashattn
