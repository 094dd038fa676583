#include "../pool.h"

#include <cstdint>

namespace flashattn {

namespace {

bool supports_pools(int device) {
  int supported = 0;
  return cudaDeviceGetAttribute(&supported, cudaDevAttrMemoryPoolsSupported, device) == cudaSuccess && supported != 0;
}

}  // namespace

MemoryPool::~MemoryPool() {
  if (pool_ != nullptr) cudaMemPoolDestroy(pool_);
}

cudaError_t MemoryPool::open(int device) {
  if (!supports_pools(device)) return cudaSuccess;
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = device;
  const cudaError_t error = cudaMemPoolCreate(&pool_, &properties);
  if (error != cudaSuccess) return error;
  uint64_t keep = UINT64_MAX;
  return cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &keep);
}

cudaError_t MemoryPool::allocate(void** pointer, size_t bytes, cudaStream_t stream) {
  return pool_ == nullptr ? cudaMalloc(pointer, bytes) : cudaMallocFromPoolAsync(pointer, bytes, pool_, stream);
}

cudaError_t MemoryPool::free(void* pointer, cudaStream_t stream) {
  return pool_ == nullptr ? cudaFree(pointer) : cudaFreeAsync(pointer, stream);
}

void MemoryPool::trim() {
  if (pool_ != nullptr) cudaMemPoolTrimTo(pool_, 0);
}

size_t MemoryPool::reserved(size_t in_use) const {
  uint64_t bytes = 0;
  const bool known =
      pool_ != nullptr && cudaMemPoolGetAttribute(pool_, cudaMemPoolAttrReservedMemCurrent, &bytes) == cudaSuccess;
  return known ? bytes : in_use;
}

}  // namespace flashattn
