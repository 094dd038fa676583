// The vector layer: `Vec` is kLanes floats, written with the compiler's vector extensions so that the same kernels
// build for WebAssembly (128 bit) and for wider machines. Only what the extensions cannot say uses intrinsics.
#pragma once
#include <stddef.h>
#include <stdint.h>
#if defined(__wasm__)
#include <wasm_simd128.h>
#elif defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace flashattn {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#elif defined(__AVX2__)
inline constexpr int kLanes = 8;
#else
inline constexpr int kLanes = 4;
#endif

using Vec = float __attribute__((vector_size(kLanes * 4)));
using IntVec = int32_t __attribute__((vector_size(kLanes * 4)));
using UintVec = uint32_t __attribute__((vector_size(kLanes * 4)));

#define FLASHATTN_INLINE static inline __attribute__((always_inline))
// A function that is entered often enough: V8 swaps baseline code for optimised code only at the next call, so a loop
// that were inlined into one long-running function would stay slow for ever.
#define FLASHATTN_CALLED inline __attribute__((noinline))

namespace detail {
// Not `using`: there clang takes the size and silently drops the alignment.
typedef float UnalignedVec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef uint32_t UnalignedUintVec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
static_assert(alignof(UnalignedVec) == 4 && alignof(UnalignedUintVec) == 4);
}  // namespace detail

FLASHATTN_INLINE Vec load(const float* p) { return *reinterpret_cast<const detail::UnalignedVec*>(p); }
FLASHATTN_INLINE void store(float* p, Vec v) { *reinterpret_cast<detail::UnalignedVec*>(p) = v; }
FLASHATTN_INLINE UintVec load_bits(const uint32_t* p) { return *reinterpret_cast<const detail::UnalignedUintVec*>(p); }
FLASHATTN_INLINE void store_bits(uint32_t* p, UintVec v) { *reinterpret_cast<detail::UnalignedUintVec*>(p) = v; }

FLASHATTN_INLINE Vec splat(float x) {
#if defined(__wasm__)
  return (Vec)wasm_f32x4_splat(x);
#elif defined(__AVX512F__)
  return (Vec)_mm512_set1_ps(x);
#elif defined(__AVX2__)
  return (Vec)_mm256_set1_ps(x);
#elif defined(__aarch64__)
  return (Vec)vdupq_n_f32(x);
#else
  return Vec{} + x;
#endif
}

/** One float in memory, in every lane: a single instruction on every target, and the A operand of the tile product. */
FLASHATTN_INLINE Vec load_splat(const float* p) {
#if defined(__wasm__)
  return (Vec)wasm_v128_load32_splat(p);
#else
  return splat(*p);
#endif
}

FLASHATTN_INLINE Vec multiply_add(Vec a, Vec b, Vec c) {
#if defined(__wasm_relaxed_simd__)
  return (Vec)__builtin_wasm_relaxed_madd_f32x4((__f32x4)a, (__f32x4)b, (__f32x4)c);
#elif defined(__AVX512F__)
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) && defined(__AVX2__)
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

/** a < b ? b : a. A NaN in `b` is ignored, a NaN in `a` stays. */
FLASHATTN_INLINE Vec max(Vec a, Vec b) {
#if defined(__wasm__)
  return (Vec)wasm_f32x4_pmax((v128_t)a, (v128_t)b);
#elif defined(__AVX512F__)
  return (Vec)_mm512_max_ps((__m512)b, (__m512)a);  // the second where either is NaN
#elif defined(__AVX2__)
  return (Vec)_mm256_max_ps((__m256)b, (__m256)a);
#else
  return a < b ? b : a;
#endif
}

FLASHATTN_INLINE Vec select(IntVec mask, Vec yes, Vec no) { return (Vec)(((IntVec)yes & mask) | ((IntVec)no & ~mask)); }

FLASHATTN_INLINE UintVec select_bits(IntVec mask, UintVec yes, UintVec no) {
  return (yes & (UintVec)mask) | (no & ~(UintVec)mask);
}

/** {start, start + 1, ...} */
FLASHATTN_INLINE IntVec iota(int start) {
  IntVec v{};
  for (int lane = 0; lane < kLanes; ++lane) v[lane] = lane;
  return v + start;
}

FLASHATTN_INLINE float sum_lanes(Vec v) {
  float sum = 0;
  if constexpr (kLanes <= 4) {
    for (int lane = 0; lane < kLanes; ++lane) sum += v[lane];
  } else {
    float quarter[4] = {};
    for (int lane = 0; lane < kLanes; ++lane) quarter[lane % 4] += v[lane];
    sum = (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
  }
  return sum;
}

FLASHATTN_INLINE bool any(IntVec mask) {
#if defined(__wasm__)
  return wasm_v128_any_true((v128_t)mask);
#elif defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#elif defined(__aarch64__)
  return vmaxvq_u32((uint32x4_t)mask) != 0;
#else
  int any = 0;
  for (int lane = 0; lane < kLanes; ++lane) any |= mask[lane];
  return any != 0;
#endif
}

constexpr int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }
constexpr int divide_up(int n, int by) { return (n + by - 1) / by; }
constexpr int min(int a, int b) { return a < b ? a : b; }
constexpr int max(int a, int b) { return a > b ? a : b; }

/** Asks for so many floats that will be read; they may lie beyond the end of an array. */
template <int kFloats>
FLASHATTN_INLINE void prefetch([[maybe_unused]] const float* p) {
#if !defined(__wasm__)
  for (int i = 0; i < kFloats; i += 16) __builtin_prefetch(p + i);
#endif
}

/** Hides a pointer's value from the optimiser, which otherwise rebuilds each address from the loop counter. */
template <class T>
FLASHATTN_INLINE void keep_as_pointer([[maybe_unused]] T*& p) {
#if defined(__wasm__)
  asm("" : "+r"(p));
#endif
}

}  // namespace flashattn
