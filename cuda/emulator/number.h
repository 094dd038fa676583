// The number formats of tensor cores, bit by bit.
#pragma once
#include <bit>
#include <cstdint>

namespace emulator {

namespace detail {
inline constexpr uint32_t kMagnitude = 0x7fffffff, kInfinity = 0x7f800000;
inline constexpr uint16_t kCanonicalNan = 0x7fff;  // what cvt makes of every NaN, in both 16-bit formats
}  // namespace detail

/** Rounded to nearest even. */
inline uint16_t to_f16(float x) {
  constexpr uint32_t kBeyond = 0x47800000;  // 2^16
  constexpr uint32_t kNormal = 0x38800000;  // 2^-14
  constexpr uint32_t kBias = 0x38000000;    // (127 - 15) << 23
  const uint32_t bits = std::bit_cast<uint32_t>(x), magnitude = bits & detail::kMagnitude;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  if (magnitude > detail::kInfinity) return detail::kCanonicalNan;
  if (magnitude >= kBeyond) return sign | 0x7c00;
  if (magnitude < kNormal) {
    // The unit of 0.5f is 2^-24, that of the subnormal numbers: the addition rounds as wanted.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(0.5f)));
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | (rounded - kBias) >> 13);
}

inline float from_f16(uint16_t bits) {
  constexpr float kScale = 0x1p112f;  // moves an exponent biased by 15 to one biased by 127, subnormal numbers included
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
  const uint32_t scaled = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude << 13) * kScale);
  return std::bit_cast<float>(sign | (magnitude >= 0x7c00 ? magnitude << 13 | detail::kInfinity : scaled));
}

/** Rounded to nearest even. */
inline uint16_t to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & detail::kMagnitude) > detail::kInfinity) return detail::kCanonicalNan;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float from_bf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

/** What the tensor cores see of a 32-bit register that holds a tf32 number. */
inline uint32_t truncate_tf32(uint32_t bits) { return bits & ~0x1fffu; }

/** Rounded to nearest, ties away from zero. The payload of a NaN is cut, which may leave an infinity, as on an H200. */
inline uint32_t to_tf32(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return truncate_tf32((bits & detail::kMagnitude) >= detail::kInfinity ? bits : bits + 0x1000);
}

}  // namespace emulator
