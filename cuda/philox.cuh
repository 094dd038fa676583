// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3; SC 2011).
#pragma once
#include "ptx.cuh"

namespace flashattn {

struct Philox {
  uint32_t word[4];
};

FLASHATTN_DEVICE Philox philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t key_low, uint32_t key_high) {
  constexpr uint32_t kFirst = 0xd2511f53u, kSecond = 0xcd9e8d57u;
  uint32_t c3 = 0;
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = ptx::multiply_high(c0, kFirst), low0 = c0 * kFirst;
    const uint32_t high2 = ptx::multiply_high(c2, kSecond), low2 = c2 * kSecond;
    c0 = high2 ^ c1 ^ key_low;
    c2 = high0 ^ c3 ^ key_high;
    c1 = low2;
    c3 = low0;
    key_low += 0x9e3779b9u;
    key_high += 0xbb67ae85u;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace flashattn
