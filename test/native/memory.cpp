#include "memory.h"

#include <cmath>

namespace flashattn::test {

double decode(const void* from, DType dtype) {
  if (dtype == DType::Float32) {
    float value;
    memcpy(&value, from, 4);
    return value;
  }
  uint16_t half;
  memcpy(&half, from, 2);
  if (dtype == DType::BFloat16) {
    const uint32_t bits = uint32_t(half) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
  }
  const int exponent = half >> 10 & 31, mantissa = half & 1023;
  const double sign = half >> 15 ? -1 : 1;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  return sign * (exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24));
}

void encode(void* to, DType dtype, float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if (dtype == DType::Float32) {
    memcpy(to, &bits, 4);
    return;
  }
  uint16_t half = static_cast<uint16_t>(bits >> 16);
  if (dtype == DType::Float16) {
    const uint32_t sign = bits >> 16 & 0x8000, exponent = bits >> 23 & 255, mantissa = bits >> 13 & 1023;
    half = static_cast<uint16_t>(value != value ? 0x7e00
                                 : value == 0   ? sign
                                                : sign | (exponent - 112) << 10 | mantissa);
  }
  memcpy(to, &half, 2);
}

}  // namespace flashattn::test
