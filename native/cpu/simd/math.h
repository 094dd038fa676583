// Elementary functions on vectors, to float32 accuracy. NaN in gives NaN out.
#pragma once
#include "simd/simd.h"

namespace flashattn {

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr double kLn2 = 0.6931471805599453;
inline constexpr float kInfinity = __builtin_inff();
inline constexpr float kLargest = 0x1.fffffep127f;

namespace detail {

/**
 * 2^(x * base) for x * base <= 127, exact where that is an integer; exactly 0 where it is less than -80 (including
 * -Infinity). WebAssembly cannot flush denormals to zero, and a denormal probability makes every product that follows
 * slow.
 */
FLASHATTN_INLINE Vec power_of_two(Vec x, float base) {
  constexpr float kUnderflow = -80.0f;
  constexpr float kRoundToInteger = 12582912.0f;  // 1.5 * 2^23: adding it leaves the integer in the low mantissa bits
  const Vec shifted = multiply_add(x, splat(base), splat(kRoundToInteger));
  const Vec integer = shifted - splat(kRoundToInteger);
  const Vec f = multiply_add(x, splat(base), -integer);  // in [-1/2, 1/2]; anything where the result is 0
  // The polynomial of least relative error among those that are 1 at 0.
  Vec p = splat(1.326472731e-3f);
  p = multiply_add(p, f, splat(9.671512991e-3f));
  p = multiply_add(p, f, splat(5.550733581e-2f));
  p = multiply_add(p, f, splat(2.402224243e-1f));
  p = multiply_add(p, f, splat(6.931470037e-1f));
  p = multiply_add(p, f, splat(1.0f));
  const Vec power = (Vec)(((UintVec)shifted << 23) + 0x3f800000u);  // wraps where the result is 0
  const IntVec underflows = x < splat(kUnderflow / base);
  return (Vec)((IntVec)(p * power) & ~underflows);
}

}  // namespace detail

/** 2^x */
FLASHATTN_INLINE Vec exp2(Vec x) { return detail::power_of_two(x, 1); }

/** e^x, exactly 1 for x = 0. A product that overflows is an exponential that vanishes. */
FLASHATTN_INLINE Vec natural_exp(Vec x) { return detail::power_of_two(x, kLog2E); }

/** tanh(x): an odd polynomial where exp would cancel, 1 - 2 / (e^(2|x|) + 1) elsewhere. */
FLASHATTN_INLINE Vec tanh(Vec x) {
  const UintVec sign = (UintVec)x & 0x80000000u;
  const Vec magnitude = (Vec)((UintVec)x & 0x7fffffffu);
  const Vec z = x * x;
  Vec p = splat(-5.70498872745e-3f);
  p = multiply_add(p, z, splat(2.06390887954e-2f));
  p = multiply_add(p, z, splat(-5.37397155531e-2f));
  p = multiply_add(p, z, splat(1.33314422036e-1f));
  p = multiply_add(p, z, splat(-3.33332819422e-1f));
  const Vec small = multiply_add(p * z, x, x);
  const Vec bounded = select(magnitude > splat(20.0f), splat(20.0f), magnitude);
  const Vec large = splat(1.0f) - splat(2.0f) / (exp2(bounded * splat(2 * kLog2E)) + splat(1.0f));
  const Vec signed_large = (Vec)((UintVec)large | sign);
  return select(x == x, select(magnitude < splat(0.625f), small, signed_large), x);
}

/** Natural logarithm of a positive normal float, in double: one call a row, so clarity over speed. */
inline double ln(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  int exponent = static_cast<int>(bits >> 23) - 127;
  bits = (bits & 0x007fffffu) | 0x3f800000u;
  float mantissa;
  __builtin_memcpy(&mantissa, &bits, 4);
  double m = mantissa;
  if (m > 1.4142135623730951) {
    m *= 0.5;
    exponent += 1;
  }
  // ln m = 2 artanh((m - 1) / (m + 1)), |argument| <= 0.172
  const double s = (m - 1) / (m + 1), s2 = s * s;
  double series = 0;
  for (int k = 17; k >= 1; k -= 2) series = series * s2 + 1.0 / k;
  return exponent * kLn2 + 2 * s * series;
}

}  // namespace flashattn
