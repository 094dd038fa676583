// Barriers of the block and of a warp: the only instructions that order memory between threads of a block.
#include <string>

#include "bank_conflicts.h"
#include "block_order.h"
#include "machine.h"
#include "report.h"
#include "schedule.h"
#include "warp.h"

namespace emulator {

void sync_threads(Site site) {
  Block& block = *machine.current->warp->block;
  Barrier& barrier = block.barrier;
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
  block.synced = ++machine.clock;
  if (block.has_news) share_news(block);
  count_bank_conflicts(block);
  wake_all_others(block);
}

void sync_warp(Site site) {
  meet(
      "sync_warp", site, [](Exchange&, int) {},
      [](Exchange&, Warp& warp) {
        warp.synced = ++machine.clock;
        if (warp.has_news) share_news(warp);
      });
}

}  // namespace emulator
