// Pinned host memory between JavaScript's arrays and the device.
#pragma once
#include <deque>
#include <vector>

#include "runtime.h"

namespace flashattn {

/**
 * A ring that writes pass through: the caller's array is free at once, the device copies when its stream gets there.
 * Small writes take little of it, so that many fit before the host has to wait for the device.
 */
class UploadRing {
 public:
  /** Queues `bytes` bytes from `source` to `target`; blocks only while the ring is full of copies under way. */
  cudaError_t upload(void* target, const unsigned char* source, size_t bytes, cudaStream_t stream);

  size_t reserved() const { return ring_.size(); }

 private:
  static constexpr size_t kRingBytes = size_t{16} << 20;
  static constexpr size_t kChunkBytes = size_t{4} << 20;
  static constexpr size_t kAlignment = 256;

  /** Part [begin, end) of the ring, in use until `copied`. */
  struct Segment {
    size_t begin, end;
    Event copied;
  };

  cudaError_t take(size_t bytes, size_t* begin);
  cudaError_t retire_oldest();

  PinnedMemory ring_;
  std::deque<Segment> pending_;  // oldest first
  std::vector<Event> idle_;
  size_t next_ = 0;
};

/** Blocks that reads pass through; freed blocks are kept for the next read. */
class DownloadBlocks {
 public:
  cudaError_t acquire(size_t bytes, PinnedMemory* block);
  void release(PinnedMemory block);
  /** Frees what is kept. */
  void clear();

  size_t reserved() const { return reserved_; }

 private:
  static constexpr size_t kSmallest = size_t{64} << 10;
  static constexpr size_t kKeptBytes = size_t{64} << 20;

  std::vector<PinnedMemory> kept_;
  size_t kept_bytes_ = 0;
  size_t reserved_ = 0;
};

}  // namespace flashattn
