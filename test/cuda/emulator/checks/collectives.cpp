// Barriers and the collective instructions of warps: who has to take part.
#include "cases.h"

namespace {

constexpr int kThreads = 64;

struct Memory {
  int32_t* flag;  // [2], zero
};

void run(void (*kernel)(Memory), const char* name) {
  emulator::Buffer<int32_t> flag(2, "flag");
  flag[0] = flag[1] = 0;
  launch_block(kernel, name, kThreads, 0, Memory{flag.data()});
}

FLASHATTN_KERNEL(kThreads) everybody(const Memory) {
  float c[4] = {};
  const uint32_t a[4] = {};
  for (int i = 0; i < 3; ++i) {
    ptx::mma_f16(c, a, 0, 0);
    ptx::shuffle_xor(c[0], 1);
    ptx::sync_threads();
    ptx::ballot(ptx::thread() % 2 == 0);
    ptx::sync_warp();
  }
}

/** Warps may go different ways where no barrier of the block lies on them. */
FLASHATTN_KERNEL(kThreads) warps_apart(const Memory) {
  if (ptx::thread() < 32)
    ptx::shuffle(1.0f, 0);
  else
    ptx::ballot(true);
  ptx::sync_threads();
}

FLASHATTN_KERNEL(kThreads) lanes_apart(const Memory) {
  if (ptx::thread() % 2 == 0)
    ptx::shuffle_xor(1.0f, 2);  // reported: divergent-collective in lanes_apart
  else
    ptx::shuffle_xor(1.0f, 2);  // reported: divergent-collective in lanes_apart
}

FLASHATTN_KERNEL(kThreads) two_barriers(const Memory) {
  if (ptx::thread() < 32)
    ptx::sync_threads();  // reported: divergent-barrier in two_barriers
  else
    ptx::sync_threads();  // reported: divergent-barrier in two_barriers
}

FLASHATTN_KERNEL(kThreads) missing_at_barrier(const Memory) {
  if (ptx::thread() >= 40) return;
  ptx::sync_threads();  // reported: deadlock in missing_at_barrier
}

FLASHATTN_KERNEL(kThreads) missing_lane(const Memory) {
  if (ptx::thread() != 5) ptx::ballot(true);  // reported: deadlock in missing_lane
  ptx::sync_threads();
}

FLASHATTN_KERNEL(kThreads) signalled_in_the_block(const Memory m) {
  if (ptx::thread() == 0) ptx::wait_for(m.flag, 3);
  if (ptx::thread() == 40) ptx::signal(m.flag, 3);
  ptx::sync_threads();
}

FLASHATTN_KERNEL(kThreads) never_signalled(const Memory m) {
  if (ptx::thread() == 40) ptx::signal(m.flag + 1, 2);
  ptx::sync_threads();
  if (ptx::thread() == 0) ptx::wait_for(m.flag + 1, 3);  // reported: deadlock in never_signalled
}

}  // namespace

#define CASE(kernel)                      \
  {                                       \
#kernel, [] { run(kernel, #kernel); } \
  }

int main() {
  run_cases({CASE(everybody), CASE(warps_apart), CASE(lanes_apart), CASE(two_barriers), CASE(missing_at_barrier),
             CASE(missing_lane), CASE(signalled_in_the_block), CASE(never_signalled)});
}
