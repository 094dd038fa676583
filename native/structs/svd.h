// Singular values and vectors of small matrices.
#pragma once
#include "types.h"

namespace flashattn {

/** Everything is contiguous and float32. */
struct SvdParams {
  Pointer<float> vectors;  // [matrices, count, length]: what is decomposed, then orthonormal rows u
  Pointer<float> values;   // [matrices, count]: falling
  Pointer<float> others;   // [matrices, count, count]: orthonormal rows v, with input = sum of v[k][i] values[k] u[k]
  int64_t matrices;
  int32_t count, length;  // count <= length
};
FLASHATTN_FIELDS(SvdParams, vectors, values, others, matrices, count, length);

/** What both kinds of kernels agree on. */
inline constexpr int kSvdMostSweeps = 40;
/** Below this share of the largest a value is 0. */
inline constexpr float kSvdLeastValue = 0x1p-60f;

}  // namespace flashattn
