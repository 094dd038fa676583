// A linear system with a diagonal matrix of complex numbers (S4D: Gu, Gupta, Goel and Re 2022), and its gradients.
#pragma once
#include "scan.h"

namespace flashattn {

/**
 * h_t[c, n] = a[c, n] h_{t-1}[c, n] + u_t[c] and out_t[c] = the real part of the sum over n of w[c, n] h_t[c, n]. A complex
 * number is two floats, the real part first. The gradient of one is that of both parts. Forward and backward take the same
 * struct; what one does not use is null.
 */
struct DiagonalScanParams {
  TensorRef u, out;              // [batch, length, channels]
  TensorRef d_out, d_u;          // [batch, length, channels]; d_u may be null: not wanted
  Pointer<const float> a, w;     // [channels, state, 2]
  Pointer<const float> initial;  // [batch, channels, state, 2], null: zeros
  Pointer<float> final_state;    // [batch, channels, state, 2], null: not wanted
  Pointer<float> kept;           // [batch, blocks, state, 2, channels], the state before each block; null: not kept
  Pointer<const float> d_final;  // [batch, channels, state, 2], null: zeros
  Pointer<float> d_initial;      // [batch, channels, state, 2], null: not wanted
  Pointer<float> d_a, d_w;       // [channels, state, 2], null: not wanted
  // What each sequence adds to d_a, then to d_w, and on a GPU what rounding has made that too large by.
  Pointer<float> of_sequences;  // [2, batch, 2, state, 2, channels], null: neither is wanted
  int32_t batch, length, channels, state;
};
FLASHATTN_FIELDS(DiagonalScanParams, u, out, d_out, d_u, a, w, initial, final_state, kept, d_final, d_initial, d_a, d_w,
                 of_sequences, batch, length, channels, state);

}  // namespace flashattn
