// What orders the blocks of a launch: `signal` to `wait_for`, and a fence before `fetch_add` to a fence after another.
#pragma once
#include "machine.h"
#include "stamp.h"

namespace emulator {

void begin_launch_order();
void begin_block_order(const Block&);

/** Which block, of those that have run in its place, made an access of this launch. */
uint64_t block_of(Stamp);

/** Whether an access of this launch is known to come before one that the thread makes now. */
bool ordered_before(Stamp, const Thread&);

/** After a barrier everybody knows what one of them does. */
void share_news(Warp&);
void share_news(Block&);

}  // namespace emulator
