// Global memory: bounds, lifetimes, and what orders the accesses of threads and blocks.
#include "cases.h"

namespace {

constexpr int kThreads = 32, kBlocks = 4;

struct Memory {
  float* data;    // [kThreads * kBlocks]
  int32_t* flag;  // [kBlocks], zero
};

void run(void (*kernel)(Memory), const char* name, int blocks = kBlocks) {
  emulator::Buffer<float> data(kThreads * kBlocks, "data");
  emulator::Buffer<int32_t> flag(kBlocks, "flag");
  for (float& x : data) x = 0;
  for (int32_t& x : flag) x = 0;
  const dim3 grid(static_cast<unsigned>(blocks));
  ptx::launch(kernel, name, grid, kThreads, 0, nullptr, Memory{data.data(), flag.data()});
}

FLASHATTN_DEVICE int block() { return static_cast<int>(ptx::block().x); }
FLASHATTN_DEVICE int element() { return block() * kThreads + ptx::thread(); }

// Bounds --------------------------------------------------------------------------------------------------------------

FLASHATTN_KERNEL(kThreads) within(const Memory m) {
  ptx::store_global(m.data + element(), ptx::load_global(m.data + element()) + 1);
}

FLASHATTN_KERNEL(kThreads) beyond(const Memory m) {
  ptx::load_global(m.data + element() + 1);  // reported: global-out-of-bounds in beyond
  if (element() != 0) return;
  ptx::store_global(m.data - 1, 1.0f);                 // reported: global-out-of-bounds in beyond
  ptx::add_global(m.data + kThreads * kBlocks, 1.0f);  // reported: global-out-of-bounds in beyond
  ptx::fetch_add(m.flag + kBlocks, 1);                 // reported: global-out-of-bounds in beyond
  ptx::signal(m.flag - 1, 1);                          // reported: global-out-of-bounds in beyond
  ptx::wait_for(m.flag - 1, 1);                        // reported: global-out-of-bounds in beyond
}

FLASHATTN_KERNEL(kThreads) partly_beyond(const Memory m) {
  const float* last = m.data + kThreads * kBlocks - 4;
  ptx::load_global(reinterpret_cast<const uint4*>(last));
  ptx::load_global(reinterpret_cast<const uint4*>(last + 4));  // reported: global-out-of-bounds in partly_beyond
}

FLASHATTN_KERNEL(kThreads) copy_beyond(const Memory m) {
  const uint32_t to = ptx::shared_base();
  const float* end = m.data + kThreads * kBlocks;
  if (ptx::thread() != 0) return;
  ptx::cp_async<16>(to, end, 0);
  ptx::cp_async<16>(to + 16, end - 4, 16);
  ptx::cp_async<16>(to + 32, end, 4);      // reported: global-out-of-bounds in copy_beyond
  ptx::cp_async<16>(to + 48, end - 2, 8);  // reported: global-misaligned in copy_beyond
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
}

FLASHATTN_KERNEL(kThreads) misaligned(const Memory m) {
  ptx::load_global(reinterpret_cast<const uint2*>(m.data + 1));  // reported: global-misaligned in misaligned
}

FLASHATTN_KERNEL(kThreads) after_free(const Memory m) {
  ptx::load_global(m.data);  // reported: use-after-free in after_free
}

FLASHATTN_KERNEL(kThreads) of_the_host(const Memory m) {
  ptx::load_global(m.data);  // reported: global-out-of-bounds in of_the_host
}

void run_after_free() {
  float* data = static_cast<float*>(emulator::allocate(64, "data"));
  emulator::release(data);
  launch_block(after_free, "after_free", kThreads, 0, Memory{data, nullptr});
}

void run_of_the_host() {
  float data = 0;
  launch_block(of_the_host, "of_the_host", kThreads, 0, Memory{&data, nullptr});
}

void run_copy_beyond() {
  emulator::Buffer<float> data(kThreads * kBlocks, "data");
  ptx::launch(copy_beyond, "copy_beyond", dim3(1), kThreads, 64, nullptr, Memory{data.data(), nullptr});
}

// Threads of a block --------------------------------------------------------------------------------------------------

FLASHATTN_KERNEL(kThreads) same_element(const Memory m) {
  ptx::store_global(m.data, 1.0f);  // reported: global-race in same_element
}

FLASHATTN_KERNEL(kThreads) neighbour(const Memory m) {
  ptx::store_global(m.data + ptx::thread(), 1.0f);
  ptx::load_global(m.data + (ptx::thread() ^ 1));  // reported: global-race in neighbour
}

FLASHATTN_KERNEL(kThreads) neighbour_after_barrier(const Memory m) {
  ptx::store_global(m.data + ptx::thread(), 1.0f);
  ptx::sync_threads();
  ptx::load_global(m.data + (ptx::thread() ^ 1));
}

FLASHATTN_KERNEL(kThreads) neighbouring_bytes(const Memory m) {
  ptx::store_global(reinterpret_cast<uint16_t*>(m.data) + element(), uint16_t{1});
}

FLASHATTN_KERNEL(kThreads) atomic_additions(const Memory m) { ptx::add_global(m.data, 1.0f); }

FLASHATTN_KERNEL(kThreads) atomic_and_plain(const Memory m) {
  if (ptx::thread() == 7)
    ptx::store_global(m.data, 1.0f);  // reported: global-race in atomic_and_plain
  else
    ptx::add_global(m.data, 1.0f);  // reported: global-race in atomic_and_plain
}

// Blocks --------------------------------------------------------------------------------------------------------------

FLASHATTN_KERNEL(kThreads) blocks_store(const Memory m) {
  ptx::store_global(m.data + ptx::thread(), 1.0f);  // reported: global-race in blocks_store
}

FLASHATTN_KERNEL(kThreads) blocks_read(const Memory m) {
  const int other = (block() ^ 1) * kThreads + ptx::thread();
  ptx::load_global(m.data + other);  // reported: global-race in blocks_read
  ptx::store_global(m.data + element(), 1.0f);
}

/** A number of this block, known to all lanes: the blocks with smaller ones have begun. */
FLASHATTN_DEVICE int take_ticket(const Memory& m) {
  const int ticket = ptx::thread() == 0 ? ptx::fetch_add(m.flag + 1, 1) : 0;
  return ptx::shuffle(ticket, 0);
}

FLASHATTN_DEVICE void increase(float* mine) { ptx::store_global(mine, ptx::load_global(mine) + 1); }

/** Blocks take turns at the same elements. */
FLASHATTN_KERNEL(kThreads) turns(const Memory m) {
  const int ticket = take_ticket(m);
  if (ptx::thread() == 0) ptx::wait_for(m.flag, ticket);
  ptx::sync_threads();
  increase(m.data + ptx::thread());
  ptx::sync_threads();
  if (ptx::thread() == 0) ptx::signal(m.flag, ticket + 1);
}

/** A warp needs no more than its own barrier. */
FLASHATTN_KERNEL(kThreads) turns_of_a_warp(const Memory m) {
  const int ticket = take_ticket(m);
  if (ptx::thread() == 5) ptx::wait_for(m.flag, ticket);
  ptx::sync_warp();
  increase(m.data + ptx::thread());
  ptx::sync_warp();
  if (ptx::thread() == 7) ptx::signal(m.flag, ticket + 1);
}

/** A thread needs no barrier at all. */
FLASHATTN_KERNEL(kThreads) turns_of_a_thread(const Memory m) {
  if (ptx::thread() != 3) return;
  const int ticket = ptx::fetch_add(m.flag + 1, 1);
  ptx::wait_for(m.flag, ticket);
  increase(m.data);
  ptx::signal(m.flag, ticket + 1);
}

/** What the other threads do may come after the signal. */
FLASHATTN_KERNEL(kThreads) signal_without_barrier(const Memory m) {
  const int ticket = take_ticket(m);
  if (ptx::thread() == 0) ptx::wait_for(m.flag, ticket);
  ptx::sync_threads();
  float* mine = m.data + ptx::thread();
  ptx::store_global(mine, ptx::load_global(mine) + 1);  // reported: global-race in signal_without_barrier
  if (ptx::thread() == 0) ptx::signal(m.flag, ticket + 1);
}

/** The other threads do not wait. */
FLASHATTN_KERNEL(kThreads) wait_without_barrier(const Memory m) {
  const int ticket = take_ticket(m);
  if (ptx::thread() == 0) ptx::wait_for(m.flag, ticket);
  float* mine = m.data + ptx::thread();
  ptx::store_global(mine, ptx::load_global(mine) + 1);  // reported: global-race in wait_without_barrier
  ptx::sync_threads();
  if (ptx::thread() == 0) ptx::signal(m.flag, ticket + 1);
}

/** What follows the signal is not covered by it. */
FLASHATTN_KERNEL(kThreads) signal_too_early(const Memory m) {
  const int ticket = take_ticket(m);
  if (ptx::thread() == 0) {
    ptx::wait_for(m.flag, ticket);
    ptx::signal(m.flag, ticket + 1);
    ptx::store_global(m.data, 1.0f);  // reported: global-race in signal_too_early
  }
}

/** Nobody says that the block before has finished: its number is taken from another flag. */
FLASHATTN_KERNEL(kThreads) wrong_turns(const Memory m) {
  float* mine = m.data + ptx::thread();
  ptx::store_global(mine, ptx::load_global(mine) + 1);  // reported: global-race in wrong_turns
  ptx::sync_threads();
  if (ptx::thread() == 0) ptx::signal(m.flag + block(), 1);
}

/** Two blocks may take the same number. */
FLASHATTN_KERNEL(kThreads) torn_ticket(const Memory m) {
  if (ptx::thread() != 0) return;
  ptx::store_global(m.flag, ptx::load_global(m.flag) + 1);  // reported: global-race in torn_ticket
}

enum class Fence { None, BeforeBarrier, AfterBarrier };

/** What each block stored is read by the one that comes last to a counter. */
FLASHATTN_DEVICE bool is_last(const Memory& m, Fence first, bool second) {
  ptx::store_global(m.data + element(), 1.0f);
  if (first == Fence::BeforeBarrier) ptx::fence();
  ptx::sync_threads();
  int before = 0;
  if (ptx::thread() == 0) {
    if (first == Fence::AfterBarrier) ptx::fence();
    before = ptx::fetch_add(m.flag, 1);
    if (second) ptx::fence();
  }
  ptx::sync_threads();
  return ptx::shuffle(before, 0) == kBlocks - 1;
}

FLASHATTN_KERNEL(kThreads) counter(const Memory m) {
  if (!is_last(m, Fence::AfterBarrier, true)) return;
  for (int b = 0; b < kBlocks; ++b) ptx::load_global(m.data + b * kThreads + ptx::thread());
}

FLASHATTN_KERNEL(kThreads) counter_without_fence(const Memory m) {
  if (!is_last(m, Fence::None, true)) return;
  for (int b = 0; b < kBlocks; ++b)
    ptx::load_global(m.data + b * kThreads + ptx::thread());  // reported: global-race in counter_without_fence
}

/** A fence is of what its thread knows by then. */
FLASHATTN_KERNEL(kThreads) counter_after_early_fence(const Memory m) {
  if (!is_last(m, Fence::BeforeBarrier, true)) return;
  for (int b = 0; b < kBlocks; ++b)
    ptx::load_global(m.data + b * kThreads + ptx::thread());  // reported: global-race in counter_after_early_fence
}

FLASHATTN_KERNEL(kThreads) counter_without_second_fence(const Memory m) {
  if (!is_last(m, Fence::AfterBarrier, false)) return;
  for (int b = 0; b < kBlocks; ++b)
    ptx::load_global(m.data + b * kThreads + ptx::thread());  // reported: global-race in counter_without_second_fence
}

}  // namespace

#define CASE(kernel)                      \
  {                                       \
#kernel, [] { run(kernel, #kernel); } \
  }
#define CASE_OF_ONE_BLOCK(kernel)            \
  {                                          \
#kernel, [] { run(kernel, #kernel, 1); } \
  }

int main() {
  run_cases({CASE(within),
             CASE(beyond),
             CASE(partly_beyond),
             {"copy_beyond", run_copy_beyond},
             CASE(misaligned),
             {"after_free", run_after_free},
             {"of_the_host", run_of_the_host},
             CASE_OF_ONE_BLOCK(same_element),
             CASE_OF_ONE_BLOCK(neighbour),
             CASE_OF_ONE_BLOCK(neighbour_after_barrier),
             CASE(neighbouring_bytes),
             CASE(atomic_additions),
             CASE(atomic_and_plain),
             CASE(blocks_store),
             CASE(blocks_read),
             CASE(turns),
             CASE(turns_of_a_warp),
             CASE(turns_of_a_thread),
             CASE(signal_without_barrier),
             CASE(wait_without_barrier),
             CASE(signal_too_early),
             CASE(wrong_turns),
             CASE(torn_ticket),
             CASE(counter),
             CASE(counter_without_fence),
             CASE(counter_after_early_fence),
             CASE(counter_without_second_fence)});
}
