// The state of the thread blocks that are running, shared by the files of the emulator.
//
// Time is a clock that steps at every synchronisation. An access made at clock c comes before one made now by thread t
// of the same block iff t made it, or c lies before the block's last sync_threads, or a thread of t's warp made it and
// c lies before the warp's last sync_warp. One clock serves the whole process: together with the place that a block
// runs in it also tells blocks and launches apart, and nothing has to be cleared between them. What orders blocks is
// in past.h.
#pragma once
#include <cstdint>
#include <vector>

#include "async_copy.h"
#include "calls.h"
#include "emulator.h"
#include "fiber.h"
#include "past.h"

namespace emulator {

inline constexpr int kWarpSize = 32, kMaxWarps = 32, kMaxThreads = kWarpSize * kMaxWarps;

/**
 * Blocks that run at once, their warps interleaved, each in a place of its own. The second begins when the first speaks
 * to others through a flag or a counter: until then nothing could tell whether it runs.
 */
inline constexpr int kPlaces = 2;

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

struct Block;
struct Thread;

struct Warp {
  Block* block = nullptr;
  Thread* threads = nullptr;  // [kWarpSize]
  int index = 0;
  uint64_t bit = 0;       // of machine.ready
  uint32_t lanes = 0;     // that exist
  uint32_t ready = 0;     // that can run, without the one that runs
  uint64_t synced = 0;    // clock of the last sync_warp
  Past known;             // of other blocks, to all lanes
  bool has_news = false;  // a lane knows more
  bool has_accesses = false;
  // Two, since a lane may hand in its part of the next instruction before another has taken the result of this one.
  Exchange exchanges[2];
  int turn = 0;
};

struct alignas(64) Thread {
  Context context;
  Warp* warp = nullptr;
  int index = 0, lane = 0;
  uint64_t who = 0;  // place and index, in a Stamp

  // What it waits in, or waited in last.
  const char* waits_in = nullptr;
  Site site;
  const int32_t* flag = nullptr;  // of a wait_for that lasts
  int32_t flag_value = 0;

  bool done = false;
  Past known;   // of other blocks, to this thread alone
  Past seen;    // by fetch_add, and known after the next fence
  Past fenced;  // what the last fence ordered before the fetch_adds to come
  CopyQueue copies;
  std::vector<SharedAccess> accesses;
};

struct Barrier {
  int arrived = 0;
  Site site;
};

struct SharedMemory;

/** A place for a thread block, and the block that runs there. */
struct Block {
  int place = 0;
  bool active = false;
  dim3 index;
  uint64_t number = 0;             // x first, then y
  uint64_t start = 1, synced = 1;  // clocks
  int running = 0;                 // threads that have not ended
  Barrier barrier;
  Past known;             // of other blocks, to all threads
  bool has_news = false;  // a thread knows more
  SharedMemory* shared = nullptr;
  Warp warps[kMaxWarps];
  Thread* threads = nullptr;  // [kMaxThreads], made by the first launch and kept
  int fibers = 0;             // of the threads that have a stack
};

struct Machine {
  uint64_t clock = 1;
  uint64_t launch_start = 1;

  const Launch* launch = nullptr;
  int device = 0;   // that it runs on
  Config config;    // as it was when the launch began
  int threads = 0;  // of each block
  int warps = 0;
  uint64_t ready = 0;  // warps with a lane that can run: those of the first warp of every block, of the second, ...
  uint64_t random = 0;
  bool speaks = false;   // a thread has spoken to other blocks
  bool to_host = false;  // the host thread has to run next, to begin a block
  Context host;
  Statistics statistics{};

  Thread* current = nullptr;         // null while the host thread runs
  int last_warp = 0, last_lane = 0;  // who ran last: a bit of `ready`, and a lane
  std::vector<Thread*> waiting;      // for flags
  Block blocks[kPlaces];
};

extern Machine machine;

}  // namespace emulator
