// Which thread runs: a thread runs until it has to wait, and then hands over to one that can run, of any block.
#pragma once
#include "machine.h"

namespace emulator {

/** The running thread waits in `what` until somebody wakes it. */
void wait_in(const char* what, Site);

/** The running thread has done something that threads of other blocks may see. */
void speak_to_blocks();
/** The running thread waits until a flag has a value. */
void wait_for_flag(const int32_t* flag, int32_t value, Site);
/** Threads whose flags have their values by now can run again; whether there are any. */
bool wake_signalled();

/** Every other lane of a warp can run again. */
void wake_others(Warp&);
/** Every other thread of the block can run again. */
void wake_all_others(Block&);

void begin_schedule();

/** The number of the block that begins as the n-th of `count`: nothing says in what order a device begins them. */
uint64_t block_in_order(uint64_t n, uint64_t count);

void start_threads(Block&);

/** Runs threads until a block has ended or no thread can run. False: none could. */
bool run_threads();

}  // namespace emulator
