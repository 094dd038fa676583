// What kernels share that handle one row of a tensor after the other.
#pragma once
#include "simd/element.h"

namespace flashattn {

// A vector that straddles two cache lines is read twice: arrays of a workspace have whole lines and stand before anything
// smaller.
inline constexpr size_t kCacheLine = 64;

inline constexpr int kRowsPerItem = 64;
inline constexpr int kRowElements = 256;  // of a row that are handled at a time

struct alignas(kCacheLine) RowWorkspace {
  float row[3][kRowElements];
};

inline void fill(float* to, float value, int n) {
  for (int i = 0; i < n; i += kLanes) store(to + i, splat(value));
}

inline uint8_t* bytes_of(void* data) { return static_cast<uint8_t*>(data); }
inline const uint8_t* bytes_of(const void* data) { return static_cast<const uint8_t*>(data); }

}  // namespace flashattn
