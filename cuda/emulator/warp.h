// Collective instructions: every lane of a warp hands in its part, the last one computes, all take their results.
#pragma once
#include <bit>

#include "bank_conflicts.h"
#include "machine.h"
#include "schedule.h"

namespace emulator {

bool same_place(const Site&, const Site&);
void report_divergence(const Exchange&, const char* what, Site);

/** Whether two places are the same record of the compiler: the quick answer to same_place. */
inline bool identical(Site a, Site b) { return std::bit_cast<const void*>(a) == std::bit_cast<const void*>(b); }

/**
 * One collective instruction, as called by one lane: `hand_in(exchange, lane)` leaves the lane's part, and
 * `complete(exchange, warp)` is called once, by the last lane. What it left in the exchange stays until this lane hands
 * in its part of the next instruction but one.
 */
template <class HandIn, class Complete>
Exchange& meet(const char* what, Site site, HandIn hand_in, Complete complete) {
  Thread& self = *machine.current;
  Warp& warp = *self.warp;
  Exchange& exchange = warp.exchanges[warp.turn];
  if (exchange.arrived == 0) {
    exchange.what = what;
    exchange.site = site;
  } else if (exchange.what != what || !identical(exchange.site, site)) {
    report_divergence(exchange, what, site);
  }
  hand_in(exchange, self.lane);
  if (++exchange.arrived < kWarpSize) {
    wait_in(what, site);
    return exchange;
  }
  exchange.arrived = 0;
  warp.turn ^= 1;
  ++machine.statistics.collectives;
  if (warp.has_accesses) count_bank_conflicts(warp);
  complete(exchange, warp);
  wake_others(warp);
  return exchange;
}

}  // namespace emulator
