// The gradients of the recurrence. Two walks keep the states before chunks, and the gradients of states at their ends; what is
// left is a block for each chunk.
#include "launch.h"
#include "sm80/recurrence_parts.h"

namespace flashattn {

namespace {

RecurrenceScratch scratch_of(const RecurrenceParams& p) {
  const int64_t rows = p.chunk_rows + p.batch, states = p.heads * rows * p.key_dim * p.padded_columns();
  const int64_t positions = int64_t{p.offsets ? 1 : p.batch} * p.length;
  const int64_t values = p.update != Update::Add ? positions * p.heads * p.value_dim : 0;
  float* const begin = p.chunk_states;
  return {begin, begin + states, begin + 2 * states, begin + 2 * states + values, begin + 2 * (states + values), rows};
}

}  // namespace

cudaError_t launch_recurrence_backward(const RecurrenceParams& p, const DeviceLimits& limits, cudaStream_t stream) {
  if (p.batch == 0 || p.heads == 0) return cudaSuccess;
  // The gradient of the normalizer is float32, and stands beside those of out.
  const bool narrow = is_narrow(p) && p.d_out.dtype == p.query.dtype && !p.d_normalizer;
  const RecurrenceKind kind = kind_of(p, narrow);
  const RecurrenceScratch scratch = scratch_of(p);
  cudaError_t error = launch_recurrence_states(p, scratch, kind, limits, stream);
  if (!error) error = launch_recurrence_d_states(p, scratch, kind, limits, stream);
  if (!error) error = launch_recurrence_gradients(p, scratch, kind, stream);
  return error;
}

}  // namespace flashattn
