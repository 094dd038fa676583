// The element types in plain double arithmetic, sharing nothing with the kernels that are tested against it.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>

#include "structs/types.h"

namespace flashattn::test {

inline constexpr DType kDTypes[] = {DType::Float32, DType::Float16, DType::BFloat16};
inline constexpr double kInf = std::numeric_limits<double>::infinity();
inline constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

inline const char* name_of(DType dtype) {
  return dtype == DType::Float32 ? "float32" : dtype == DType::Float16 ? "float16" : "bfloat16";
}

struct Format {
  int bytes, exponent_bits, mantissa_bits;

  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  uint32_t infinity() const { return ((1u << exponent_bits) - 1) << mantissa_bits; }
  uint32_t sign() const { return 1u << (exponent_bits + mantissa_bits); }
};

inline Format format_of(DType dtype) {
  return dtype == DType::Float32 ? Format{4, 8, 23} : dtype == DType::Float16 ? Format{2, 5, 10} : Format{2, 8, 7};
}

/** The bits of x, rounded to nearest even. */
inline uint32_t encode(DType dtype, double x) {
  const Format f = format_of(dtype);
  const uint32_t sign = std::signbit(x) ? f.sign() : 0;
  if (std::isnan(x)) return sign | f.infinity() | 1u << (f.mantissa_bits - 1);
  if (x == 0 || std::isinf(x)) return sign | (x == 0 ? 0 : f.infinity());
  int exponent;
  std::frexp(x, &exponent);
  exponent = std::max(exponent - 1, 1 - f.bias());  // of the leading bit; subnormals share the smallest
  const double steps = std::nearbyint(std::ldexp(std::fabs(x), f.mantissa_bits - exponent));
  if (exponent > f.bias()) return sign | f.infinity();
  // `steps` holds the leading bit of a normal number, which carries into the exponent.
  const uint32_t exponent_bits = static_cast<uint32_t>(exponent + f.bias() - 1) << f.mantissa_bits;
  return sign | std::min(exponent_bits + static_cast<uint32_t>(steps), f.infinity());
}

inline double decode(DType dtype, uint32_t bits) {
  const Format f = format_of(dtype);
  const uint32_t magnitude = bits & (f.sign() - 1), mantissa = magnitude & ((1u << f.mantissa_bits) - 1);
  const int exponent = static_cast<int>(magnitude >> f.mantissa_bits);
  const double sign = bits & f.sign() ? -1 : 1;
  if (magnitude >= f.infinity()) return mantissa ? kNaN : sign * kInf;
  const uint32_t steps = exponent ? mantissa | 1u << f.mantissa_bits : mantissa;
  return sign * std::ldexp(steps, std::max(exponent, 1) - f.bias() - f.mantissa_bits);
}

inline double round_to(DType dtype, double x) { return decode(dtype, encode(dtype, x)); }

/** Element `index` of an array, in bits. */
inline uint32_t read_bits(DType dtype, const uint8_t* array, int64_t index) {
  uint32_t bits = 0;
  const int bytes = format_of(dtype).bytes;
  std::memcpy(&bits, array + index * bytes, bytes);
  return bits;
}

inline void write_bits(DType dtype, uint8_t* array, int64_t index, uint32_t bits) {
  const int bytes = format_of(dtype).bytes;
  std::memcpy(array + index * bytes, &bits, bytes);
}

/** Whether `got` is `expected` rounded, after float32 arithmetic on numbers of size `scale`. */
inline bool close(DType dtype, double got, double expected, double scale = 1) {
  if (std::isnan(expected)) return std::isnan(got);
  if (std::isinf(expected)) return got == expected;
  const double half_ulp = dtype == DType::Float32 ? 0 : std::ldexp(1.0, -1 - format_of(dtype).mantissa_bits);
  return std::fabs(got - expected) <= half_ulp * std::fabs(expected) + 2e-6 * std::max(scale, 1.0);
}

/** Reproducible numbers. */
class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  double uniform(double low, double high) { return low + (high - low) * (engine_() / 4294967296.0); }
  uint32_t bits() { return engine_(); }
  int below(int end) { return static_cast<int>(engine_() % static_cast<uint32_t>(end)); }

 private:
  std::mt19937 engine_;
};

}  // namespace flashattn::test
