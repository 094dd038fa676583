// Addresses for tensors, of which memory is taken as they come into use.
#pragma once
#include <cstddef>
#include <cstdint>

namespace cpu_host {

class Arena {
 public:
  Arena() = default;
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  /** Reserves `bytes` bytes, or as many as the system lets a process have; false where that is next to nothing. */
  bool reserve(size_t bytes);
  /** Makes the bytes before `end`, an offset, usable; false where the system has no more memory. */
  bool grow(size_t end);

  /** Gives whole pages between two offsets back to the system; what they hold is lost. */
  void discard(size_t begin, size_t end);

  uint8_t* begin() const { return begin_; }
  size_t usable() const { return usable_; }
  size_t limit() const { return limit_; }

 private:
  uint8_t* begin_ = nullptr;
  size_t limit_ = 0, usable_ = 0;
};

}  // namespace cpu_host
