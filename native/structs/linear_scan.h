// h_t = e^(g_t) h_{t-1} + x_t for every channel, and its gradients.
#pragma once
#include "scan.h"

namespace flashattn {

/** Forward and backward take the same struct; what one does not use is null. */
struct LinearScanParams {
  TensorRef x, gate, out;        // [batch, length, channels]
  TensorRef d_out, d_x, d_gate;  // [batch, length, channels]; results may be null: not wanted
  Pointer<const float> initial;  // [batch, channels], null: zeros
  Pointer<float> final_state;    // [batch, channels], null: not wanted
  Pointer<float> kept;           // [batch, blocks, channels], the state before each block; null: not kept
  Pointer<const float> d_final;  // [batch, channels], null: zeros
  Pointer<float> d_initial;      // [batch, channels], null: not wanted
  int32_t batch, length, channels;
  int32_t reserved;
};
FLASHATTN_FIELDS(LinearScanParams, x, gate, out, d_out, d_x, d_gate, initial, final_state, kept, d_final, d_initial,
                 batch, length, channels, reserved);

}  // namespace flashattn
