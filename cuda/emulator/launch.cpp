#include <algorithm>

#include "async_copy.h"
#include "bank_conflicts.h"
#include "emulator.h"
#include "global_memory.h"
#include "launch_lock.h"
#include "machine.h"
#include "properties.h"
#include "report.h"
#include "runtime/stream.h"
#include "schedule.h"
#include "shared_memory.h"

namespace emulator {

namespace {

constexpr unsigned kMaxGridX = 0x7fffffff, kMaxGridYZ = 0xffff;

cudaError_t check(const Launch& launch) {
  const dim3 g = launch.grid;
  const bool grid_fits = g.x && g.y && g.z && g.x <= kMaxGridX && g.y <= kMaxGridYZ && g.z <= kMaxGridYZ;
  if (!grid_fits || launch.threads < 1 || launch.threads > kMaxThreads) return cudaErrorInvalidConfiguration;
  if (launch.shared_bytes < 0 || launch.shared_bytes > device_properties().shared_memory) return cudaErrorInvalidValue;
  return cudaSuccess;
}

void make_threads(int count) {
  if (!machine.pool) machine.pool = new Thread[kMaxThreads];
  for (; machine.fibers < count; ++machine.fibers) {
    const int index = machine.fibers;
    Thread& thread = machine.thread(index);
    thread.context = make_fiber(index);
    thread.index = index;
    thread.lane = index % kWarpSize;
    thread.warp = &machine.warps[index / kWarpSize];
  }
}

void begin_warps() {
  for (int w = 0; w < kMaxWarps; ++w) {
    Warp& warp = machine.warps[w];
    const int lanes = std::clamp(machine.threads - w * kWarpSize, 0, kWarpSize);
    warp.index = w;
    warp.lanes = lanes == kWarpSize ? ~0u : (1u << lanes) - 1;
    warp.ready = 0;
    warp.synced = machine.clock;
    for (Exchange& exchange : warp.exchanges) exchange.arrived = 0;
  }
}

void begin_block(const Launch& launch, dim3 block, uint64_t number) {
  machine.block = block;
  machine.block_number = number;
  machine.threads = launch.threads;
  machine.block_start = machine.block_synced = ++machine.clock;
  machine.barrier.arrived = 0;
  machine.ready_warps = 0;
  machine.random = (static_cast<uint64_t>(machine.config.schedule) << 32 | (number + 1)) * 0x9e3779b97f4a7c15ull;
  begin_warps();
  begin_block_order();
  begin_shared_memory(launch.shared_bytes);
  for (int i = 0; i < launch.threads; ++i) {
    Thread& thread = machine.thread(i);
    thread.done = thread.fenced = false;
    thread.waits_in = nullptr;
    thread.flag = nullptr;
  }
}

void finish_block() {
  bool complete = true;
  for (int i = 0; i < machine.threads; ++i) complete = complete && machine.thread(i).done;
  for (int i = 0; i < machine.threads; ++i) {
    Thread& thread = machine.thread(i);
    if (complete) finish_copies(thread);
    thread.copies.clear();
  }
  count_bank_conflicts();
  ++machine.statistics.blocks;
}

void run_grid(const Launch& launch) {
  machine.launch = &launch;
  machine.config = config();
  machine.launch_start = ++machine.clock;
  make_threads(launch.threads);
  begin_global_memory();
  uint64_t number = 0;
  for (unsigned z = 0; z < launch.grid.z; ++z)
    for (unsigned y = 0; y < launch.grid.y; ++y)
      for (unsigned x = 0; x < launch.grid.x; ++x) {
        begin_block(launch, dim3(x, y, z), number++);
        run_threads();
        finish_block();
      }
  machine.launch = nullptr;
}

}  // namespace

cudaError_t launch(const Launch& launch) {
  const LaunchLock lock;
  const cudaError_t invalid = check(launch);
  if (invalid != cudaSuccess) return invalid;
  const uint64_t before = report_count();
  ++machine.statistics.launches;
  run_grid(launch);
  if (report_count() != before) fail_later(launch.stream, cudaErrorLaunchFailure);
  return cudaSuccess;
}

int thread_index() { return machine.current->index; }
dim3 block_index() { return machine.block; }
dim3 grid_size() { return machine.launch->grid; }

}  // namespace emulator
