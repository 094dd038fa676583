// C[i, j] = activation(alpha * (the sum over k of A[i, k] * B[k, j]) + bias[i, j]), for every entry of a batch.
#pragma once
#include "activation.h"
#include "types.h"

namespace flashattn {

/** Matrices of a batch, with any strides; 0 where they broadcast. */
struct MatrixRef {
  Pointer<void> data;  // [batch..., rows, columns], null: none
  int64_t row, column;
  int64_t batch[4];
  DType dtype;
  int32_t reserved;
};
FLASHATTN_FIELDS(MatrixRef, data, row, column, batch, dtype, reserved);

struct MatmulParams {
  MatrixRef a, b, c, bias;  // [batch, rows, inner], [batch, inner, columns], twice [batch, rows, columns]
  // On processors, where several pieces of work read a panel (native/cpu/ops/matmul.h); null otherwise.
  Pointer<float> packed_a;  // [entries, panels, inner, rows of a panel]
  Pointer<float> packed_b;  // [entries, panels, inner, columns of a panel]
  int64_t batch[4];         // dims that are not needed are 1 and come first
  int32_t rows, columns, inner;
  float alpha;
  int32_t accumulate;  // 1: C is added to, in float32
  Activation activation;
};
FLASHATTN_FIELDS(MatmulParams, a, b, c, bias, packed_a, packed_b, batch, rows, columns, inner, alpha, accumulate,
                 activation);

}  // namespace flashattn
