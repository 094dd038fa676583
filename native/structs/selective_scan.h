// The selective scan of Mamba (Gu and Dao 2023), and its gradients.
#pragma once
#include "scan.h"

namespace flashattn {

/**
 * With step = softplus(dt + dt_bias), or dt + dt_bias: h_t[c, n] = e^(step a[c, n]) h_{t-1}[c, n] + step b_t[g, n] u_t[c],
 * and out_t[c] = (the sum over n of c_t[g, n] h_t[c, n] + skip[c] u_t[c]) silu(z_t[c]), with g the group of channel c.
 * Forward and backward take the same struct; what one does not use is null.
 */
struct SelectiveScanParams {
  TensorRef u, dt, z, out;             // [batch, length, channels]; z may be null
  TensorRef d_out, d_u, d_dt, d_z;     // [batch, length, channels]; results may be null: not wanted
  TensorRef b, c, d_b, d_c;            // [batch, length, groups, state]; d_b and d_c may be null: not wanted
  Pointer<const float> a;              // [channels, state]
  Pointer<const float> skip, dt_bias;  // [channels], null: zeros
  Pointer<const float> initial;        // [batch, channels, state], null: zeros
  Pointer<float> final_state;          // [batch, channels, state], null: not wanted
  Pointer<float> kept;                 // [batch, blocks, state, channels], the state before each block; null: not kept
  Pointer<const float> d_final;        // [batch, channels, state], null: zeros
  Pointer<float> d_initial;            // [batch, channels, state], null: not wanted
  Pointer<float> d_a;                  // [channels, state], null: not wanted
  Pointer<float> d_skip, d_dt_bias;    // [channels], null: not wanted
  // What each sequence adds to d_a, then to d_skip and to d_dt_bias, and on a GPU what rounding has made that too large by.
  Pointer<float> of_sequences;  // [2, batch, state + 2, channels], null: none is wanted
  // What each part of kScanChannels of a group adds to d_b and to d_c.
  Pointer<float> of_channels;  // [2, parts of a group, batch, length, groups, state], null: neither is wanted
  int32_t batch, length, channels, groups, state;
  int32_t softplus;  // 1: of dt + dt_bias
};
FLASHATTN_FIELDS(SelectiveScanParams, u, dt, z, out, d_out, d_u, d_dt, d_z, b, c, d_b, d_c, a, skip, dt_bias, initial,
                 final_state, kept, d_final, d_initial, d_a, d_skip, d_dt_bias, of_sequences, of_channels, batch,
                 length, channels, groups, state, softplus);

}  // namespace flashattn
