#include "memory.h"

namespace flashattn {

void DeviceMemory::free_all(cudaStream_t stream) {
  for (const auto& [pointer, bytes] : sizes_) release(pointer, stream);
  sizes_.clear();
  in_use_ = 0;
}

cudaError_t DeviceMemory::allocate(void** pointer, size_t bytes, cudaStream_t stream) {
  cudaError_t error = pool_.allocate(pointer, bytes, stream);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    trim(stream);
    error = pool_.allocate(pointer, bytes, stream);
  }
  if (error != cudaSuccess) {
    cudaGetLastError();
    return error;
  }
  sizes_[*pointer] = bytes;
  in_use_ += bytes;
  recent_.note(in_use_);
  pool_.keep(recent_.value());
  return cudaSuccess;
}

void DeviceMemory::before_wait() {
  recent_.step(in_use_);
  pool_.keep(recent_.value());
}

void DeviceMemory::trim(cudaStream_t stream) {
  cudaStreamSynchronize(stream);
  pool_.trim();
}

bool DeviceMemory::free(void* pointer, cudaStream_t stream) {
  const auto found = sizes_.find(pointer);
  if (found == sizes_.end()) return false;
  in_use_ -= found->second;
  sizes_.erase(found);
  release(pointer, stream);
  return true;
}

/** An error here is of an earlier launch, whose results will report it. */
void DeviceMemory::release(void* pointer, cudaStream_t stream) {
  if (pool_.free(pointer, stream) != cudaSuccess) cudaGetLastError();
}

}  // namespace flashattn
