// Shared memory has 32 banks of 4 bytes: lanes of a warp that want different words of one bank are served one after
// the other. Accesses of several lanes belong together if they are the same lane-wise instruction of the kernel.
#pragma once
#include "machine.h"

namespace emulator {

/** Keeps an access of the running thread until its warp has made all of them. */
void note_bank_access(Thread&, uint32_t address, int bytes, Site);

/** Counts what has been kept, of one warp or of all. */
void count_bank_conflicts(Warp&);
void count_bank_conflicts(Block&);

void count_ldmatrix_conflicts(const uint32_t (&rows)[kWarpSize], Site);

}  // namespace emulator
