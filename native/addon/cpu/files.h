// Files that JavaScript reads as memory.
#pragma once
#include <napi.h>

namespace cpu_host {

/**
 * (file descriptor, bytes) -> an ArrayBuffer of the first bytes of the file, which must not be written; undefined where the
 * system or Node refuses it, or the file is shorter. The memory is given back when nobody holds the buffer any more.
 */
Napi::Value map_file(const Napi::CallbackInfo&);

/** (ArrayBuffer of map_file): takes its memory from it, so that its length is 0, and gives it back soon. */
void unmap_file(const Napi::CallbackInfo&);

}  // namespace cpu_host
