// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3; SC 2011), one counter a lane.
#pragma once
#include "simd/simd.h"

namespace flashattn {

struct Philox {
  UintVec word[4];
};

namespace detail {
#if !defined(__wasm__)
using WideVec = uint64_t __attribute__((vector_size(kLanes * 8)));
#endif

struct Product {
  UintVec high, low;
};

FLASHATTN_INLINE Product multiply_wide(UintVec a, uint32_t b) {
#if defined(__wasm__)
  const v128_t factor = wasm_u32x4_splat(b);
  const v128_t first = wasm_u64x2_extmul_low_u32x4((v128_t)a, factor);  // lanes 0 and 1
  const v128_t last = wasm_u64x2_extmul_high_u32x4((v128_t)a, factor);  // lanes 2 and 3
  return {(UintVec)wasm_i32x4_shuffle(first, last, 1, 3, 5, 7), (UintVec)wasm_i32x4_shuffle(first, last, 0, 2, 4, 6)};
#else
  const WideVec product = __builtin_convertvector(a, WideVec) * uint64_t(b);
  return {__builtin_convertvector(product >> 32, UintVec), __builtin_convertvector(product, UintVec)};
#endif
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
