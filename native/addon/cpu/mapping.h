// A file as memory.
#pragma once
#include <cstddef>
#include <cstdint>

namespace cpu_host {

/** Bytes of an open file, for reading alone; given back when it goes. The file may be closed before. */
class Mapping {
 public:
  Mapping() = default;
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  /** Maps the first `bytes` > 0 bytes; false where the system refuses, or the file is shorter. */
  bool open(int file, uint64_t bytes);

  void* begin() const { return begin_; }
  size_t bytes() const { return bytes_; }

 private:
  void* begin_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace cpu_host
