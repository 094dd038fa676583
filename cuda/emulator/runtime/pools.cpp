#include "pools.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <unordered_map>

#include "../device_memory.h"
#include "../emulator.h"
#include "../launch_lock.h"
#include "contexts.h"
#include "cuda_runtime_api.h"
#include "stream.h"

struct CUmemPoolHandle_st {
  int device;
  uint64_t threshold = 0;
  size_t used = 0, reserved = 0;
};

namespace emulator {

namespace {

struct Part {
  cudaMemPool_t pool;
  size_t bytes;
};

struct Pools {
  std::unordered_map<cudaMemPool_t, std::unique_ptr<CUmemPoolHandle_st>> pools;
  std::unordered_map<const void*, Part> parts;  // by address
};

Pools& all() {
  static Pools& pools = *new Pools;  // other threads may outlive main
  return pools;
}

bool exists(cudaMemPool_t pool) { return all().pools.count(pool) == 1; }

void shrink(CUmemPoolHandle_st& pool, size_t bytes) {
  pool.reserved = std::max(pool.used, std::min(pool.reserved, bytes));
}

}  // namespace

size_t idle_bytes() {
  const LaunchLock lock;
  size_t idle = 0;
  for (const auto& [handle, pool] : all().pools) idle += pool->reserved - pool->used;
  return idle;
}

void give_to_pool(const void* data) {
  const LaunchLock lock;
  const auto found = all().parts.find(data);
  if (found == all().parts.end()) return;
  const auto [pool, bytes] = found->second;
  if (exists(pool)) pool->used -= bytes;
  all().parts.erase(found);
}

void shrink_pools() {
  const LaunchLock lock;
  for (const auto& [handle, pool] : all().pools) shrink(*pool, pool->threshold);
}

}  // namespace emulator

using emulator::all;
using emulator::exists;
using emulator::fail;
using emulator::LaunchLock;

cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps* properties) {
  const LaunchLock lock;
  const bool fits = pool && properties && properties->allocType == cudaMemAllocationTypePinned &&
                    properties->location.type == cudaMemLocationTypeDevice;
  if (!fits) return fail(cudaErrorInvalidValue);
  auto made = std::make_unique<CUmemPoolHandle_st>(CUmemPoolHandle_st{properties->location.id});
  *pool = made.get();
  all().pools[*pool] = std::move(made);
  return cudaSuccess;
}

cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) {
  const LaunchLock lock;
  return all().pools.erase(pool) == 1 ? cudaSuccess : fail(cudaErrorInvalidValue);
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value) {
  const LaunchLock lock;
  if (!exists(pool) || attribute != cudaMemPoolAttrReleaseThreshold) return fail(cudaErrorInvalidValue);
  pool->threshold = *static_cast<uint64_t*>(value);
  return cudaSuccess;
}

cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value) {
  const LaunchLock lock;
  if (!exists(pool)) return fail(cudaErrorInvalidValue);
  uint64_t& result = *static_cast<uint64_t*>(value);
  switch (attribute) {
    case cudaMemPoolAttrReleaseThreshold: result = pool->threshold; return cudaSuccess;
    case cudaMemPoolAttrReservedMemCurrent: result = pool->reserved; return cudaSuccess;
    case cudaMemPoolAttrUsedMemCurrent: result = pool->used; return cudaSuccess;
  }
  return fail(cudaErrorInvalidValue);
}

cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t bytes) {
  const LaunchLock lock;
  if (!exists(pool)) return fail(cudaErrorInvalidValue);
  emulator::shrink(*pool, bytes);
  return cudaSuccess;
}

cudaError_t cudaMallocFromPoolAsync(void** data, size_t bytes, cudaMemPool_t pool, cudaStream_t stream) {
  const LaunchLock lock;
  if (const cudaError_t error = emulator::take_failure(stream)) return error;
  if (!data || !exists(pool) || pool->device != emulator::device_of(stream)) return fail(cudaErrorInvalidValue);
  emulator::need_context();
  // Its own idle memory is there for it; that of other pools is not.
  const size_t grown = std::max(pool->reserved, pool->used + bytes) - pool->reserved;
  const auto& memory = emulator::device_memory();
  if (memory.used() + emulator::idle_bytes() + grown > memory.capacity()) return fail(cudaErrorMemoryAllocation);
  *data = bytes == 0 ? nullptr : emulator::allocate_on(pool->device, bytes);
  if (bytes == 0) return cudaSuccess;
  if (!*data) return fail(cudaErrorMemoryAllocation);
  pool->used += bytes;
  pool->reserved += grown;
  all().parts[*data] = {pool, bytes};
  return cudaSuccess;
}
