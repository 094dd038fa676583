// The shared memory of a block, and a shadow that knows who accessed each piece of it last.
#pragma once
#include <cstdint>

#include "machine.h"

namespace emulator {

/** Makes `bytes` of shared memory for a block, with unspecified contents. */
void begin_shared_memory(Block&, int bytes);

/** Whether an access is within shared memory and aligned to its size; reports why not. */
bool check_shared(const Thread&, uint32_t address, int bytes, const char* what, Site);

/** The bytes behind a checked address. */
uint8_t* shared_bytes(const Thread&, uint32_t address);
/** Whether a host address lies in the arena that stands for shared memory. */
bool in_shared_arena(const void* p);

// Race checks of accesses that lie within bounds.
void note_shared_read(const Thread&, uint32_t address, int bytes, const char* what, Site);
void note_shared_write(const Thread&, uint32_t address, int bytes, const char* what, Site);

/** An async copy of 16 bytes has been issued, or has been waited for. */
void note_copy_issued(const Thread&, uint32_t address, int bytes, Site);
void note_copy_landed(const Thread&, uint32_t address, int bytes);

}  // namespace emulator
