// Where device memory comes from.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>

namespace flashattn {

/**
 * A memory pool that keeps what is freed: allocating again costs microseconds and never waits for the device. How much it
 * keeps is said by `keep`. Devices without pools get plain allocations.
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
  /** Whenever the device is waited for, unused memory beyond what makes `bytes` bytes in all is given back to it. */
  void keep(size_t bytes);
  /** Gives memory that no pool of this process has in use back to the device. */
  void trim();
  /** What the pool holds of the device, given that `in_use` bytes are allocated. */
  size_t reserved(size_t in_use) const;

 private:
  cudaMemPool_t pool_ = nullptr;
  int device_ = 0;
  size_t kept_ = 0;
};

}  // namespace flashattn
