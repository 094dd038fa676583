// The parts that the recurrence is launched in.
#pragma once
#include <cuda_runtime_api.h>

#include "../device_limits.h"
#include "structs/recurrence.h"

namespace flashattn {

/** What backward keeps between its kernels, in chunk_states: lib/kernels/recurrence.ts says how large it is. */
struct RecurrenceScratch {
  float *states,
      *d_states;  // [heads, rows, key dim, padded columns]: before each chunk, and behind the last; at its end
  float *errors,
      *d_updates;  // [batch, seq, heads, value dim]. Of the delta rule: what is added to the state is beta errors. Of
                   // corrections of rank one: what is read of the state, and its gradient
  float* sums;     // [heads, rows, key dim], of the bonus, or [heads, rows], of decays by head
  int64_t rows;
};

struct RecurrenceLaunch {
  RecurrenceParams params;
  RecurrenceScratch scratch;
  int32_t value_tiles;
  int32_t reserved;
};

/**
 * What kernels are made for, as the rest would take registers: decays by channel; others, with either update; the same where
 * elements have 16 bits, which products take as they are; and decays by channel with corrections of rank one.
 */
enum class RecurrenceKind { Channels, Positions, NarrowPositions, Delta, NarrowDelta, LowRank };

/** `narrow`: all tensors of the products have 16 bits. */
inline RecurrenceKind kind_of(const RecurrenceParams& p, bool narrow) {
  if (p.update == Update::LowRank) return RecurrenceKind::LowRank;
  if (p.decay_kind == Decay::Channel) return RecurrenceKind::Channels;
  if (p.update == Update::Delta) return narrow ? RecurrenceKind::NarrowDelta : RecurrenceKind::Delta;
  return narrow ? RecurrenceKind::NarrowPositions : RecurrenceKind::Positions;
}

inline bool is_narrow(const RecurrenceParams& p) {
  return element_size(p.query.dtype) == 2 && p.key.dtype == p.query.dtype && p.value.dtype == p.query.dtype;
}

/** Keeps the state before each chunk, and `errors`. */
cudaError_t launch_recurrence_states(const RecurrenceParams&, const RecurrenceScratch&, RecurrenceKind,
                                     const DeviceLimits&, cudaStream_t);
/** Keeps the gradient of the state at the end of each chunk, and `d_updates`; writes those of values and of the first state. */
cudaError_t launch_recurrence_d_states(const RecurrenceParams&, const RecurrenceScratch&, RecurrenceKind,
                                       const DeviceLimits&, cudaStream_t);
/** The rest, from what both have kept. */
cudaError_t launch_recurrence_gradients(const RecurrenceParams&, const RecurrenceScratch&, RecurrenceKind,
                                        cudaStream_t);

}  // namespace flashattn
