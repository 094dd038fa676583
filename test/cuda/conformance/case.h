// What a case of the conformance test is, and how its words are compared. A case runs wrappers of ptx.cuh on the device
// and gives 32-bit words; `expected` gives the same words from plain C++.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

namespace flashattn::test {

using Words = std::vector<uint32_t>;

/** How far a word may be from another. */
struct Tolerance {
  enum Kind {
    Bits,    // the same word
    Floats,  // the same word, or a NaN for a NaN
    Near,    // float32 within `absolute + relative * |expected|`
  } kind = Bits;
  double absolute = 0, relative = 0;
};

inline constexpr Tolerance kSameBits{Tolerance::Bits, 0, 0};
inline constexpr Tolerance kSameFloats{Tolerance::Floats, 0, 0};

struct Case {
  std::string function;  // of ptx.cuh
  std::string aspect;    // which of its cases; what it shows
  Tolerance tolerance;
  std::function<Words()> on_device, expected;

  std::string name() const { return aspect.empty() ? function : function + ", " + aspect; }
};

using Cases = std::vector<Case>;

inline bool agree(const Tolerance& tolerance, uint32_t got, uint32_t expected) {
  if (got == expected) return true;
  if (tolerance.kind == Tolerance::Bits) return false;
  const double a = std::bit_cast<float>(got), b = std::bit_cast<float>(expected);
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  if (tolerance.kind == Tolerance::Floats || std::isinf(a) || std::isinf(b)) return false;
  return std::fabs(a - b) <= tolerance.absolute + tolerance.relative * std::fabs(b);
}

/** Empty where `got` is what was expected, else the first difference. */
inline std::string difference(const Tolerance& tolerance, const Words& got, const Words& expected) {
  if (got.size() != expected.size())
    return std::to_string(got.size()) + " words instead of " + std::to_string(expected.size());
  size_t count = 0, first = 0;
  for (size_t i = got.size(); i-- > 0;)
    if (!agree(tolerance, got[i], expected[i])) ++count, first = i;
  if (count == 0) return "";
  char text[160];
  const double got_number = std::bit_cast<float>(got[first]), expected_number = std::bit_cast<float>(expected[first]);
  std::snprintf(text, sizeof text, "%zu of %zu words differ, the first at %zu: %08x (%.9g) instead of %08x (%.9g)",
                count, got.size(), first, got[first], got_number, expected[first], expected_number);
  return text;
}

}  // namespace flashattn::test
