// A walk forwards that keeps the states before chunks, for backward.
#include "launch.h"
#include "sm80/recurrence_walk.cuh"

namespace flashattn {

namespace {

template <int kValueTile, RecurrenceKind kKind>
FLASHATTN_KERNEL(kRecurrenceThreads, 2)
recurrence_states_kernel(FLASHATTN_CONSTANT const RecurrenceLaunch launch) {
  ForwardWalk<kValueTile, kKind>(launch, WalkPlace::of(launch, kValueTile)).run(true);
}

}  // namespace

cudaError_t launch_recurrence_states(const RecurrenceParams& p, const RecurrenceScratch& scratch, RecurrenceKind kind,
                                     const DeviceLimits& limits, cudaStream_t stream) {
  return with_walk(p, kind, limits, [&](auto value_tile, auto constant) {
    return launch_walk<value_tile()>("recurrence states", recurrence_states_kernel<value_tile(), constant()>, p,
                                     scratch, stream);
  });
}

}  // namespace flashattn
