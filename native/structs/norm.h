// Rows brought to one size: y = (x - mean) * rstd * gain + bias, with rstd = 1 / sqrt(variance + epsilon). Layer norm, or
// without the mean RMS norm. x may be a sum of two tensors, which is then made on the way.
#pragma once
#include "types.h"

namespace flashattn {

/** Rows are contiguous. Forward and backward take the same struct; what one does not use is null. */
struct NormParams {
  Pointer<const void> x;         // [rows, dim]; backward: what was normalised, so that `residual` is null
  Pointer<const void> residual;  // [rows, dim], added to x; null: none
  Pointer<const void> gain;      // [dim], null: 1
  Pointer<const void> bias;      // [dim], null: 0
  Pointer<void> out;             // [rows, dim]
  Pointer<void> sum;             // [rows, dim], x + residual, where there is one
  Pointer<float> mean;           // [rows], null: not kept, or not centered
  Pointer<float> rstd;           // [rows], null: not kept
  Pointer<const void> d_out;     // [rows, dim]
  Pointer<const void> d_sum;     // [rows, dim], the gradient that reaches x besides; null: none
  Pointer<void> d_x;             // [rows, dim], null: not wanted
  Pointer<void> d_gain;          // [dim], null: not wanted
  Pointer<void> d_bias;          // [dim], null: not wanted
  // What the rows of a chunk add to the gradients of gain and bias: each a sum, and what rounding has cut off it. Null
  // where neither is wanted.
  Pointer<float> partial;  // [chunks, 2, 2, partial_row]
  int64_t rows, dim;
  int64_t x_row, residual_row, d_out_row, d_sum_row;  // strides; out, sum and d_x are contiguous
  int64_t chunk_rows, partial_row;                    // partial_row: dim rounded up to whole vectors of any machine
  int32_t chunks;
  DType dtype;                   // of x, residual, out, sum and their gradients
  DType gain_dtype, bias_dtype;  // also of their gradients
  float epsilon;
  int32_t centered;  // 1: layer norm, 0: RMS norm
};
FLASHATTN_FIELDS(NormParams, x, residual, gain, bias, out, sum, mean, rstd, d_out, d_sum, d_x, d_gain, d_bias, partial,
                 rows, dim, x_row, residual_row, d_out_row, d_sum_row, chunk_rows, partial_row, chunks, dtype,
                 gain_dtype, bias_dtype, epsilon, centered);

}  // namespace flashattn
