// Where device memory comes from; folder real/ or emulated/ is compiled.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>

struct CUmemPoolHandle_st;  // what a cudaMemPool_t points to; the emulator's runtime has none

namespace flashattn {

/**
 * A memory pool that keeps what is freed: allocating again costs microseconds and never waits for the device. Devices
 * without pools get plain allocations.
 */
class MemoryPool {
 public:
  MemoryPool() = default;
  ~MemoryPool();
  MemoryPool(const MemoryPool&) = delete;
  MemoryPool& operator=(const MemoryPool&) = delete;

  cudaError_t open(int device);
  cudaError_t allocate(void** pointer, size_t bytes, cudaStream_t stream);
  cudaError_t free(void* pointer, cudaStream_t stream);
  /** Gives memory that no pool of this process has in use back to the device. */
  void trim();
  /** What the pool holds of the device, given that `in_use` bytes are allocated. */
  size_t reserved(size_t in_use) const;

 private:
  [[maybe_unused]] CUmemPoolHandle_st* pool_ = nullptr;
  [[maybe_unused]] int device_ = 0;
};

}  // namespace flashattn
