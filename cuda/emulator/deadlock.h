#pragma once

namespace emulator {

struct Block;

/** Reports who waits for what in a block, when no thread can run. */
void report_deadlock(const Block&);

}  // namespace emulator
