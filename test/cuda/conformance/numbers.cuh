// Conversions, functions and integer arithmetic: one word from two.
#pragma once
#include <limits>

#include "../emulator/numbers.h"
#include "device.h"

namespace flashattn::test {

inline float as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t as_bits(double x) { return std::bit_cast<uint32_t>(static_cast<float>(x)); }

/** What `cvt` makes of every NaN, in both 16-bit formats. */
inline constexpr uint32_t kNarrowNan = 0x7fff;

inline uint32_t narrow(DType dtype, float x) { return std::isnan(x) ? kNarrowNan : encode(dtype, x); }

struct PackF16 {
  static FLASHATTN_DEVICE uint32_t apply(uint32_t a, uint32_t b) {
    return ptx::pack_f16(ptx::float_of(a), ptx::float_of(b));
  }
  static uint32_t expect(uint32_t a, uint32_t b) {
    return narrow(DType::Float16, as_float(a)) | narrow(DType::Float16, as_float(b)) << 16;
  }
};
struct PackBf16 {
  static FLASHATTN_DEVICE uint32_t apply(uint32_t a, uint32_t b) {
    return ptx::pack_bf16(ptx::float_of(a), ptx::float_of(b));
  }
  static uint32_t expect(uint32_t a, uint32_t b) {
    return narrow(DType::BFloat16, as_float(a)) | narrow(DType::BFloat16, as_float(b)) << 16;
  }
};
struct FromF16 {
  static FLASHATTN_DEVICE uint32_t apply(uint32_t a, uint32_t) {
    return ptx::bits_of(ptx::from_f16(static_cast<uint16_t>(a)));
  }
  static uint32_t expect(uint32_t a, uint32_t) { return as_bits(decode(DType::Float16, a)); }
};
struct FromBf16 {
  static FLASHATTN_DEVICE uint32_t apply(uint32_t a, uint32_t) {
    return ptx::bits_of(ptx::from_bf16(static_cast<uint16_t>(a)));
  }
  static uint32_t expect(uint32_t a, uint32_t) { return a << 16; }
};
struct ToTf32 {
  static FLASHATTN_DEVICE uint32_t apply(uint32_t a, uint32_t) { return ptx::to_tf32(ptx::float_of(a)); }
  static uint32_t expect(uint32_t a, uint32_t) {
    constexpr uint32_t kMagnitude = 0x7fffffff, kInfinity = 0x7f800000;
    constexpr uint32_t kStep = 1 << 13;  // the last place of 10 bits after the point
    const uint32_t magnitude = a & kMagnitude;
    // An H200 cuts the payload of a NaN: without a high bit it is an infinity.
    if (magnitude >= kInfinity) return a / kStep * kStep;
    return (a & ~kMagnitude) | (magnitude + kStep / 2) / kStep * kStep;
  }
};
struct BitsOf {
  static FLASHATTN_DEVICE uint32_t apply(uint32_t a, uint32_t) { return ptx::bits_of(ptx::float_of(a)); }
  static uint32_t expect(uint32_t a, uint32_t) { return a; }
};
struct FloatOf {
  static FLASHATTN_DEVICE uint32_t apply(uint32_t a, uint32_t b) {
    return ptx::bits_of(ptx::float_of(a) + ptx::float_of(b));
  }
  static uint32_t expect(uint32_t a, uint32_t b) { return as_bits(double{as_float(a)} + double{as_float(b)}); }
};
struct Exp2 {
  static FLASHATTN_DEVICE uint32_t apply(uint32_t a, uint32_t) { return ptx::bits_of(ptx::exp2(ptx::float_of(a))); }
  static uint32_t expect(uint32_t a, uint32_t) {
    const double y = std::exp2(double{as_float(a)});
    return as_bits(y < double{std::numeric_limits<float>::min()} ? 0 : y);
  }
};
/** A product and a difference, each rounded: one instruction for both would round once. */
struct ScalarProduct {
  static FLASHATTN_DEVICE uint32_t apply(uint32_t a, uint32_t b) {
    const float x = ptx::float_of(a), y = ptx::float_of(b);
    return ptx::bits_of(ptx::product(x, y) - y);
  }
  static uint32_t expect(uint32_t a, uint32_t b) {
    const double product = as_float(as_bits(double{as_float(a)} * as_float(b)));
    return as_bits(product - as_float(b));
  }
};
struct Log {
  static FLASHATTN_DEVICE uint32_t apply(uint32_t a, uint32_t) { return ptx::bits_of(ptx::log(ptx::float_of(a))); }
  static uint32_t expect(uint32_t a, uint32_t) { return as_bits(std::log(double{as_float(a)})); }
};
struct Tanh {
  static FLASHATTN_DEVICE uint32_t apply(uint32_t a, uint32_t) { return ptx::bits_of(ptx::tanh(ptx::float_of(a))); }
  static uint32_t expect(uint32_t a, uint32_t) { return as_bits(std::tanh(double{as_float(a)})); }
};
struct NormalCdf {
  static FLASHATTN_DEVICE uint32_t apply(uint32_t a, uint32_t) {
    return ptx::bits_of(ptx::normal_cdf(ptx::float_of(a)));
  }
  static uint32_t expect(uint32_t a, uint32_t) { return as_bits(std::erfc(-as_float(a) / std::sqrt(2.0)) / 2); }
};
struct LowestBit {
  static FLASHATTN_DEVICE uint32_t apply(uint32_t a, uint32_t) { return static_cast<uint32_t>(ptx::lowest_bit(a)); }
  static uint32_t expect(uint32_t a, uint32_t) {
    uint32_t position = 0;
    while (!(a >> position & 1)) ++position;
    return position;
  }
};
struct Opaque {
  static FLASHATTN_DEVICE uint32_t apply(uint32_t a, uint32_t) {
    return static_cast<uint32_t>(ptx::opaque(static_cast<int>(a)));
  }
  static uint32_t expect(uint32_t a, uint32_t) { return a; }
};
struct MultiplyHigh {
  static FLASHATTN_DEVICE uint32_t apply(uint32_t a, uint32_t b) { return ptx::multiply_high(a, b); }
  static uint32_t expect(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }
};

/** Pairs (word, 0). */
template <class Source>
Words alone(const Source& words) {
  Words pairs;
  for (const uint32_t word : words) pairs.insert(pairs.end(), {word, 0});
  return pairs;
}

inline Words special_floats() {
  Words words;
  for (const uint32_t magnitude :
       {0x00000000u, 0x00000001u, 0x007fffffu, 0x00800000u, 0x00800001u, 0x33800000u, 0x3f800000u,
        0x3f800001u, 0x40490fdbu, 0x477fe000u, 0x477fefffu, 0x477ff000u, 0x47800000u, 0x7f7f7fffu,
        0x7f7f8000u, 0x7f7fffffu, 0x7f800000u, 0x7f800001u, 0x7fc00000u, 0x7fffffffu})
    words.insert(words.end(), {magnitude, magnitude | 0x80000000u});
  return words;
}

/** Every number of a 16-bit format, halfway to the next, and a float32 step to both sides of there. */
inline Words around_halves(DType dtype) {
  Words words;
  for (uint32_t narrow = 0; narrow < 0x10000; narrow += 5) {
    const double low = decode(dtype, narrow), high = decode(dtype, narrow + 1);
    if (!std::isfinite(low) || !std::isfinite(high)) continue;
    const uint32_t half = as_bits((low + high) / 2);
    words.insert(words.end(), {as_bits(low), half, half - 1, half + 1});
  }
  return words;
}

inline Words random_words(int count, uint32_t seed) {
  Random random(seed);
  Words words(count);
  for (uint32_t& word : words) word = random.bits();
  return words;
}

inline Words evenly(double from, double to, int count) {
  Words words;
  for (int i = 0; i < count; ++i) words.push_back(as_bits(from + (to - from) * i / (count - 1)));
  return words;
}

inline Words every_16_bits() {
  Words words(0x10000);
  for (uint32_t i = 0; i < words.size(); ++i) words[i] = i;
  return words;
}

inline Words one_bit_and_above() {
  Words words;
  for (int position = 0; position < 32; ++position)
    for (const uint32_t above : {0u, 0xffffffffu, 0x9e3779b9u}) words.push_back((above | 1) << position);
  return words;
}

inline Words joined(Words words, const Words& more) {
  words.insert(words.end(), more.begin(), more.end());
  if (words.size() % 2) words.push_back(0);
  return words;
}

inline void add_number_cases(Cases& cases) {
  constexpr double kUlp = 0x1p-23;
  const Tolerance two_ulp{Tolerance::Near, 0, 2 * kUlp}, three_ulp{Tolerance::Near, 0x1p-148, 3 * kUlp};
  const Tolerance six_ulp{Tolerance::Near, 0x1p-147, 6 * kUlp};
  const Words specials = special_floats(), random = random_words(4096, 1);
  cases.push_back(map_case<PackF16>("pack_f16", "ties", kSameBits, around_halves(DType::Float16)));
  cases.push_back(map_case<PackF16>("pack_f16", "any bits", kSameBits, joined(specials, random)));
  cases.push_back(map_case<PackBf16>("pack_bf16", "ties", kSameBits, around_halves(DType::BFloat16)));
  cases.push_back(map_case<PackBf16>("pack_bf16", "any bits", kSameBits, joined(specials, random)));
  cases.push_back(map_case<FromF16>("from_f16", "all", kSameFloats, alone(every_16_bits())));
  cases.push_back(map_case<FromBf16>("from_bf16", "all", kSameBits, alone(every_16_bits())));
  cases.push_back(map_case<ToTf32>("to_tf32", "any bits", kSameBits, alone(joined(specials, random))));
  cases.push_back(map_case<ToTf32>("to_tf32", "ties", kSameBits, alone(evenly(1, 1 + 64 * kUlp * 4096, 1025))));
  cases.push_back(map_case<BitsOf>("bits_of", "any bits", kSameBits, alone(joined(specials, random))));
  cases.push_back(map_case<FloatOf>("float_of", "sums", kSameFloats, joined(evenly(-4, 4, 512), evenly(0, 1e6, 512))));
  cases.push_back(map_case<Exp2>("exp2", "-160 to 140", three_ulp, alone(evenly(-160, 140, 6001))));
  cases.push_back(map_case<Exp2>("exp2", "-1 to 0", two_ulp, alone(evenly(-1, 0, 4097))));
  cases.push_back(map_case<Exp2>("exp2", "special numbers", three_ulp, alone(specials)));
  cases.push_back(map_case<Exp2>("exp2", "zero", kSameBits, alone(Words{0, 1u << 31})));
  cases.push_back(map_case<ScalarProduct>("product", "less a factor", kSameFloats,
                                          joined(evenly(0.5, 2, 512), evenly(-300, 1e6, 512))));
  cases.push_back(map_case<Log>("log", "0.5 to 2", two_ulp, alone(evenly(0.5, 2, 4097))));
  cases.push_back(map_case<Log>("log", "0 to 65536", two_ulp, alone(evenly(0, 65536, 4097))));
  cases.push_back(map_case<Log>("log", "special numbers", two_ulp, alone(specials)));
  cases.push_back(map_case<Tanh>("tanh", "-12 to 12", three_ulp, alone(evenly(-12, 12, 4097))));
  cases.push_back(map_case<Tanh>("tanh", "special numbers", three_ulp, alone(specials)));
  cases.push_back(map_case<NormalCdf>("normal_cdf", "-15 to 9", six_ulp, alone(evenly(-15, 9, 4097))));
  cases.push_back(map_case<NormalCdf>("normal_cdf", "special numbers", six_ulp, alone(specials)));
  cases.push_back(map_case<LowestBit>("lowest_bit", "", kSameBits, alone(one_bit_and_above())));
  cases.push_back(map_case<Opaque>("opaque", "", kSameBits, alone(one_bit_and_above())));
  const Words extremes = {0, 0, ~0u, ~0u, 1, ~0u, 1u << 31, 2};
  cases.push_back(map_case<MultiplyHigh>("multiply_high", "", kSameBits, joined(random, extremes)));
}

}  // namespace flashattn::test
