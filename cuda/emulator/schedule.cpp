#include "schedule.h"

#include <bit>
#include <limits>
#include <numeric>

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

int random_below(int count) { return static_cast<int>(uint64_t{random_bits()} * static_cast<uint32_t>(count) >> 32); }

/** The first bit of `set` at or after `from`, around the end. */
template <class Set>
int first_from(Set set, int from) {
  constexpr int kBits = std::numeric_limits<Set>::digits;
  return (std::countr_zero(std::rotr(set, from)) + from) % kBits;
}
/** The first bit of `set` at or before `from`, around the end. */
template <class Set>
int last_from(Set set, int from) {
  constexpr int kBits = std::numeric_limits<Set>::digits;
  return (from + kBits - std::countl_zero(std::rotl(set, kBits - 1 - from))) % kBits;
}

/** How often a random schedule leaves a warp that could go on: once in this many choices. */
uint32_t random_stay(int schedule) {
  constexpr uint32_t kStays[] = {2, 16, 128};
  return kStays[schedule % 3];
}

/** Of the warps that can run, by the number of their bit. */
inline int choose_warp(int schedule) {
  const uint64_t ready = machine.ready;
  const int last = machine.last_warp;
  const bool last_ready = ready >> last & 1;
  if (schedule >= 2) {
    if (last_ready && random_bits() % random_stay(schedule) != 0) return last;
    return first_from(ready, random_below(machine.warps * kPlaces));
  }
  if (last_ready) return last;
  return schedule == 1 ? last_from(ready, last) : first_from(ready, last);
}

inline int choose_lane(int schedule, uint32_t ready, int last) {
  if (schedule >= 2) return first_from(ready, random_below(kWarpSize));
  return schedule == 1 ? last_from(ready, last) : first_from(ready, last);
}

/** A thread that can run, no longer counted as ready; null: none can. */
inline Thread* take_ready() {
  if (machine.ready == 0 || machine.to_host) return nullptr;
  const int schedule = machine.config.schedule;
  const int chosen = choose_warp(schedule);
  Warp& warp = machine.blocks[chosen % kPlaces].warps[chosen / kPlaces];
  const int first_lane = schedule == 1 ? kWarpSize - 1 : 0;
  const int lane = choose_lane(schedule, warp.ready, chosen == machine.last_warp ? machine.last_lane : first_lane);
  warp.ready &= ~(1u << lane);
  if (warp.ready == 0) machine.ready &= ~warp.bit;
  machine.last_warp = chosen;
  machine.last_lane = lane;
  return &warp.threads[lane];
}

void make_ready(Thread& thread) {
  thread.warp->ready |= 1u << thread.lane;
  machine.ready |= thread.warp->bit;
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
  // The host thread has another block take the place of one that has ended.
  Thread* next = --self.warp->block->running == 0 ? nullptr : take_ready();
  leave_context(self.context, continue_as(next));
}

}  // namespace

void wait_in(const char* what, Site site) {
  Thread& self = *machine.current;
  self.waits_in = what;
  self.site = site;
  Thread* next = take_ready();
  if (next == &self) return;
  switch_context(self.context, continue_as(next));
}

void wait_for_flag(const int32_t* flag, int32_t value, Site site) {
  Thread& self = *machine.current;
  speak_to_blocks();
  while (*flag != value) {
    self.flag = flag;
    self.flag_value = value;
    machine.waiting.push_back(&self);
    wait_in("wait_for", site);
  }
}

void speak_to_blocks() {
  if (machine.speaks) return;
  machine.speaks = machine.to_host = true;
}

bool wake_signalled() {
  const auto is_set = [](Thread* thread) {
    if (*thread->flag != thread->flag_value) return false;
    thread->flag = nullptr;
    make_ready(*thread);
    return true;
  };
  return std::erase_if(machine.waiting, is_set) > 0;
}

void wake_others(Warp& warp) {
  const uint32_t others = warp.lanes & ~(1u << machine.current->lane);
  warp.ready = others;
  if (others) machine.ready |= warp.bit;
}

void wake_all_others(Block& block) {
  for (int w = 0; w < machine.warps; ++w) {
    Warp& warp = block.warps[w];
    warp.ready = warp.lanes;
    machine.ready |= warp.bit;
  }
  Warp& own = *machine.current->warp;
  wake_others(own);
  if (own.ready == 0) machine.ready &= ~own.bit;
}

void start_threads(Block& block) {
  block.running = machine.threads;
  for (int i = 0; i < machine.threads; ++i) {
    Thread& thread = block.threads[i];
    thread.context.restart(thread_entry);
    make_ready(thread);
  }
}

void begin_schedule() {
  const int schedule = machine.config.schedule;
  machine.random = (static_cast<uint64_t>(schedule) << 32 | 1) * 0x9e3779b97f4a7c15ull;
  machine.ready = 0;
  machine.speaks = machine.to_host = false;
  machine.waiting.clear();
  machine.last_warp = schedule == 1 ? kPlaces * kMaxWarps - 1 : 0;
  machine.last_lane = schedule == 1 ? kWarpSize - 1 : 0;
}

uint64_t block_in_order(uint64_t n, uint64_t count) {
  const int schedule = machine.config.schedule;
  if (schedule < 2) return schedule == 0 ? n : count - 1 - n;
  // Multiples of a number without a factor in common with `count` pass through all remainders.
  const uint64_t mixed = static_cast<uint64_t>(schedule) * 0x9e3779b97f4a7c15ull, first = mixed >> 48;
  uint64_t step = 1 + (mixed >> 32) % count;
  while (std::gcd(step, count) != 1) ++step;
  return (first + n * step) % count;
}

bool run_threads() {
  machine.host = {};
  machine.to_host = false;
  Thread* first = take_ready();
  // A flag may have been set by other means than `signal`.
  if (!first && wake_signalled()) first = take_ready();
  if (first) switch_context(machine.host, continue_as(first));
  return first;
}

}  // namespace emulator
