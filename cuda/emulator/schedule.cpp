#include "schedule.h"

#include <bit>

#include "bank_conflicts.h"
#include "deadlock.h"
#include "emulator.h"

namespace emulator {

Machine machine;

namespace {

uint32_t random_bits() {  // xorshift64*
  uint64_t& x = machine.random;
  x ^= x >> 12;
  x ^= x << 25;
  x ^= x >> 27;
  return static_cast<uint32_t>(x * 0x2545f4914f6cdd1dull >> 32);
}

/** The first bit of `set` at or after `from`, around the end. */
int first_from(uint32_t set, int from) { return (std::countr_zero(std::rotr(set, from)) + from) % 32; }
/** The first bit of `set` at or before `from`, around the end. */
int last_from(uint32_t set, int from) { return (from + 32 - std::countl_zero(std::rotl(set, 31 - from))) % 32; }

/** How often a random schedule leaves a warp that could go on: once in this many choices. */
uint32_t random_stay(int schedule) {
  constexpr uint32_t kStays[] = {2, 16, 128};
  return kStays[schedule % 3];
}

int choose_warp(int schedule, int last) {
  const uint32_t ready = machine.ready_warps;
  const bool last_ready = ready >> last & 1;
  if (schedule >= 2) {
    if (last_ready && random_bits() % random_stay(schedule) != 0) return last;
    return first_from(ready, static_cast<int>(random_bits() % kMaxWarps));
  }
  if (last_ready) return last;
  return schedule == 1 ? last_from(ready, last) : first_from(ready, last);
}

int choose_lane(int schedule, uint32_t ready, int last) {
  if (schedule >= 2) return first_from(ready, static_cast<int>(random_bits() % kWarpSize));
  return schedule == 1 ? last_from(ready, last) : first_from(ready, last);
}

/** A thread that can run, no longer counted as ready; null: none can. */
inline Thread* take_ready(int last_warp, int last_lane) {
  if (machine.ready_warps == 0) return nullptr;
  const int schedule = machine.config.schedule;
  Warp& warp = machine.warps[choose_warp(schedule, last_warp)];
  const int first_lane = schedule == 1 ? kWarpSize - 1 : 0;
  const int lane = choose_lane(schedule, warp.ready, warp.index == last_warp ? last_lane : first_lane);
  warp.ready &= ~(1u << lane);
  if (warp.ready == 0) machine.ready_warps &= ~(1u << warp.index);
  return &machine.thread(warp.index * kWarpSize + lane);
}

void make_ready(Thread& thread) {
  thread.warp->ready |= 1u << thread.lane;
  machine.ready_warps |= 1u << thread.warp->index;
}

/** Threads whose flag has been set can run again. Blocks run in order, so this only helps within a block. */
bool wake_signalled() {
  bool any = false;
  for (int i = 0; i < machine.threads; ++i) {
    Thread& thread = machine.thread(i);
    if (!thread.flag || *thread.flag != thread.flag_value) continue;
    thread.flag = nullptr;
    make_ready(thread);
    any = true;
  }
  return any;
}

/** When no thread can run: the end of the block, or one that waited for a flag, or a deadlock. */
[[gnu::noinline]] Thread* last_resort() {
  if (machine.running == 0) return nullptr;
  if (wake_signalled()) return take_ready(machine.current->warp->index, machine.current->lane);
  report_deadlock();
  return nullptr;
}

/** Who runs after the running thread: null ends the block. */
inline Thread* successor() {
  Thread* next = take_ready(machine.current->warp->index, machine.current->lane);
  return next ? next : last_resort();
}

Context& continue_as(Thread* next) {
  machine.current = next;
  if (!next) return machine.host;
  ++machine.statistics.switches;
  return next->context;
}

[[noreturn]] void thread_entry() {
  enter_context();
  machine.launch->run(machine.launch->call);
  Thread& self = *machine.current;
  self.done = true;
  --machine.running;
  leave_context(self.context, continue_as(successor()));
}

}  // namespace

void wait_in(const char* what, Site site) {
  Thread& self = *machine.current;
  self.waits_in = what;
  self.site = site;
  Thread* next = successor();
  if (next == &self) return;
  switch_context(self.context, continue_as(next));
}

void wake_others(Warp& warp) {
  const uint32_t others = warp.lanes & ~(1u << machine.current->lane);
  warp.ready = others;
  if (others) machine.ready_warps |= 1u << warp.index;
}

void wake_all_others() {
  for (int w = 0; w * kWarpSize < machine.threads; ++w) {
    Warp& warp = machine.warps[w];
    warp.ready = warp.lanes;
    machine.ready_warps |= 1u << w;
  }
  Warp& own = *machine.current->warp;
  wake_others(own);
  if (own.ready == 0) machine.ready_warps &= ~(1u << own.index);
}

void run_threads() {
  for (int i = 0; i < machine.threads; ++i) {
    Thread& thread = machine.thread(i);
    thread.context.restart(thread_entry);
    make_ready(thread);
  }
  machine.running = machine.threads;
  machine.host = {};
  const bool from_the_end = machine.config.schedule == 1;
  Thread* first = from_the_end ? take_ready((machine.threads - 1) / kWarpSize, kWarpSize - 1) : take_ready(0, 0);
  switch_context(machine.host, continue_as(first));
}

}  // namespace emulator
