// The state of the one thread block that is running, shared by the files of the emulator.
//
// Time is a clock that steps at every synchronisation. An access made at clock c comes before one made now by thread t
// iff t made it, or c lies before the last sync_threads, or a thread of t's warp made it and c lies before the warp's
// last sync_warp. Blocks run one after the other, so that one clock serves the whole process and also tells blocks and
// launches apart; nothing has to be cleared between them.
#pragma once
#include <cstdint>
#include <vector>

#include "async_copy.h"
#include "calls.h"
#include "emulator.h"
#include "fiber.h"

namespace emulator {

inline constexpr int kWarpSize = 32, kMaxWarps = 32, kMaxThreads = kWarpSize * kMaxWarps;

/** One collective instruction of a warp: what its lanes have handed in so far, and what they take away. */
struct Exchange {
  int arrived = 0;
  const char* what = "";
  Site site;
  alignas(64) uint32_t in[6][kWarpSize];
  uint32_t out[4][kWarpSize];
  float sum[2][kWarpSize][2];  // c [16, 8] of an mma, in row order: the fragment's halves are its rows 0-7 and 8-15
};

/** A load_shared or store_shared of one lane, kept until its warp has made all of them. */
struct SharedAccess {
  Site site;
  uint32_t address;
  int bytes;
};

struct Warp {
  int index = 0;
  uint32_t lanes = 0;   // that exist
  uint32_t ready = 0;   // that can run, without the one that runs
  uint64_t synced = 0;  // clock of the last sync_warp
  bool has_accesses = false;
  // Two, since a lane may hand in its part of the next instruction before another has taken the result of this one.
  Exchange exchanges[2];
  int turn = 0;
};

struct alignas(64) Thread {
  Context context;
  Warp* warp = nullptr;
  int index = 0, lane = 0;

  // What it waits in, or waited in last.
  const char* waits_in = nullptr;
  Site site;
  const int32_t* flag = nullptr;  // of a wait_for that lasts
  int32_t flag_value = 0;

  bool done = false;
  bool fenced = false;  // fence() since its last store to global memory
  CopyQueue copies;
  std::vector<SharedAccess> accesses;
};

struct Barrier {
  int arrived = 0;
  Site site;
};

struct Machine {
  uint64_t clock = 1;
  uint64_t launch_start = 1, block_start = 1, block_synced = 1;

  const Launch* launch = nullptr;
  Config config;  // as it was when the launch began
  dim3 block;
  uint64_t block_number = 0;
  int threads = 0, running = 0;
  uint32_t ready_warps = 0;
  uint64_t random = 0;
  Barrier barrier;
  Context host;
  Statistics statistics{};

  Thread* current = nullptr;  // null between blocks
  Warp warps[kMaxWarps];
  Thread* pool = nullptr;  // [kMaxThreads], made by the first launch and kept
  int fibers = 0;          // of the pool that have a stack

  Thread& thread(int index) { return pool[static_cast<size_t>(index)]; }
};

extern Machine machine;

}  // namespace emulator
