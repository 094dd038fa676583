// The asynchronous copies of one thread, in the order of issue.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "calls.h"

namespace emulator {

struct AsyncCopy {
  uint32_t to;  // shared address of `size` bytes
  int size;     // 4, 8 or 16
  int bytes;    // of them from `from`, the rest zero
  const void* from;
  Site site;
};

class CopyQueue {
 public:
  void push(const AsyncCopy& copy) { copies_.push_back(copy); }
  void commit() { group_ends_.push_back(copies_.size()); }

  /** Calls `land` for the copies of the oldest groups until at most `pending` groups are left. */
  template <class Land>
  void land_groups(size_t pending, Land land) {
    while (group_ends_.size() - first_group_ > pending) {
      for (const size_t end = group_ends_[first_group_++]; first_copy_ < end; ++first_copy_) land(copies_[first_copy_]);
    }
    if (group_ends_.size() == first_group_) forget_landed();
  }

  /** Copies under way, committed or not. */
  size_t in_flight() const { return copies_.size() - first_copy_; }
  const AsyncCopy& oldest() const { return copies_[first_copy_]; }

  void clear() {
    copies_.clear();
    group_ends_.clear();
    first_copy_ = first_group_ = 0;
  }

 private:
  void forget_landed() {
    copies_.erase(copies_.begin(), copies_.begin() + static_cast<std::ptrdiff_t>(first_copy_));
    group_ends_.clear();
    first_copy_ = first_group_ = 0;
  }

  std::vector<AsyncCopy> copies_;
  std::vector<size_t> group_ends_;  // indices into copies_
  size_t first_copy_ = 0, first_group_ = 0;
};

struct Thread;

/** A thread has come to its end: nothing may be under way any more. */
void finish_copies(Thread&);

}  // namespace emulator
