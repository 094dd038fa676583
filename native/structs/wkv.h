// The weighted average of RWKV-4 (Peng et al. 2023), and its gradients.
#pragma once
#include "scan.h"

namespace flashattn {

/**
 * out_t = (the sum over j < t of e^((t - 1 - j) decay + k_j) v_j + e^(bonus + k_t) v_t) / (the same without v), for each
 * channel. The state is (num, den, peak): both sums, divided by e^peak, where peak is the largest exponent so far. Forward
 * and backward take the same struct; what one does not use is null.
 */
struct WkvParams {
  TensorRef k, v, out;                // [batch, length, channels]
  TensorRef d_out, d_k, d_v;          // [batch, length, channels]; results may be null: not wanted
  Pointer<const float> decay, bonus;  // [channels]
  Pointer<const float> initial;       // [batch, 3, channels], null: nothing was seen
  Pointer<float> final_state;         // [batch, 3, channels], null: not wanted
  Pointer<float> kept;                // [batch, blocks, 3, channels], the state before each block; null: not kept
  Pointer<const float> d_final;       // [batch, 3, channels], null: zeros
  Pointer<float> d_initial;           // [batch, 3, channels], null: not wanted
  Pointer<float> d_decay, d_bonus;    // [channels], null: not wanted
  Pointer<float> of_sequences;        // [batch, 2, channels], what each adds to d_decay and d_bonus
  int32_t batch, length, channels;
  int32_t reserved;
};
FLASHATTN_FIELDS(WkvParams, k, v, out, d_out, d_k, d_v, decay, bonus, initial, final_state, kept, d_final, d_initial,
                 d_decay, d_bonus, of_sequences, batch, length, channels, reserved);

/** Of a state that has seen nothing: below every exponent, and finite, so that no difference is NaN. */
inline constexpr float kNoPeak = -1e38f;

}  // namespace flashattn
