#include "pool.h"

#include <cstdint>
#include <map>
#include <mutex>

namespace flashattn {

namespace {

/** The devices of all pools of this process: each environment has its own, and one must not starve another. */
struct Pools {
  std::mutex mutex;
  std::map<cudaMemPool_t, int> devices;
};

Pools& pools() {
  static Pools& pools = *new Pools;  // other threads may outlive main
  return pools;
}

bool supports_pools(int device) {
  int supported = 0;
  return cudaDeviceGetAttribute(&supported, cudaDevAttrMemoryPoolsSupported, device) == cudaSuccess && supported != 0;
}

}  // namespace

MemoryPool::~MemoryPool() {
  if (pool_ == nullptr) return;
  const std::scoped_lock lock(pools().mutex);
  pools().devices.erase(pool_);
  cudaMemPoolDestroy(pool_);
}

cudaError_t MemoryPool::open(int device) {
  if (!supports_pools(device)) return cudaSuccess;
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = device;
  const cudaError_t error = cudaMemPoolCreate(&pool_, &properties);
  if (error != cudaSuccess) return error;
  device_ = device;
  {
    const std::scoped_lock lock(pools().mutex);
    pools().devices[pool_] = device;
  }
  return cudaSuccess;
}

cudaError_t MemoryPool::allocate(void** pointer, size_t bytes, cudaStream_t stream) {
  return pool_ == nullptr ? cudaMalloc(pointer, bytes) : cudaMallocFromPoolAsync(pointer, bytes, pool_, stream);
}

cudaError_t MemoryPool::free(void* pointer, cudaStream_t stream) {
  return pool_ == nullptr ? cudaFree(pointer) : cudaFreeAsync(pointer, stream);
}

void MemoryPool::keep(size_t bytes) {
  if (pool_ == nullptr || bytes == kept_) return;
  uint64_t threshold = bytes;
  if (cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &threshold) == cudaSuccess) kept_ = bytes;
}

void MemoryPool::trim() {
  const std::scoped_lock lock(pools().mutex);
  for (const auto& [pool, device] : pools().devices)
    if (device == device_) cudaMemPoolTrimTo(pool, 0);
}

size_t MemoryPool::reserved(size_t in_use) const {
  uint64_t bytes = 0;
  const bool known =
      pool_ != nullptr && cudaMemPoolGetAttribute(pool_, cudaMemPoolAttrReservedMemCurrent, &bytes) == cudaSuccess;
  return known ? bytes : in_use;
}

}  // namespace flashattn
