// Device memory of one context.
#pragma once
#include <unordered_map>

#include "pool.h"

namespace flashattn {

/** Allocations in the order of a stream. */
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  cudaError_t open(int device) { return pool_.open(device); }

  /** When nothing is left it waits for `stream`, gives what pools keep unused back and tries once more. */
  cudaError_t allocate(void** pointer, size_t bytes, cudaStream_t stream);
  /** Once `stream` gets there. False for a pointer that `allocate` did not return. */
  bool free(void* pointer, cudaStream_t stream);
  /** What is left, before the object goes. Nothing may run on it any more. */
  void free_all(cudaStream_t stream);

  size_t in_use() const { return in_use_; }
  /** What is kept of the device, in use or not. */
  size_t reserved() const { return pool_.reserved(in_use_); }

 private:
  void release(void* pointer, cudaStream_t stream);

  MemoryPool pool_;
  std::unordered_map<void*, size_t> sizes_;
  size_t in_use_ = 0;
};

}  // namespace flashattn
