// Device memory of one context.
#pragma once
#include <algorithm>
#include <unordered_map>
#include <utility>

#include "pool.h"

namespace flashattn {

/** The most of something lately: within the last one to two spans of so many waits for the device. */
class RecentPeak {
 public:
  void note(size_t now) { current_ = std::max(current_, now); }
  /** Another wait: what has not been there for long is forgotten. */
  void step(size_t now) {
    if (++waits_ % kSpan != 0) return;
    before_ = std::exchange(current_, now);
  }
  size_t value() const { return std::max(before_, current_); }

 private:
  static constexpr unsigned kSpan = 64;  // enough for the steps of a loop that looks at its loss now and then
  size_t before_ = 0, current_ = 0;
  unsigned waits_ = 0;
};

/**
 * Allocations in the order of a stream. Freed memory is kept for what comes, as much as was in use at once lately: a
 * program that needed much once does not hold it for ever.
 */
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
  /** Before every wait for the device. */
  void before_wait();
  /** Gives back what is not in use, once `stream` has come to its end. */
  void trim(cudaStream_t stream);
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
  RecentPeak recent_;
};

}  // namespace flashattn
