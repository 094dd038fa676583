#pragma once

namespace emulator {

/** Reports who waits for what, when no thread of the block can run. */
void report_deadlock();

}  // namespace emulator
