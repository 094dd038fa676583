// Launches of one thread per item, without shared memory: a thread's place in the grid is the index of its item.
#pragma once
#include "launch_error.h"
#include "ptx.cuh"

namespace flashattn {

inline constexpr int kFlatThreads = 256;

FLASHATTN_DEVICE int64_t flat_thread() { return static_cast<int64_t>(ptx::block().x) * kFlatThreads + ptx::thread(); }

/** At least `threads` threads; the last block has some that find no item. */
template <class Params>
cudaError_t launch_flat(const char* name, void (*kernel)(Params), int64_t threads, cudaStream_t stream,
                        const Params& params) {
  if (threads == 0) return cudaSuccess;
  const dim3 grid(static_cast<uint32_t>((threads + kFlatThreads - 1) / kFlatThreads));
  return launched(name, ptx::launch(kernel, name, grid, kFlatThreads, 0, stream, params));
}

inline bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

}  // namespace flashattn
