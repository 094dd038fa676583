// Rows of tensors in their own dtype, seen as float32. Conversions round to nearest, ties to even.
#pragma once
#include "simd/simd.h"
#include "structs/types.h"

namespace flashattn {

#if !defined(__wasm__)
namespace detail {
using Halves = uint16_t __attribute__((vector_size(kLanes * 2)));
typedef uint16_t UnalignedHalves __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));
static_assert(alignof(UnalignedHalves) == 2);
}  // namespace detail
#endif

FLASHATTN_INLINE Vec widen_half(UintVec h) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps((__m256i) __builtin_convertvector(h, detail::Halves));
#elif defined(__aarch64__)
  return (Vec)vcvt_f32_f16((float16x4_t) __builtin_convertvector(h, detail::Halves));
#else
  const UintVec sign = (h & 0x8000u) << 16;
  const UintVec magnitude = h & 0x7fffu;
  // The exponent bias differs by 112: a multiplication by 2^112 also normalises subnormals.
  const Vec scaled = (Vec)(magnitude << 13) * splat(0x1p112f);
  const IntVec special = magnitude > 0x7bffu;  // Infinity and NaN
  const UintVec bits = select_bits(special, (magnitude << 13) | 0x7f800000u, (UintVec)scaled);
  return (Vec)(bits | sign);
#endif
}

FLASHATTN_INLINE UintVec narrow_half(Vec x) {
  const UintVec bits = (UintVec)x, sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  const UintVec normal = (magnitude + (0xfffu - (112u << 23)) + ((magnitude >> 13) & 1u)) >> 13;
  // Adding 2^-1 aligns the last half-precision subnormal bit with the last float32 mantissa bit, so the adder rounds.
  const UintVec subnormal = (UintVec)((Vec)magnitude + splat(0.5f)) - 0x3f000000u;
  const UintVec infinity = UintVec{} + 0x7c00u, nan = UintVec{} + 0x7e00u;
  UintVec h = select_bits(magnitude < 0x38800000u, subnormal, normal);
  h = select_bits(magnitude >= 0x477ff000u, infinity, h);
  h = select_bits(magnitude > 0x7f800000u, nan, h);
  return h | sign;
}

FLASHATTN_INLINE Vec widen_bfloat(UintVec h) { return (Vec)(h << 16); }

FLASHATTN_INLINE UintVec narrow_bfloat(Vec x) {
  const UintVec bits = (UintVec)x;
  const UintVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const UintVec nan = (bits >> 16) | 0x40u;
  return select_bits((bits & 0x7fffffffu) > 0x7f800000u, nan, rounded);
}

/** kLanes 16-bit elements. */
FLASHATTN_INLINE UintVec load_halves(const uint16_t* from) {
#if defined(__wasm__)
  return (UintVec)wasm_u32x4_load16x4(from);
#else
  return __builtin_convertvector(*reinterpret_cast<const detail::UnalignedHalves*>(from), UintVec);
#endif
}

/** Writes the low halves of the lanes. */
FLASHATTN_INLINE void store_halves(uint16_t* to, UintVec h) {
#if defined(__wasm__)
  for (int lane = 0; lane < kLanes; ++lane) to[lane] = static_cast<uint16_t>(h[lane]);
#else
  *reinterpret_cast<detail::UnalignedHalves*>(to) = __builtin_convertvector(h, detail::UnalignedHalves);
#endif
}

/** kLanes elements as float32. */
FLASHATTN_INLINE Vec load_elements(const uint8_t* from, DType dtype) {
  if (dtype == DType::Float32) return load(reinterpret_cast<const float*>(from));
  const UintVec halves = load_halves(reinterpret_cast<const uint16_t*>(from));
  return dtype == DType::Float16 ? widen_half(halves) : widen_bfloat(halves);
}

namespace detail {
template <class Widen>
FLASHATTN_INLINE void widen_row(float* to, const uint16_t* from, int n, Widen widen) {
  for (int i = 0; i < n; i += kLanes) {
    UintVec h{};
    const int count = min(kLanes, n - i);
    if (count == kLanes) {
      h = load_halves(from + i);
    } else {
      for (int lane = 0; lane < count; ++lane) h[lane] = from[i + lane];
    }
    store(to + i, widen(h));
  }
}

template <class Narrow>
FLASHATTN_INLINE void narrow_row(uint16_t* to, const float* from, int n, Narrow narrow) {
  for (int i = 0; i < n; i += kLanes) {
    const UintVec h = narrow(load(from + i));
    const int count = min(kLanes, n - i);
    if (count == kLanes) {
      store_halves(to + i, h);
    } else {
      for (int lane = 0; lane < count; ++lane) to[i + lane] = static_cast<uint16_t>(h[lane]);
    }
  }
}

/** To the nearest float. */
inline void load_whole(float* to, const void* from, DType dtype, int n) {
  for (int i = 0; i < n; i += kLanes) {
    IntVec x{};
    for (int lane = 0; lane < kLanes && i + lane < n; ++lane)
      x[lane] = dtype == DType::Int32 ? static_cast<const int32_t*>(from)[i + lane]
                                      : int32_t{static_cast<const uint8_t*>(from)[i + lane] != 0};
    store(to + i, __builtin_convertvector(x, Vec));
  }
}

/** Towards zero, the nearest int32 of what is none, 0 of NaN; of bool, whether it is not zero. */
inline void store_whole(void* to, DType dtype, const float* from, int n) {
  for (int i = 0; i < n; ++i) {
    const float x = from[i];
    if (dtype == DType::Bool)
      static_cast<uint8_t*>(to)[i] = x != 0;
    else
      static_cast<int32_t*>(to)[i] = x >= 0x1p31f    ? INT32_MAX
                                     : x >= -0x1p31f ? static_cast<int32_t>(x)
                                     : x == x        ? INT32_MIN
                                                     : 0;
  }
}
}  // namespace detail

/** Reads n elements; writes round_up(n, kLanes) floats, the padding zero. */
FLASHATTN_CALLED void load_row(float* to, const void* from, DType dtype, int n) {
  if (dtype == DType::Float32) {
    const float* source = static_cast<const float*>(from);
    int i = 0;
    for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
#pragma clang loop unroll(full)
      for (int v = 0; v < 4; ++v) store(to + i + v * kLanes, load(source + i + v * kLanes));
    }
    for (; i + kLanes <= n; i += kLanes) store(to + i, load(source + i));
    if (i < n) {
      Vec tail{};
      for (int lane = 0; lane < n - i; ++lane) tail[lane] = source[i + lane];
      store(to + i, tail);
    }
  } else if (dtype == DType::Float16) {
    detail::widen_row(to, static_cast<const uint16_t*>(from), n, [](UintVec h) { return widen_half(h); });
  } else if (dtype == DType::BFloat16) {
    detail::widen_row(to, static_cast<const uint16_t*>(from), n, [](UintVec h) { return widen_bfloat(h); });
  } else {
    detail::load_whole(to, from, dtype, n);
  }
}

/** Writes n elements; may read, never write, up to round_up(n, kLanes) floats. */
FLASHATTN_CALLED void store_row(void* to, DType dtype, const float* from, int n) {
  if (dtype == DType::Float32) {
    float* target = static_cast<float*>(to);
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) store(target + i, load(from + i));
    for (; i < n; ++i) target[i] = from[i];
  } else if (dtype == DType::Float16) {
    detail::narrow_row(static_cast<uint16_t*>(to), from, n, [](Vec x) { return narrow_half(x); });
  } else if (dtype == DType::BFloat16) {
    detail::narrow_row(static_cast<uint16_t*>(to), from, n, [](Vec x) { return narrow_bfloat(x); });
  } else {
    detail::store_whole(to, dtype, from, n);
  }
}

}  // namespace flashattn
