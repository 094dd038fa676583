// Who accessed a piece of memory last, and when: the words of the shadow memories.
#pragma once
#include <cstdint>

#include "machine.h"

namespace emulator {

/** A clock and one thread, or several threads of one warp, or threads of several warps. Zero: nobody yet. */
class Stamp {
 public:
  constexpr Stamp() = default;
  constexpr explicit Stamp(uint64_t word) : word_(word) {}
  static Stamp of(const Thread& thread, uint64_t flags = 0) {
    return Stamp(machine.clock << kWhoBits | thread.who | flags);
  }
  static uint64_t who(int place, int thread) {
    return static_cast<uint64_t>(place) << kPlaceShift | static_cast<uint64_t>(thread);
  }

  static constexpr uint64_t kSeveralLanes = 1 << 10;  // of the warp that the thread belongs to
  static constexpr uint64_t kSeveralWarps = 1 << 11;
  static constexpr uint64_t kAtomic = 1 << 12;
  static constexpr uint64_t kInFlight = 1 << 13;  // an async copy that has not been waited for

  uint64_t word() const { return word_; }
  uint64_t clock() const { return word_ >> kWhoBits; }
  int thread() const { return static_cast<int>(word_ & kThread); }
  int place() const { return static_cast<int>(word_ >> kPlaceShift & (kPlaces - 1)); }
  int warp() const { return thread() / kWarpSize; }
  bool has(uint64_t flag) const { return word_ & flag; }

  bool before(uint64_t clock) const { return word_ < clock << kWhoBits; }
  /** Of an access within its block: whether `thread` is known to come after it. */
  bool ordered_before(const Thread& thread) const {
    if (before(thread.warp->block->synced)) return true;
    if (has(kSeveralWarps)) return false;
    if (this->thread() == thread.index && !has(kSeveralLanes)) return true;
    return warp() == thread.warp->index && before(thread.warp->synced);
  }

 private:
  static constexpr int kWhoBits = 16, kPlaceShift = 14;
  static_assert(kPlaces <= 1 << (kWhoBits - kPlaceShift) && (kPlaces & (kPlaces - 1)) == 0);
  static constexpr uint64_t kThread = (1 << 10) - 1;

  uint64_t word_ = 0;
};

}  // namespace emulator
