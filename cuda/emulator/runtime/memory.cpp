// Memory as the runtime API shows it. Work is done at the call, so that the functions with a stream are the plain ones,
// after the error that may wait on the stream.
#include <cstdlib>
#include <cstring>
#include <unordered_map>

#include "../device_memory.h"
#include "../emulator.h"
#include "../launch_lock.h"
#include "contexts.h"
#include "pools.h"
#include "stream.h"

using emulator::device_memory;
using emulator::fail;
using emulator::LaunchLock;

namespace {

/** Page-locked allocations: bytes by address. */
std::unordered_map<const void*, size_t>& host_allocations() {
  static auto& allocations = *new std::unordered_map<const void*, size_t>;  // other threads may outlive main
  return allocations;
}

bool is_device(cudaMemcpyKind kind, bool destination) {
  if (kind == cudaMemcpyDeviceToDevice) return true;
  return kind == (destination ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost);
}

/** Whether a side of a copy is what `kind` says: live device memory, or memory of the host. */
bool side_fits(const void* data, size_t bytes, cudaMemcpyKind kind, bool destination) {
  const bool in_device = device_memory().contains(data);
  const bool claimed = kind == cudaMemcpyDefault ? in_device : is_device(kind, destination);
  if (claimed != in_device) return false;
  return !claimed || emulator::is_device_memory(data, bytes);
}

cudaError_t copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  if (bytes == 0) return cudaSuccess;
  if (!side_fits(to, bytes, kind, true) || !side_fits(from, bytes, kind, false)) return fail(cudaErrorInvalidValue);
  std::memmove(to, from, bytes);
  return cudaSuccess;
}

cudaError_t set(void* data, int value, size_t bytes) {
  if (bytes == 0) return cudaSuccess;
  if (!emulator::is_device_memory(data, bytes)) return fail(cudaErrorInvalidValue);
  std::memset(data, value, bytes);
  return cudaSuccess;
}

cudaError_t allocate(void** data, size_t bytes, int device) {
  if (!data) return fail(cudaErrorInvalidValue);
  emulator::need_context();
  const size_t taken = device_memory().used() + emulator::idle_bytes();
  if (bytes > device_memory().capacity() - taken) return fail(cudaErrorMemoryAllocation);
  *data = bytes == 0 ? nullptr : emulator::allocate_on(device, bytes);
  return *data || bytes == 0 ? cudaSuccess : fail(cudaErrorMemoryAllocation);
}

}  // namespace

cudaError_t cudaMalloc(void** data, size_t bytes) { return allocate(data, bytes, emulator::current_device()); }

cudaError_t cudaFree(void* data) {
  if (!data) return cudaSuccess;
  if (!emulator::release(data)) return fail(cudaErrorInvalidValue);
  emulator::give_to_pool(data);
  return cudaSuccess;
}

cudaError_t cudaMallocAsync(void** data, size_t bytes, cudaStream_t stream) {
  const cudaError_t error = emulator::take_failure(stream);
  return error == cudaSuccess ? allocate(data, bytes, emulator::device_of(stream)) : error;
}

cudaError_t cudaFreeAsync(void* data, cudaStream_t stream) {
  const int device = emulator::device_of(stream);
  if (device < 0) return fail(cudaErrorInvalidResourceHandle);
  if (const cudaError_t error = emulator::refuse_capture(stream)) return error;
  if (data && emulator::device_of_memory(data, 1) != device) return fail(cudaErrorInvalidValue);
  return cudaFree(data);
}

cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned int) {
  if (!data) return fail(cudaErrorInvalidValue);
  constexpr size_t kPage = 4096;
  *data = bytes == 0 ? nullptr : std::aligned_alloc(kPage, (bytes + kPage - 1) / kPage * kPage);
  if (bytes == 0) return cudaSuccess;
  if (!*data) return fail(cudaErrorMemoryAllocation);
  emulator::need_context();
  const LaunchLock lock;
  host_allocations()[*data] = bytes;
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** data, size_t bytes) { return cudaHostAlloc(data, bytes, cudaHostAllocDefault); }

cudaError_t cudaFreeHost(void* data) {
  if (!data) return cudaSuccess;
  const LaunchLock lock;
  if (host_allocations().erase(data) == 0) return fail(cudaErrorInvalidValue);
  std::free(data);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  const LaunchLock lock;
  const cudaError_t error = emulator::take_failure(stream);
  return error == cudaSuccess ? copy(to, from, bytes, kind) : error;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}

cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t stream) {
  const LaunchLock lock;
  const cudaError_t error = emulator::take_failure(stream);
  return error == cudaSuccess ? set(data, value, bytes) : error;
}

cudaError_t cudaMemset(void* data, int value, size_t bytes) { return cudaMemsetAsync(data, value, bytes, nullptr); }

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* data) {
  const LaunchLock lock;
  if (!attributes) return fail(cudaErrorInvalidValue);
  void* address = const_cast<void*>(data);
  *attributes = {cudaMemoryTypeUnregistered, -1, nullptr, nullptr};
  const int device = emulator::device_of_memory(data, 1);
  if (device >= 0) *attributes = {cudaMemoryTypeDevice, device, address, nullptr};
  for (const auto& [start, bytes] : host_allocations()) {
    const char *p = static_cast<const char*>(data), *begin = static_cast<const char*>(start);
    if (p >= begin && p < begin + bytes) *attributes = {cudaMemoryTypeHost, 0, address, address};
  }
  return cudaSuccess;
}
