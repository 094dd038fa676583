#include "block_order.h"

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "device_memory.h"
#include "global_memory.h"
#include "schedule.h"

namespace emulator {

namespace {

/** A block that has run in some place, from a clock on. */
struct Stay {
  uint64_t start, number;
};

struct LaunchOrder {
  std::vector<Stay> stays[kPlaces];                 // by rising starts
  std::unordered_map<const void*, Past> published;  // by flag: what comes before its last value
};

LaunchOrder& order = *new LaunchOrder;

/** What comes before all that `thread` does from now on. */
Past past_of(const Thread& thread) {
  const Warp& warp = *thread.warp;
  const Block& block = *warp.block;
  Past past = block.known;
  past.add(warp.known);
  past.add(thread.known);
  past.add_block(block.number, block.synced);
  if (warp.synced > block.synced) past.add_warp(block.number, warp.index, warp.synced);
  past.add_thread(block.number, thread.index, ++machine.clock);
  return past;
}

void learn(Thread& thread, const Past& past) {
  if (past.empty()) return;
  thread.known.add(past);
  thread.warp->has_news = thread.warp->block->has_news = true;
}

const Past& published_by(const void* flag) {
  static const Past nothing;
  const auto found = order.published.find(flag);
  return found == order.published.end() ? nothing : found->second;
}

void move_news(Past& from, Past& to) {
  to.add(from);
  from.clear();
}

}  // namespace

void begin_launch_order() {
  for (auto& stays : order.stays) stays.clear();
  order.published.clear();
}

void begin_block_order(const Block& block) { order.stays[block.place].push_back({block.start, block.number}); }

uint64_t block_of(Stamp stamp) {
  const std::vector<Stay>& stays = order.stays[stamp.place()];
  const auto later = [](uint64_t clock, const Stay& stay) { return clock < stay.start; };
  return std::prev(std::upper_bound(stays.begin(), stays.end(), stamp.clock(), later))->number;
}

bool ordered_before(Stamp stamp, const Thread& thread) {
  const Warp& warp = *thread.warp;
  const Block& block = *warp.block;
  if (stamp.place() == block.place && !stamp.before(block.start) && stamp.ordered_before(thread)) return true;
  if (block.known.empty() && !block.has_news) return false;
  const uint64_t number = block_of(stamp);
  const auto covers = [&](const Past& past) { return past.covers(number, stamp.thread(), stamp.clock()); };
  return covers(block.known) || covers(warp.known) || covers(thread.known);
}

void share_news(Warp& warp) {
  for (int lane = 0; lane < kWarpSize; ++lane)
    if (warp.lanes >> lane & 1) move_news(warp.threads[lane].known, warp.known);
  warp.has_news = false;
}

void share_news(Block& block) {
  for (int w = 0; w < machine.warps; ++w) {
    share_news(block.warps[w]);
    move_news(block.warps[w].known, block.known);
  }
  block.has_news = false;
}

int32_t fetch_add(int32_t* counter, int32_t value, Site site) {
  Allocation* allocation = check_global(counter, sizeof *counter, alignof(int32_t), "fetch_add", site);
  if (!allocation) return -1;
  note_atomic(*allocation, counter, sizeof *counter, "fetch_add", site);
  Thread& self = *machine.current;
  self.seen.add(published_by(counter));
  if (!self.fenced.empty()) order.published[counter].add(self.fenced);
  const int32_t before = *counter;
  *counter += value;
  speak_to_blocks();
  wake_signalled();
  return before;
}

void fence() {
  Thread& self = *machine.current;
  learn(self, self.seen);
  self.seen.clear();
  self.fenced = past_of(self);
}

void signal(int32_t* flag, int32_t value, Site site) {
  Allocation* allocation = check_global(flag, sizeof *flag, alignof(int32_t), "signal", site);
  if (!allocation) return;
  note_atomic(*allocation, flag, sizeof *flag, "signal", site);
  order.published[flag] = past_of(*machine.current);
  *flag = value;
  speak_to_blocks();
  wake_signalled();
}

void wait_for(const int32_t* flag, int32_t value, Site site) {
  if (!check_global(flag, sizeof *flag, alignof(int32_t), "wait_for", site)) return;
  wait_for_flag(flag, value, site);
  learn(*machine.current, published_by(flag));
}

}  // namespace emulator
