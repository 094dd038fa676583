// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3; SC 2011), one counter a lane.
#pragma once
#include "simd.h"

namespace flashattn {

struct Philox {
  UintVec word[4];
};

namespace detail {
using WideVec = uint64_t __attribute__((vector_size(kLanes * 8)));

struct Product {
  UintVec high, low;
};

FLASHATTN_INLINE Product multiply_wide(UintVec a, uint32_t b) {
  const WideVec product = __builtin_convertvector(a, WideVec) * uint64_t(b);
  return {__builtin_convertvector(product >> 32, UintVec), __builtin_convertvector(product, UintVec)};
}
}  // namespace detail

inline Philox philox(UintVec c0, UintVec c1, UintVec c2, UintVec c3, uint32_t key_low, uint32_t key_high) {
  for (int round = 0; round < 10; ++round) {
    const detail::Product a = detail::multiply_wide(c0, 0xd2511f53u), b = detail::multiply_wide(c2, 0xcd9e8d57u);
    c0 = b.high ^ c1 ^ key_low;
    c2 = a.high ^ c3 ^ key_high;
    c1 = b.low;
    c3 = a.low;
    key_low += 0x9e3779b9u;
    key_high += 0xbb67ae85u;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace flashattn
