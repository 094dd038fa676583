// Which thread runs: a thread runs until it has to wait, and then hands over to one that can run.
#pragma once
#include "machine.h"

namespace emulator {

/** The running thread waits in `what` until somebody wakes it. */
void wait_in(const char* what, Site);

/** Every other lane of a warp can run again. */
void wake_others(Warp&);
/** Every other thread of the block can run again. */
void wake_all_others();

/** Runs the block that `machine` describes to its end or its deadlock. */
void run_threads();

}  // namespace emulator
