#include <algorithm>
#include <iterator>
#include <utility>

#include "async_copy.h"
#include "bank_conflicts.h"
#include "block_order.h"
#include "deadlock.h"
#include "emulator.h"
#include "launch_lock.h"
#include "machine.h"
#include "properties.h"
#include "report.h"
#include "runtime/contexts.h"
#include "runtime/stream.h"
#include "schedule.h"
#include "shared_memory.h"
#include "stamp.h"

namespace emulator {

namespace {

cudaError_t next_failure = cudaSuccess;

constexpr unsigned kMaxGridX = 0x7fffffff, kMaxGridYZ = 0xffff;

cudaError_t check(const Launch& launch) {
  const dim3 g = launch.grid;
  const bool grid_fits = g.x && g.y && g.z && g.x <= kMaxGridX && g.y <= kMaxGridYZ && g.z <= kMaxGridYZ;
  if (!grid_fits || launch.threads < 1 || launch.threads > kMaxThreads) return cudaErrorInvalidConfiguration;
  if (device_of(launch.stream) != current_device()) return cudaErrorInvalidResourceHandle;
  if (launch.shared_bytes < 0 || launch.shared_bytes > device_properties().shared_memory) return cudaErrorInvalidValue;
  return cudaSuccess;
}

void make_threads(Block& block) {
  if (!block.threads) block.threads = new Thread[kMaxThreads];
  for (; block.fibers < machine.threads; ++block.fibers) {
    const int index = block.fibers;
    Thread& thread = block.threads[index];
    thread.context = make_fiber(index);
    thread.index = index;
    thread.lane = index % kWarpSize;
    thread.who = Stamp::who(block.place, index);
    thread.warp = &block.warps[index / kWarpSize];
  }
}

void begin_warps(Block& block) {
  for (int w = 0; w < machine.warps; ++w) {
    Warp& warp = block.warps[w];
    const int lanes = std::clamp(machine.threads - w * kWarpSize, 0, kWarpSize);
    warp.block = &block;
    warp.threads = block.threads + w * kWarpSize;
    warp.index = w;
    warp.bit = uint64_t{1} << (w * kPlaces + block.place);
    warp.lanes = lanes == kWarpSize ? ~0u : (1u << lanes) - 1;
    warp.ready = 0;
    warp.synced = machine.clock;
    warp.known.clear();
    warp.has_news = false;
    for (Exchange& exchange : warp.exchanges) exchange.arrived = 0;
  }
}

void begin_block(Block& block, uint64_t number) {
  const dim3 grid = machine.launch->grid;
  const auto x = static_cast<unsigned>(number % grid.x), rows = static_cast<unsigned>(number / grid.x);
  block.active = true;
  block.index = dim3(x, rows % grid.y, rows / grid.y);
  block.number = number;
  block.start = block.synced = ++machine.clock;
  block.barrier.arrived = 0;
  block.known.clear();
  block.has_news = false;
  make_threads(block);
  begin_warps(block);
  begin_block_order(block);
  begin_shared_memory(block, machine.launch->shared_bytes);
  for (int i = 0; i < machine.threads; ++i) {
    Thread& thread = block.threads[i];
    thread.done = false;
    thread.known.clear();
    thread.seen.clear();
    thread.fenced.clear();
    thread.waits_in = nullptr;
    thread.flag = nullptr;
  }
  start_threads(block);
}

void end_block(Block& block) {
  for (int i = 0; i < machine.threads; ++i) {
    Thread& thread = block.threads[i];
    if (block.running == 0) finish_copies(thread);
    thread.copies.clear();
  }
  count_bank_conflicts(block);
  block.active = false;
  ++machine.statistics.blocks;
}

void end_blocks_in_deadlock() {
  for (Block& block : machine.blocks) {
    if (!block.active) continue;
    report_deadlock(block);
    end_block(block);
  }
  begin_schedule();
}

void run_grid(const Launch& launch) {
  machine.launch = &launch;
  machine.device = current_device();
  need_context();
  machine.config = config();
  machine.threads = launch.threads;
  machine.warps = (launch.threads + kWarpSize - 1) / kWarpSize;
  machine.launch_start = ++machine.clock;
  for (int place = 0; place < kPlaces; ++place) machine.blocks[place].place = place;
  begin_schedule();
  begin_launch_order();
  const uint64_t count = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  for (uint64_t begun = 0, ended = 0; ended < count;) {
    for (Block& block : machine.blocks)
      if (!block.active && begun < count && (machine.speaks || block.place == 0))
        begin_block(block, block_in_order(begun++, count));
    if (!run_threads()) end_blocks_in_deadlock();
    for (Block& block : machine.blocks)
      if (block.active && block.running == 0) end_block(block);
    ended = begun - static_cast<uint64_t>(std::count_if(std::begin(machine.blocks), std::end(machine.blocks),
                                                        [](const Block& block) { return block.active; }));
  }
  machine.launch = nullptr;
}

}  // namespace

cudaError_t launch(const Launch& launch) {
  const LaunchLock lock;
  const cudaError_t invalid = check(launch);
  if (invalid != cudaSuccess) return invalid;
  bool kept = false;
  const cudaError_t captured = capture(launch, &kept);
  if (kept || captured != cudaSuccess) return captured;
  const uint64_t before = report_count();
  ++machine.statistics.launches;
  run_grid(launch);
  if (report_count() != before) fail_later(launch.stream, cudaErrorLaunchFailure);
  if (next_failure != cudaSuccess) fail_later(launch.stream, std::exchange(next_failure, cudaSuccess));
  return cudaSuccess;
}

void fail_next_launch(int error) {
  const LaunchLock lock;
  next_failure = static_cast<cudaError_t>(error);
}

int thread_index() { return machine.current->index; }
dim3 block_index() { return machine.current->warp->block->index; }
dim3 grid_size() { return machine.launch->grid; }

}  // namespace emulator
