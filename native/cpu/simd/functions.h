// Elementary functions over the whole range of float32: Infinity, zeros, subnormal numbers and NaN as IEEE 754 and C have
// them. What attention needs of them, faster and within its range, stands in math.h.
#pragma once
#include "simd/math.h"

namespace flashattn {

namespace detail {

using Doubles = double __attribute__((vector_size(kLanes * 8)));

FLASHATTN_INLINE Doubles widen(Vec x) { return __builtin_convertvector(x, Doubles); }
FLASHATTN_INLINE Vec narrow(Doubles x) { return __builtin_convertvector(x, Vec); }

FLASHATTN_INLINE IntVec is_nan(Vec x) { return x != x; }

/** 2^k for whole k from -126 to 127. */
FLASHATTN_INLINE Vec whole_power(IntVec k) { return (Vec)((k + 127) << 23); }

/** x * 2^k for k from -252 to 254, rounded once where it becomes subnormal. */
FLASHATTN_INLINE Vec scale(Vec x, IntVec k) {
  const IntVec half = k >> 1;
  return x * whole_power(half) * whole_power(k - half);
}

FLASHATTN_INLINE Vec clamp(Vec x, float least, float most) {
  x = select(x < splat(least), splat(least), x);
  return select(x > splat(most), splat(most), x);
}

/** The nearest whole number of |x| < 2^22, as a float and as an int. */
struct Nearest {
  Vec value;
  IntVec whole;

  explicit Nearest(Vec x) {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the integer in the low mantissa bits
    const Vec shifted = x + splat(kRound);
    value = shifted - splat(kRound);
    whole = (IntVec)shifted - 0x4b400000;
  }
};

constexpr float kLn2High = 0.693359375f,
                kLn2Low = -2.12194440e-4f;  // their sum; whole multiples of the first are exact

/** e^f - 1 - f for |f| <= ln(2) / 2: Cephes, expf. */
FLASHATTN_INLINE Vec exp_rest(Vec f) {
  Vec p = splat(1.9875691500e-4f);
  p = multiply_add(p, f, splat(1.3981999507e-3f));
  p = multiply_add(p, f, splat(8.3334519073e-3f));
  p = multiply_add(p, f, splat(4.1665795894e-2f));
  p = multiply_add(p, f, splat(1.6666665459e-1f));
  p = multiply_add(p, f, splat(5.0000001201e-1f));
  return p * f * f;
}

/** x = whole * ln(2) + rest */
struct ExpArgument {
  IntVec whole;
  Vec rest;

  explicit ExpArgument(Vec x) {
    const Nearest k(clamp(x, -105.0f, 90.0f) * splat(kLog2E));
    whole = k.whole;
    rest = multiply_add(k.value, splat(-kLn2Low), multiply_add(k.value, splat(-kLn2High), clamp(x, -105.0f, 90.0f)));
  }
};

/** A positive number as m * 2^k with m from sqrt(1/2) to sqrt(2). */
struct Split {
  Vec m;
  IntVec k;

  explicit Split(Vec x) {
    const IntVec subnormal = x < splat(0x1p-126f);
    const Vec normal = select(subnormal, x * splat(0x1p23f), x);
    const IntVec bits = (IntVec)normal;
    // What is from sqrt(1/2) to sqrt(2) has exponent 0.
    const IntVec from_root = bits - 0x3f3504f3;
    k = (from_root >> 23) - (subnormal & 23);
    m = (Vec)((from_root & 0x007fffff) + 0x3f3504f3);
  }
};

/** log(1 + x) for x from sqrt(1/2) - 1 to sqrt(2) - 1, less x: Cephes, logf. */
FLASHATTN_INLINE Vec log_rest(Vec x) {
  const Vec z = x * x;
  Vec p = splat(7.0376836292e-2f);
  p = multiply_add(p, x, splat(-1.1514610310e-1f));
  p = multiply_add(p, x, splat(1.1676998740e-1f));
  p = multiply_add(p, x, splat(-1.2420140846e-1f));
  p = multiply_add(p, x, splat(1.4249322787e-1f));
  p = multiply_add(p, x, splat(-1.6668057665e-1f));
  p = multiply_add(p, x, splat(2.0000714765e-1f));
  p = multiply_add(p, x, splat(-2.4999993993e-1f));
  p = multiply_add(p, x, splat(3.3333331174e-1f));
  return multiply_add(p * x, z, splat(-0.5f) * z);
}

}  // namespace detail

FLASHATTN_INLINE Vec full_exp(Vec x) {
  const detail::ExpArgument a(x);
  const Vec power = a.rest + detail::exp_rest(a.rest) + splat(1.0f);
  return select(detail::is_nan(x), x, detail::scale(power, a.whole));
}

/** e^x - 1 without cancellation. */
FLASHATTN_INLINE Vec expm1(Vec x) {
  const detail::ExpArgument a(x);
  const Vec rest = a.rest + detail::exp_rest(a.rest);  // e^rest - 1
  const Vec power = detail::scale(splat(1.0f), a.whole);
  const Vec result = multiply_add(rest, power, power - splat(1.0f));
  const IntVec huge = x > splat(88.0f);  // the power alone overflows before the product does
  const Vec other = select(x == splat(0.0f), x, select(huge, full_exp(x), result));
  return select(detail::is_nan(x), x, other);
}

FLASHATTN_INLINE Vec log(Vec x) {
  const detail::Split s(x);
  const Vec k = __builtin_convertvector(s.k, Vec), f = s.m - splat(1.0f);
  const Vec sum = multiply_add(k, splat(detail::kLn2Low), detail::log_rest(f)) + f;
  Vec result = multiply_add(k, splat(detail::kLn2High), sum);
  result = select(x == splat(0.0f), splat(-kInfinity), result);
  result = select(x == splat(kInfinity), x, result);
  result = select(x < splat(0.0f), splat(__builtin_nanf("")), result);
  return select(detail::is_nan(x), x, result);
}

/** log(1 + x): what rounding 1 + x loses is put back as a factor (Kahan). */
FLASHATTN_INLINE Vec log1p(Vec x) {
  const Vec u = splat(1.0f) + x, whole = log(u);
  const Vec result = select(u == splat(1.0f), x, whole * (x / (u - splat(1.0f))));
  return select((x == splat(kInfinity)) | (x <= splat(-1.0f)), whole, result);
}

/** x^y as C has it, by logarithms in double. */
FLASHATTN_INLINE Vec pow(Vec x, Vec y) {
  using namespace detail;
  const Vec magnitude = (Vec)((UintVec)x & 0x7fffffffu), y_magnitude = (Vec)((UintVec)y & 0x7fffffffu);
  const Split split(magnitude);
  // log2(m) = 2 / ln(2) * artanh((m - 1) / (m + 1)), |argument| <= 0.172
  const Doubles m = widen(split.m), one = Doubles{} + 1.0;
  const Doubles s = (m - one) / (m + one), z = s * s;
  Doubles p = one / 13;
  p = p * z + 1.0 / 11;
  p = p * z + 1.0 / 9;
  p = p * z + 1.0 / 7;
  p = p * z + 1.0 / 5;
  p = p * z + 1.0 / 3;
  p = (p * z + 1.0) * s * (2 * 1.4426950408889634074);
  const Doubles product = widen(y) * (p + __builtin_convertvector(split.k, Doubles));
  const Vec bounded = clamp(narrow(product), -160.0f, 140.0f);
  const Nearest k(bounded);
  // The rest in double; where it was bounded, any.
  const Vec in_range = (Vec)((IntVec)splat(1.0f) & (IntVec)(bounded == narrow(product)));
  const Doubles f = (product - widen(k.value)) * widen(in_range) * kLn2;
  Doubles e = one / 362880;
  constexpr double kFactorials[] = {40320, 5040, 720, 120, 24, 6, 2, 1, 1};
  for (const double factorial : kFactorials) e = e * f + 1.0 / factorial;
  const IntVec half = k.whole >> 1;
  Vec result = narrow(e * widen(whole_power(half)) * widen(whole_power(k.whole - half)));

  const IntVec grows = (magnitude > splat(1.0f)) == (y > splat(0.0f));
  const Vec zero = splat(0.0f), infinity = splat(kInfinity), unit = splat(1.0f), nan = splat(__builtin_nanf(""));
  const IntVec endless = (magnitude == zero) | (magnitude == infinity) | (y_magnitude == infinity);
  result = select(endless, select(grows, infinity, zero), result);
  result = select(magnitude == unit, unit, result);
  // From 2^24 on all floats are even.
  const IntVec small = y_magnitude < splat(0x1p24f);
  const Vec within = select(small, y, zero);
  const IntVec y_int = __builtin_convertvector(within, IntVec);
  const IntVec is_whole = ~small | (__builtin_convertvector(y_int, Vec) == within);
  const IntVec is_odd = small & is_whole & -(y_int & 1);
  const IntVec negative = (IntVec)x < 0;
  result = select(negative & is_odd, -result, result);
  result = select(negative & ~is_whole & (magnitude != zero) & (magnitude != infinity), nan, result);
  result = select(is_nan(x) | is_nan(y), nan, result);
  return select((y == zero) | (x == unit), unit, result);
}

namespace detail {

/** x = quadrant * pi / 2 + rest. For |x| < 2^30; NaN for what is no number. */
struct Angle {
  IntVec quadrant;
  Vec rest;

  explicit Angle(Vec x) {
    constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
    const Doubles wide = widen(x);
    const Doubles q = (wide * 0.63661977236758134308 + kRound) - kRound;
    // pi / 2 in three parts; products with the first two are exact.
    rest = narrow(((wide - q * 0x1.921fb4p+0) - q * 0x1.4442dp-24) - q * 0x1.8469898cc517p-48);
    const Vec fourth = narrow(q - ((q * 0.25 + kRound) - kRound) * 4);  // from -2 to 2
    quadrant = Nearest(clamp(fourth, -2.0f, 2.0f)).whole & 3;
  }
};

/** sin and cos for |x| <= pi / 4: Cephes, sinf and cosf. */
FLASHATTN_INLINE Vec small_sin(Vec x) {
  const Vec z = x * x;
  Vec p = splat(-1.9515295891e-4f);
  p = multiply_add(p, z, splat(8.3321608736e-3f));
  p = multiply_add(p, z, splat(-1.6666654611e-1f));
  return multiply_add(p * z, x, x);
}
FLASHATTN_INLINE Vec small_cos(Vec x) {
  const Vec z = x * x;
  Vec p = splat(2.443315711809948e-5f);
  p = multiply_add(p, z, splat(-1.388731625493765e-3f));
  p = multiply_add(p, z, splat(4.166664568298827e-2f));
  return multiply_add(p * z, z, multiply_add(z, splat(-0.5f), splat(1.0f)));
}

FLASHATTN_INLINE Vec sin_of(const Angle& a, int quarters) {
  const IntVec quadrant = a.quadrant + quarters;
  const Vec result = select((quadrant & 1) != 0, small_cos(a.rest), small_sin(a.rest));
  return (Vec)((UintVec)result ^ (UintVec)((quadrant & 2) << 30));
}

/**
 * 1 - erf(z) for z = x * root, root = sqrt(factor), from 0 to 10.7: e^(-z^2) times t * a polynomial of t - 1/2, t = 1 / (1 + z / 2), which is
 * right to 4e-9 of it. What is squared is x: rounding z^2 would cost as many units as it is large, but the upper half of x
 * has an exact square.
 */
FLASHATTN_INLINE Vec positive_erfc(Vec x, float root, float factor) {
  const Vec t = splat(1.0f) / multiply_add(x, splat(0.5f * root), splat(1.0f)), s = t - splat(0.5f);
  Vec p = splat(3.66640933e-2f);
  p = multiply_add(p, s, splat(-1.30242591e-2f));
  p = multiply_add(p, s, splat(-7.58800118e-2f));
  p = multiply_add(p, s, splat(5.34839236e-2f));
  p = multiply_add(p, s, splat(9.79760519e-2f));
  p = multiply_add(p, s, splat(-1.03631990e-1f));
  p = multiply_add(p, s, splat(-1.72043291e-1f));
  p = multiply_add(p, s, splat(1.45767661e-1f));
  p = multiply_add(p, s, splat(5.58943485e-1f));
  p = multiply_add(p, s, splat(6.87160693e-1f));
  p = multiply_add(p, s, splat(5.10791355e-1f));
  const Vec high = (Vec)((UintVec)x & 0xfffff000u), low = x - high;
  const Vec rest = low * (x + high) * splat(-factor);  // of the exponent, from -0.07 to 0
  Vec e = splat(1.0f / 24);
  e = multiply_add(e, rest, splat(1.0f / 6));
  e = multiply_add(e, rest, splat(0.5f));
  e = multiply_add(e, rest, splat(1.0f));
  const Vec scaled = t * p;
  return multiply_add(scaled * rest, e, scaled) * full_exp(high * high * splat(-factor));
}

/** erf(x) for |x| < 0.8: 2 / sqrt(pi) * the sum of (-1)^n x^(2n + 1) / (n! (2 n + 1)). */
FLASHATTN_INLINE Vec small_erf(Vec x) {
  const Vec z = x * x;
  Vec p = splat(1.6462114e-6f);
  p = multiply_add(p, z, splat(-1.4925650e-5f));
  p = multiply_add(p, z, splat(1.2055333e-4f));
  p = multiply_add(p, z, splat(-8.5483270e-4f));
  p = multiply_add(p, z, splat(5.2239776e-3f));
  p = multiply_add(p, z, splat(-2.6866170e-2f));
  p = multiply_add(p, z, splat(1.1283792e-1f));
  p = multiply_add(p, z, splat(-3.7612638e-1f));
  p = multiply_add(p, z, splat(1.2837917e-1f));  // and 1, added last
  return multiply_add(p, x, x);
}

}  // namespace detail

FLASHATTN_INLINE Vec sin(Vec x) { return select(x == splat(0.0f), x, detail::sin_of(detail::Angle(x), 0)); }
FLASHATTN_INLINE Vec cos(Vec x) { return detail::sin_of(detail::Angle(x), 1); }

FLASHATTN_INLINE Vec erf(Vec x) {
  const UintVec sign = (UintVec)x & 0x80000000u;
  const Vec magnitude = (Vec)((UintVec)x & 0x7fffffffu);
  const Vec bounded = detail::clamp(magnitude, 0.0f, 10.0f);
  const Vec large = splat(1.0f) - detail::positive_erfc(bounded, 1.0f, 1.0f);
  const Vec signed_large = (Vec)((UintVec)large | sign);
  return select(detail::is_nan(x), x, select(magnitude < splat(0.8f), detail::small_erf(x), signed_large));
}

/** The share of a standard normal distribution below x. */
FLASHATTN_INLINE Vec normal_cdf(Vec x) {
  constexpr float kRootHalf = 0.70710678118654752440f;
  const Vec magnitude = detail::clamp((Vec)((UintVec)x & 0x7fffffffu), 0.0f, 15.0f);
  const Vec tail = splat(0.5f) * detail::positive_erfc(magnitude, kRootHalf, 0.5f);
  const Vec small = multiply_add(splat(0.5f), detail::small_erf(x * splat(kRootHalf)), splat(0.5f));
  const Vec outer = select(x < splat(0.0f), tail, splat(1.0f) - tail);
  return select(detail::is_nan(x), x, select(magnitude < splat(0.5f), small, outer));
}

/** By e^-|x|, which neither overflows nor loses what is small. */
FLASHATTN_INLINE Vec sigmoid(Vec x) {
  const Vec power = full_exp((Vec)((UintVec)x | 0x80000000u)), one = splat(1.0f);
  return select(x < splat(0.0f), power, one) / (one + power);
}

FLASHATTN_INLINE Vec square_root(Vec x) {
#if defined(__AVX512F__)
  return (Vec)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (Vec)_mm256_sqrt_ps((__m256)x);
#elif defined(__wasm__)
  return (Vec)wasm_f32x4_sqrt((v128_t)x);
#elif defined(__aarch64__)
  return (Vec)vsqrtq_f32((float32x4_t)x);
#else
  for (int lane = 0; lane < kLanes; ++lane) x[lane] = __builtin_sqrtf(x[lane]);
  return x;
#endif
}

/** To the nearest whole number, ties to even. */
FLASHATTN_INLINE Vec round_even(Vec x) {
  const UintVec sign = (UintVec)x & 0x80000000u;
  const Vec magnitude = (Vec)((UintVec)x & 0x7fffffffu);
  const Vec rounded = (magnitude + splat(0x1p23f)) - splat(0x1p23f);
  return select(magnitude < splat(0x1p23f), (Vec)((UintVec)rounded | sign), x);
}

FLASHATTN_INLINE Vec floor(Vec x) {
  const Vec rounded = round_even(x);
  const Vec result = select(rounded > x, rounded - splat(1.0f), rounded);
  return select(detail::is_nan(x), x, result);
}

}  // namespace flashattn
