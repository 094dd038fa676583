// C[b, i, j] = the sum over k of A[b, i, k] B[b, j, k], exact in 32 bits, over the scales of its row and column, + bias[j].
#pragma once
#include "quantise.h"

namespace flashattn {

/** Rows of codes: quantise.h. */
struct CodesRef {
  Pointer<const int32_t> codes;  // [batch, rows, words]
  Pointer<const float> scale;    // [batch, rows], or [1] of all
  int32_t words;
  CodeFormat format;
  int32_t has_row_scales;
  int32_t reserved;
};
FLASHATTN_FIELDS(CodesRef, codes, scale, words, format, has_row_scales, reserved);

struct CodeMatmulParams {
  CodesRef a, b;              // [batch, rows, inner], bytes, and [batch, columns, inner], bytes or trits
  Pointer<void> c;            // [batch, rows, columns], contiguous
  Pointer<const float> bias;  // [columns], or null
  DType dtype;                // of C
  int32_t batch, rows, columns, inner, reserved;
};
FLASHATTN_FIELDS(CodeMatmulParams, a, b, c, bias, dtype, batch, rows, columns, inner, reserved);

}  // namespace flashattn
