// Memory that ends where its last element does, so that the address sanitizer sees every element too far.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <memory>

#include "simd/element.h"

namespace flashattn::test {

/** Small numbers that float16 and bfloat16 hold exactly; the same from the same seed everywhere. */
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}

  uint64_t bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  /** From `least` to `most`. */
  int integer(int least, int most) { return least + static_cast<int>(bits() % uint64_t(most - least + 1)); }
  bool chance(int percent) { return integer(1, 100) <= percent; }
  float number() { return static_cast<float>(integer(-96, 96)) / 64; }

 private:
  uint64_t state_;
};

template <class T>
class Array {
 public:
  Array() = default;
  explicit Array(size_t count) : data_(new T[count]), count_(count) {
    if (count) memset(static_cast<void*>(data_.get()), 0xa5, count * sizeof(T));
  }

  T* data() const { return data_.get(); }
  size_t size() const { return count_; }
  T& operator[](size_t at) const { return data_[at]; }

 private:
  std::unique_ptr<T[]> data_;
  size_t count_ = 0;
};

inline Array<float> random_array(size_t count, Random& random) {
  Array<float> array(count);
  for (size_t at = 0; at < count; ++at) array[at] = random.number();
  return array;
}

/** A workspace full of NaN: an element that is read before it was written shows in the result. */
template <class Workspace>
std::unique_ptr<Workspace> poisoned_workspace() {
  std::unique_ptr<Workspace> workspace(new Workspace);
  memset(static_cast<void*>(workspace.get()), 0xff, sizeof(Workspace));
  return workspace;
}

/** An element as double. */
double decode(const void* from, DType dtype);
/** Stores a NaN or a number that the dtype holds exactly. */
void encode(void* to, DType dtype, float value);

/** What rounding to the dtype may change, relative to the value. */
inline double rounding(DType dtype) { return dtype == DType::Float32 ? 0 : dtype == DType::Float16 ? 0x1p-11 : 0x1p-8; }

}  // namespace flashattn::test
