// A walk backwards, with the gradient of the state.
#include "launch.h"
#include "sm80/recurrence_walk.cuh"

namespace flashattn {

namespace {

template <int kValueTile, RecurrenceKind kKind>
FLASHATTN_KERNEL(kRecurrenceThreads, 2)
recurrence_d_states_kernel(FLASHATTN_CONSTANT const RecurrenceLaunch launch) {
  BackwardWalk<kValueTile, kKind>(launch, WalkPlace::of(launch, kValueTile)).run();
}

}  // namespace

cudaError_t launch_recurrence_d_states(const RecurrenceParams& p, const RecurrenceScratch& scratch, RecurrenceKind kind,
                                       const DeviceLimits& limits, cudaStream_t stream) {
  return with_walk(p, kind, limits, [&](auto value_tile, auto constant) {
    return launch_walk<value_tile()>("recurrence state gradients", recurrence_d_states_kernel<value_tile(), constant()>,
                                     p, scratch, stream);
  });
}

}  // namespace flashattn
