// Softmax over rows that lie anywhere: y = e^x / (the sum of e^x), or its logarithm, and the gradient of either.
#pragma once
#include "types.h"

namespace flashattn {

/** Strides: of the outer dims, then along the row. Outer dims that are not needed are 1 and come first. */
struct SoftmaxParams {
  Pointer<const void> x;      // [outer..., length]; backward: what forward has returned
  Pointer<const void> d_out;  // the same shape; backward alone, null otherwise
  Pointer<void> result;       // the same shape: out, or the gradient of x
  int64_t outer[3];
  int64_t length;
  int64_t x_strides[4], d_out_strides[4], result_strides[4];
  DType dtype;  // of all
  int32_t log;  // 1: the logarithm of softmax
};
FLASHATTN_FIELDS(SoftmaxParams, x, d_out, result, outer, length, x_strides, d_out_strides, result_strides, dtype, log);

}  // namespace flashattn
