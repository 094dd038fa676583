// What the instructions of programs do with numbers: the precise functions of the C library, and random numbers
// whose bits are those of the processor (native/cpu/ops/elementwise.h).
#pragma once
#include "philox.cuh"
#include "structs/elementwise.h"
#include "vector.cuh"

namespace flashattn {

/** NaN where either is. */
FLASHATTN_DEVICE float smaller_of(float x, float y) { return x < y || x != x ? x : y; }
FLASHATTN_DEVICE float larger_of(float x, float y) { return x > y || x != x ? x : y; }

FLASHATTN_DEVICE float sign_of(float x) {
  const float sign = static_cast<float>(x > 0.0f) - static_cast<float>(x < 0.0f);
  return x != x ? x : sign;
}

/** By e^-|x|, which neither overflows nor loses what is small. */
FLASHATTN_DEVICE float sigmoid_of(float x) {
  const float power = ::expf(-::fabsf(x));
  return (x < 0.0f ? power : 1.0f) / (1.0f + power);
}

/** [0, 1) in steps of 2^-24. */
FLASHATTN_DEVICE float uniform_of(uint32_t word) { return static_cast<float>(word >> 8) * 0x1p-24f; }

/** a b + c in two roundings. */
FLASHATTN_DEVICE float unfused(float a, float b, float c) { return ptx::product(a, b) + c; }

/** Box and Muller (1958): sqrt(-2 log u) cos(2 pi v), step by step as on the processor. */
FLASHATTN_DEVICE float normal_of(uint32_t first, uint32_t second) {
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // their sum
  constexpr float kLog[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                            -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                            2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
  const float u = static_cast<float>((first >> 8) + 1) * 0x1p-24f;  // (0, 1]
  // u = m * 2^k with m from sqrt(1/2) to sqrt(2)
  const int32_t from_root = static_cast<int32_t>(ptx::bits_of(u)) - 0x3f3504f3;
  const float k = static_cast<float>(from_root >> 23);
  const float f = ptx::float_of(static_cast<uint32_t>((from_root & 0x007fffff) + 0x3f3504f3)) - 1.0f;
  const float z = ptx::product(f, f);
  float p = 0.0f;
#pragma unroll
  for (const float each : kLog) p = unfused(p, f, each);
  float log_u = ptx::product(ptx::product(p, f), z);
  log_u = unfused(k, kLn2Low, log_u);
  log_u = unfused(-0.5f, z, log_u);
  log_u += f;
  log_u = unfused(k, kLn2High, log_u);

  constexpr float kSin[] = {-1.9515295891e-4f, 8.3321608736e-3f, -1.6666654611e-1f};
  constexpr float kCos[] = {2.443315711809948e-5f, -1.388731625493765e-3f, 4.166664568298827e-2f};
  const float turns = uniform_of(second) * 4.0f, quarter = ::floorf(turns + 0.5f);
  const float x = ptx::product(turns - quarter, 1.57079637f), w = ptx::product(x, x);
  float s = 0.0f, c = 0.0f;
#pragma unroll
  for (const float each : kSin) s = unfused(s, w, each);
  s = unfused(ptx::product(s, w), x, x);
#pragma unroll
  for (const float each : kCos) c = unfused(c, w, each);
  c = unfused(-0.5f, w, ptx::product(ptx::product(c, w), w)) + 1.0f;
  const int quadrant = static_cast<int>(quarter) & 3;  // of the cosine: c, -s, -c, s
  const float value = quadrant & 1 ? s : c;
  const float cosine = quadrant == 1 || quadrant == 2 ? -value : value;
  return ptx::product(::sqrtf(ptx::product(-2.0f, log_u)), cosine);
}

struct Seed {
  uint32_t low, high;
};

FLASHATTN_DEVICE Seed seed_of(const ElementwiseParams& p) {
  const int32_t* halves = p.seed;
  if (!halves) return {p.seed_low, p.seed_high};
  const auto word = [&](int first) {
    return static_cast<uint32_t>(ptx::load_global(halves + first) | ptx::load_global(halves + first + 1) << 16);
  };
  return {word(0), word(2)};
}

/** Number `which` of the element with row-major index `index` in the result. */
FLASHATTN_DEVICE float random_of(Opcode opcode, uint64_t index, uint32_t which, Seed seed) {
  const Philox random =
      philox(static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), which, seed.low, seed.high);
  return opcode == Opcode::normal ? normal_of(random.word[0], random.word[1]) : uniform_of(random.word[0]);
}

/** What takes many instructions, of one element. */
FLASHATTN_DEVICE float rare_function(Opcode opcode, float x, float y) {
  switch (opcode) {
    case Opcode::pow: return ::powf(x, y);
    case Opcode::sin: return ::sinf(x);
    case Opcode::cos: return ::cosf(x);
    case Opcode::expm1: return ::expm1f(x);
    case Opcode::log1p: return ::log1pf(x);
    default: return ptx::normal_cdf(x);
  }
}

constexpr int operands_of(Opcode opcode) {
  if (opcode <= Opcode::equal) return 2;
  if (opcode <= Opcode::round) return 1;
  if (opcode <= Opcode::multiplyAdd) return 3;
  return opcode == Opcode::lookup ? 1 : 0;
}

namespace detail {

template <int kCount, class F>
FLASHATTN_DEVICE void map1(float (&to)[kCount], const float (&x)[kCount], F f) {
#pragma unroll
  for (int e = 0; e < kCount; ++e) to[e] = f(x[e]);
}
template <int kCount, class F>
FLASHATTN_DEVICE void map2(float (&to)[kCount], const float (&x)[kCount], const float (&y)[kCount], F f) {
#pragma unroll
  for (int e = 0; e < kCount; ++e) to[e] = f(x[e], y[e]);
}

}  // namespace detail

/** Every instruction but those of random numbers and lookups, on a few numbers at a time. */
template <int kCount>
FLASHATTN_DEVICE void run_instruction(Opcode opcode, float (&to)[kCount], float (&x)[kCount], float (&y)[kCount],
                                      const float (&z)[kCount]) {
  switch (opcode) {
    case Opcode::add: return detail::map2(to, x, y, [](float a, float b) { return a + b; });
    case Opcode::sub: return detail::map2(to, x, y, [](float a, float b) { return a - b; });
    case Opcode::mul: return detail::map2(to, x, y, [](float a, float b) { return a * b; });
    case Opcode::div: return detail::map2(to, x, y, [](float a, float b) { return a / b; });
    case Opcode::minimum: return detail::map2(to, x, y, [](float a, float b) { return smaller_of(a, b); });
    case Opcode::maximum: return detail::map2(to, x, y, [](float a, float b) { return larger_of(a, b); });
    case Opcode::less: return detail::map2(to, x, y, [](float a, float b) { return a < b ? 1.0f : 0.0f; });
    case Opcode::lessEqual: return detail::map2(to, x, y, [](float a, float b) { return a <= b ? 1.0f : 0.0f; });
    case Opcode::equal: return detail::map2(to, x, y, [](float a, float b) { return a == b ? 1.0f : 0.0f; });
    case Opcode::neg: return detail::map1(to, x, [](float a) { return -a; });
    case Opcode::abs: return detail::map1(to, x, [](float a) { return ::fabsf(a); });
    case Opcode::sign: return detail::map1(to, x, [](float a) { return sign_of(a); });
    case Opcode::sqrt: return detail::map1(to, x, [](float a) { return ::sqrtf(a); });
    case Opcode::rsqrt: return detail::map1(to, x, [](float a) { return 1.0f / ::sqrtf(a); });
    case Opcode::exp: return detail::map1(to, x, [](float a) { return ::expf(a); });
    case Opcode::log: return detail::map1(to, x, [](float a) { return ::logf(a); });
    case Opcode::tanh: return detail::map1(to, x, [](float a) { return ::tanhf(a); });
    case Opcode::sigmoid: return detail::map1(to, x, [](float a) { return sigmoid_of(a); });
    case Opcode::erf: return detail::map1(to, x, [](float a) { return ::erff(a); });
    case Opcode::floor: return detail::map1(to, x, [](float a) { return ::floorf(a); });
    case Opcode::round: return detail::map1(to, x, [](float a) { return ::rintf(a); });
    case Opcode::where:
#pragma unroll
      for (int e = 0; e < kCount; ++e) to[e] = x[e] != 0.0f ? y[e] : z[e];
      return;
    case Opcode::multiplyAdd:
#pragma unroll
      for (int e = 0; e < kCount; ++e) to[e] = ::fmaf(x[e], y[e], z[e]);
      return;
    default:
#pragma unroll 1
      for (int e = 0; e < kCount; ++e) {
        shift(to, rare_function(opcode, x[0], y[0]));
        shift(x, 0.0f);
        shift(y, 0.0f);
      }
  }
}

}  // namespace flashattn
