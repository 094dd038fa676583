// Race checks of global memory within one launch: a store, or a load, that is not ordered after a store.
#pragma once
#include <optional>
#include <string>

#include "device_memory.h"

namespace emulator {

/** An access of the running thread; returns the store that it is not ordered after, or nothing. */
const StoreRecord* race_of_load(const Allocation&, const void* from, size_t bytes);
std::optional<StoreRecord> race_of_store(Allocation&, const void* to, size_t bytes, Site);

/** In words. */
std::string describe_race(const StoreRecord&, const void* address);

/** The same, with a report. */
void note_load(const Allocation&, const void* from, size_t bytes, const char* what, Site);

/** Atomic operations do not race with each other. False: nothing orders this one and the last. */
bool note_atomic(Allocation&, const void* to, size_t bytes, const char* what, Site);

}  // namespace emulator
