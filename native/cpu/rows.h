// What kernels share that handle one row of a tensor after the other.
#pragma once
#include "tile.h"

namespace flashattn {

inline constexpr int kRowsPerItem = 64;

struct alignas(kCacheLine) RowWorkspace {
  float row[3][kMaxDim];
};

inline uint8_t* bytes_of(void* data) { return static_cast<uint8_t*>(data); }
inline const uint8_t* bytes_of(const void* data) { return static_cast<const uint8_t*>(data); }

}  // namespace flashattn
