// Shared memory: what is a race, what is not, and what else must not happen.
#include "cases.h"

namespace {

constexpr int kThreads = 64, kBytes = kThreads * 16;

struct Memory {
  const float* in;  // [kThreads * 4]
  float* out;       // [kThreads]
};

void run(void (*kernel)(Memory), const char* name) {
  emulator::Buffer<float> in(kThreads * 4, "in"), out(kThreads, "out");
  for (float& x : in) x = 1;
  launch_block(kernel, name, kThreads, kBytes, Memory{in.data(), out.data()});
}

FLASHATTN_DEVICE uint32_t slot(int thread) { return ptx::shared_base() + static_cast<uint32_t>(thread) * 16; }
FLASHATTN_DEVICE void keep(const Memory& m, float x) { ptx::store_global(m.out + ptx::thread(), x); }
FLASHATTN_DEVICE const float* source(const Memory& m) { return m.in + 4 * ptx::thread(); }

// Ordered -------------------------------------------------------------------------------------------------------------

FLASHATTN_KERNEL(kThreads) block_barrier(const Memory m) {
  const int t = ptx::thread();
  for (int round = 0; round < 3; ++round) {
    ptx::store_shared(slot(t), 1.0f);
    ptx::sync_threads();
    keep(m, ptx::load_shared<float>(slot(kThreads - 1 - t)));
    ptx::sync_threads();
  }
}

FLASHATTN_KERNEL(kThreads) warp_barrier(const Memory) {
  const int t = ptx::thread();
  ptx::store_shared(slot(t), 1.0f);
  ptx::sync_warp();
  const float x = ptx::load_shared<float>(slot(t ^ 31));
  ptx::sync_warp();
  ptx::store_shared(slot(t), x);
}

FLASHATTN_KERNEL(kThreads) waited_copies(const Memory m) {
  const int t = ptx::thread();
  ptx::cp_async<16>(slot(t), source(m), 8);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  keep(m, ptx::load_shared<float>(slot(t)));
  ptx::sync_threads();
  keep(m, ptx::load_shared<float>(slot(t ^ 63)));
}

FLASHATTN_KERNEL(kThreads) neighbouring_bytes(const Memory) {
  const int t = ptx::thread();
  ptx::store_shared(ptx::shared_base() + static_cast<uint32_t>(t) * 2, static_cast<uint16_t>(t));
  ptx::sync_threads();
  ptx::load_shared<uint4>(slot(t / 8));
  ptx::sync_threads();
  ptx::store_shared(slot(t), uint4{});
}

/** The older of two groups has landed when one may be under way. */
FLASHATTN_KERNEL(kThreads) two_groups(const Memory m) {
  const int t = ptx::thread();
  const uint32_t other = slot((t + 32) % kThreads);
  if (t >= 32) return;
  ptx::cp_async<16>(slot(t), source(m), 16);
  ptx::cp_async_commit();
  ptx::cp_async<16>(other, source(m), 16);
  ptx::cp_async_commit();
  ptx::cp_async_wait<1>();
  ptx::load_shared<float>(slot(t));
  ptx::cp_async_wait<0>();
  ptx::load_shared<float>(other);
}

// Races ---------------------------------------------------------------------------------------------------------------

FLASHATTN_KERNEL(kThreads) read_without_barrier(const Memory m) {
  const int t = ptx::thread();
  ptx::store_shared(slot(t), 0.0f);
  ptx::sync_threads();
  ptx::store_shared(slot(t), 1.0f);                          // reported: race in read_without_barrier
  keep(m, ptx::load_shared<float>(slot(kThreads - 1 - t)));  // reported: race in read_without_barrier
}

FLASHATTN_KERNEL(kThreads) overwrite_without_barrier(const Memory m) {
  const int t = ptx::thread();
  ptx::store_shared(slot(t), 0.0f);
  ptx::sync_threads();
  keep(m, ptx::load_shared<float>(slot((t + 1) % kThreads)));  // reported: race in overwrite_without_barrier
  ptx::store_shared(slot(t), 1.0f);                            // reported: race in overwrite_without_barrier
}

FLASHATTN_KERNEL(kThreads) two_writers(const Memory) {
  ptx::store_shared(slot(ptx::thread() / 2), 1.0f);  // reported: race in two_writers
}

/** Shuffles exchange registers; they do not order memory. */
FLASHATTN_KERNEL(kThreads) shuffle_is_no_barrier(const Memory m) {
  const int t = ptx::thread();
  ptx::store_shared(slot(t), 1.0f);
  ptx::shuffle_xor(1.0f, 1);
  keep(m, ptx::load_shared<float>(slot(t ^ 1)));  // reported: race in shuffle_is_no_barrier
}

FLASHATTN_KERNEL(kThreads) warp_barrier_is_not_enough(const Memory m) {
  const int t = ptx::thread();
  ptx::store_shared(slot(t), 0.0f);
  ptx::sync_threads();
  ptx::store_shared(slot(t), 1.0f);  // reported: race in warp_barrier_is_not_enough
  ptx::sync_warp();
  keep(m, ptx::load_shared<float>(slot(t ^ 32)));  // reported: race in warp_barrier_is_not_enough
}

FLASHATTN_KERNEL(kThreads) half_of_a_line(const Memory) {
  const int t = ptx::thread();
  ptx::store_shared(slot(t), uint4{});
  ptx::sync_threads();
  ptx::store_shared(slot(t) + 8, uint16_t{1});  // reported: race in half_of_a_line
  ptx::load_shared<uint4>(slot(t ^ 1));         // reported: race in half_of_a_line
}

FLASHATTN_KERNEL(kThreads) matrix_without_barrier(const Memory) {
  const int t = ptx::thread();
  ptx::store_shared(slot(t), uint4{});
  ptx::sync_threads();
  ptx::store_shared(slot(t), uint4{});
  uint32_t r[4];
  ptx::ldmatrix_x4(r, slot(t ^ 8));  // reported: race in matrix_without_barrier
}

// Copies --------------------------------------------------------------------------------------------------------------

FLASHATTN_KERNEL(kThreads) copy_without_wait(const Memory m) {
  const int t = ptx::thread();
  ptx::cp_async<16>(slot(t), source(m), 16);
  ptx::cp_async_commit();
  ptx::sync_threads();
  keep(m, ptx::load_shared<float>(slot(t)));  // reported: read-of-copy-in-flight in copy_without_wait
  ptx::cp_async_wait<0>();
}

FLASHATTN_KERNEL(kThreads) copy_without_commit(const Memory m) {
  const int t = ptx::thread();
  ptx::cp_async<16>(slot(t), source(m), 16);  // reported: exit-with-copies-in-flight in copy_without_commit
  ptx::cp_async_wait<0>();
  keep(m, ptx::load_shared<float>(slot(t)));  // reported: read-of-copy-in-flight in copy_without_commit
}

/** Each thread waits for its own copies only: the others' need a barrier. */
FLASHATTN_KERNEL(kThreads) copy_without_barrier(const Memory m) {
  const int t = ptx::thread();
  ptx::store_shared(slot(t), uint4{});
  ptx::sync_threads();
  ptx::cp_async<16>(slot(t), source(m), 16);  // reported: race in copy_without_barrier
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  keep(m, ptx::load_shared<float>(slot(t ^ 63)));  // reported: race in copy_without_barrier
}

FLASHATTN_KERNEL(kThreads) store_over_copy(const Memory m) {
  const int t = ptx::thread();
  ptx::cp_async<16>(slot(t), source(m), 16);
  ptx::cp_async_commit();
  ptx::store_shared(slot(t), 1.0f);  // reported: write-over-copy-in-flight in store_over_copy
  ptx::cp_async_wait<0>();
}

FLASHATTN_KERNEL(kThreads) copy_over_reads(const Memory m) {
  const int t = ptx::thread();
  ptx::store_shared(slot(t), uint4{});
  ptx::sync_threads();
  ptx::load_shared<uint4>(slot(t ^ 63));      // reported: race in copy_over_reads
  ptx::cp_async<16>(slot(t), source(m), 16);  // reported: race in copy_over_reads
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
}

FLASHATTN_KERNEL(kThreads) copy_never_waited(const Memory m) {
  ptx::cp_async<16>(slot(ptx::thread()), source(m), 16);  // reported: exit-with-copies-in-flight in copy_never_waited
  ptx::cp_async_commit();
}

// Addresses -----------------------------------------------------------------------------------------------------------

FLASHATTN_KERNEL(kThreads) uninitialised(const Memory m) {
  keep(m, ptx::load_shared<float>(slot(ptx::thread())));  // reported: uninitialised-shared in uninitialised
}

FLASHATTN_KERNEL(kThreads) beyond_the_end(const Memory m) {
  ptx::store_shared(slot(ptx::thread() + 1), 1.0f);    // reported: shared-out-of-bounds in beyond_the_end
  if (ptx::thread() == 0) ptx::load_shared<float>(0);  // reported: shared-out-of-bounds in beyond_the_end
  uint32_t r[4];
  ptx::ldmatrix_x4(r, slot(kThreads));               // reported: shared-out-of-bounds in beyond_the_end
  ptx::cp_async<16>(slot(kThreads), source(m), 16);  // reported: shared-out-of-bounds in beyond_the_end
}

FLASHATTN_KERNEL(kThreads) misaligned(const Memory m) {
  const uint32_t odd = slot(ptx::thread()) + 4;
  ptx::store_shared(odd, uint2{});                                // reported: shared-misaligned in misaligned
  if (ptx::thread() < 63) ptx::cp_async<16>(odd, source(m), 16);  // reported: shared-misaligned in misaligned
  ptx::store_shared(odd - 3, uint16_t{});                         // reported: shared-misaligned in misaligned
}

}  // namespace

#define CASE(kernel)                      \
  {                                       \
#kernel, [] { run(kernel, #kernel); } \
  }

int main() {
  run_cases({CASE(block_barrier),
             CASE(warp_barrier),
             CASE(waited_copies),
             CASE(neighbouring_bytes),
             CASE(two_groups),
             CASE(read_without_barrier),
             CASE(overwrite_without_barrier),
             CASE(two_writers),
             CASE(shuffle_is_no_barrier),
             CASE(warp_barrier_is_not_enough),
             CASE(half_of_a_line),
             CASE(matrix_without_barrier),
             CASE(copy_without_wait),
             CASE(copy_without_commit),
             CASE(copy_without_barrier),
             CASE(store_over_copy),
             CASE(copy_over_reads),
             CASE(copy_never_waited),
             CASE(uninitialised),
             CASE(beyond_the_end),
             CASE(misaligned)});
}
