// Race checks of global memory within one launch: a store, or a load, that is not ordered after a store.
#pragma once
#include <string>

#include "device_memory.h"

namespace emulator {

/** A new launch, and a new block of it. */
void begin_global_memory();
void begin_block_order();

/** An access of the running thread; returns what it is not ordered after, in words, or nothing. */
std::string race_of_load(const Allocation&, const void* from, size_t bytes);
std::string race_of_store(Allocation&, const void* to, size_t bytes, Site);

/** The same, with a report. */
void note_load(const Allocation&, const void* from, size_t bytes, const char* what, Site);

}  // namespace emulator
