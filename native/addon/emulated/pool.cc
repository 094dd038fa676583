#include "../pool.h"

namespace flashattn {

MemoryPool::~MemoryPool() = default;

cudaError_t MemoryPool::open(int) { return cudaSuccess; }

cudaError_t MemoryPool::allocate(void** pointer, size_t bytes, cudaStream_t stream) {
  return cudaMallocAsync(pointer, bytes, stream);
}

cudaError_t MemoryPool::free(void* pointer, cudaStream_t stream) { return cudaFreeAsync(pointer, stream); }

void MemoryPool::trim() {}

size_t MemoryPool::reserved(size_t in_use) const { return in_use; }

}  // namespace flashattn
