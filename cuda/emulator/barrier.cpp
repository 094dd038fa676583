// Barriers of the block and of a warp: the only instructions that order shared memory between threads.
#include <string>

#include "bank_conflicts.h"
#include "machine.h"
#include "report.h"
#include "schedule.h"
#include "warp.h"

namespace emulator {

void sync_threads(Site site) {
  Barrier& barrier = machine.barrier;
  if (barrier.arrived == 0) {
    barrier.site = site;
  } else if (!same_place(barrier.site, site)) {
    report(site, "divergent-barrier",
           [&] { return "sync_threads while other threads wait in the one at " + place_of(barrier.site); });
  }
  if (++barrier.arrived < machine.threads) {
    wait_in("sync_threads", site);
    return;
  }
  barrier.arrived = 0;
  ++machine.statistics.barriers;
  machine.block_synced = ++machine.clock;
  count_bank_conflicts();
  wake_all_others();
}

void sync_warp(Site site) {
  meet(
      "sync_warp", site, [](Exchange&, int) {}, [](Exchange&, Warp& warp) { warp.synced = ++machine.clock; });
}

}  // namespace emulator
