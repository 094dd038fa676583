// What device.h's wrappers call: one function per instruction, each of them a place where the emulator can check,
// count, and switch to another thread.
#pragma once
#include <cstddef>
#include <cstdint>
#include <source_location>

#include "runtime/cuda_runtime_api.h"

namespace emulator {

/** Where in a kernel an instruction was asked for: one pointer to what the compiler recorded. */
using Site = std::source_location;

/** Offsets into shared memory start here, so that 0 is never valid; aligned as `shared_base` promises. */
inline constexpr uint32_t kSharedBase = 1024;

template <class T>
inline constexpr bool kAccessible = sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16;

enum class Format { F16, BF16, TF32, S8 };

int thread_index();
dim3 block_index();
dim3 grid_size();

void sync_threads(Site);
void sync_warp(Site);
void wait_for(const int32_t* flag, int32_t value, Site);
void signal(int32_t* flag, int32_t value, Site);
int32_t fetch_add(int32_t* counter, int32_t value, Site);
void fence();

void copy_async(uint32_t to, const void* from, int bytes, int size, Site);
void commit_copies();
void wait_copies(int pending);

void load_shared(uint32_t from, void* value, int bytes, Site);
void store_shared(uint32_t to, const void* value, int bytes, Site);
void load_global(const void* from, void* value, size_t bytes, size_t alignment, Site);
void store_global(void* to, const void* value, size_t bytes, size_t alignment, Site);
void add_global(float* to, float value, Site);

void ldmatrix(uint32_t (&r)[4], uint32_t row, bool transpose, Site);
void mma(Format, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site);
uint32_t shuffle_xor(uint32_t value, int mask, Site);
uint32_t shuffle(uint32_t value, int lane, Site);
uint32_t ballot(bool predicate, Site);

/** A kernel with its parameters, ready to be called by every thread of a grid. */
struct Launch {
  void (*run)(const void* call);
  const void* call;
  size_t call_bytes;  // that a copy of `call` has
  const char* name;
  dim3 grid;
  int threads, shared_bytes;
  cudaStream_t stream;
};
cudaError_t launch(const Launch&);

}  // namespace emulator
