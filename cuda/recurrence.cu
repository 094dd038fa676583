// Linear and recurrent attention, forwards: one launch, of a block for each state and tile of its columns.
#include "launch.h"
#include "sm80/recurrence_walk.cuh"

namespace flashattn {

namespace {

template <int kValueTile, RecurrenceKind kKind>
FLASHATTN_KERNEL(kRecurrenceThreads, 2)
recurrence_kernel(FLASHATTN_CONSTANT const RecurrenceLaunch launch) {
  ForwardWalk<kValueTile, kKind>(launch, WalkPlace::of(launch, kValueTile)).run(false);
}

}  // namespace

cudaError_t launch_recurrence(const RecurrenceParams& p, const DeviceLimits& limits, cudaStream_t stream) {
  if (p.batch == 0 || p.heads == 0) return cudaSuccess;
  return with_walk(p, kind_of(p, is_narrow(p)), limits, [&](auto value_tile, auto kind) {
    return launch_walk<value_tile()>("recurrence", recurrence_kernel<value_tile(), kind()>, p, {}, stream);
  });
}

}  // namespace flashattn
