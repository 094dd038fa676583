// Which device a host thread works with, and which devices have a primary context.
#pragma once

namespace emulator {

/** The current device of this host thread. Does not make a context. */
int current_device();
void set_current_device(int device);

/** Makes the primary context of the current device, as every call does that needs one: some 500 MiB on a real device. */
void need_context();
bool has_context(int device);

}  // namespace emulator
