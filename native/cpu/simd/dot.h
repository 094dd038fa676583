// Products of whole numbers of few bits. A word has four codes of 8 bits or a pair of 16 bits, neighbours along the dim that
// is summed over; products of a lane's word with another word are added up in the lane's 32 bits. All of them are exact.
#pragma once
#include "simd/simd.h"

namespace flashattn {

/**
 * Some machines multiply words of bytes in one instruction (VNNI on x86, DotProd on ARM), which is a question beside that of the
 * instruction set: native hosts ask it, and functions with FLASHATTN_DOT_TARGET are for those that have it.
 */
inline bool has_dot_products = false;

#if defined(__AVX512F__)
#define FLASHATTN_DOT_TARGET __attribute__((target("avx512vnni")))
#elif defined(__AVX2__)
#define FLASHATTN_DOT_TARGET __attribute__((target("avxvnni")))
#elif defined(__aarch64__) && defined(__clang__)
#define FLASHATTN_DOT_TARGET __attribute__((target("dotprod")))
#elif defined(__aarch64__)
#define FLASHATTN_DOT_TARGET __attribute__((target("+dotprod")))
#endif

FLASHATTN_INLINE IntVec splat_bits(uint32_t x) { return (IntVec)(UintVec{} + x); }

/** One word in memory, in every lane. */
FLASHATTN_INLINE IntVec load_splat_bits(const uint32_t* p) {
#if defined(__wasm__)
  return (IntVec)wasm_v128_load32_splat(p);
#else
  return splat_bits(*p);
#endif
}

#if defined(FLASHATTN_DOT_TARGET)
/** Not intrinsics, which compilers refuse in what is only inlined into a function that has them. */
struct DotProducts {
  /** What is added to codes of B, the second factor, to make them what the instruction takes: on x86 it is unsigned. */
#if defined(__AVX2__)
  static constexpr int kByteOffset = 128;
#else
  static constexpr int kByteOffset = 0;
#endif
  static constexpr bool kHasPairs = false;

  /** sum + a b of four signed codes a and four b. */
  FLASHATTN_INLINE IntVec multiply_add(IntVec a, IntVec b, IntVec sum) {
#if defined(__AVX512F__)
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(b), "v"(a));
#elif defined(__AVX2__)
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(b), "x"(a));
#else
    asm("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(a), "w"(b));
#endif
    return sum;
  }
};
#endif

#if defined(__AVX2__) || defined(__wasm_relaxed_simd__)
inline constexpr bool kHasSmallDots = true;
#else
inline constexpr bool kHasSmallDots = false;
#endif

/** Of b from 0 to 2: two products of bytes fit in 16 bits. */
struct SmallDots {
  static constexpr bool kHasPairs = false;

  FLASHATTN_INLINE IntVec multiply_add(IntVec a, IntVec b, IntVec sum) {
#if defined(__wasm_relaxed_simd__)
    return (IntVec)wasm_i32x4_relaxed_dot_i8x16_i7x16_add((v128_t)a, (v128_t)b, (v128_t)sum);
#elif defined(__AVX512F__)
    const __m512i pairs = _mm512_maddubs_epi16((__m512i)b, (__m512i)a);
    return sum + (IntVec)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif defined(__AVX2__)
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)b, (__m256i)a);
    return sum + (IntVec)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
    return sum + a * b;  // never run
#endif
  }
};

/** Of pairs of 16 bits. */
struct PairProducts {
  static constexpr bool kHasPairs = true;

  FLASHATTN_INLINE IntVec multiply_add(IntVec a, IntVec b, IntVec sum) {
#if defined(__wasm__)
    return sum + (IntVec)wasm_i32x4_dot_i16x8((v128_t)a, (v128_t)b);
#elif defined(__AVX512F__)
    return sum + (IntVec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return sum + (IntVec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    return sum + ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
  }
};

/** The codes of a word's lower and upper half as pairs of 16 bits. */
FLASHATTN_INLINE UintVec lower_pair(UintVec word) {
  const IntVec first = (IntVec)(word << 24) >> 24, second = (IntVec)(word << 16) >> 24;
  return ((UintVec)first & 0xffffu) | ((UintVec)second << 16);
}
FLASHATTN_INLINE UintVec upper_pair(UintVec word) {
  const IntVec first = (IntVec)(word << 8) >> 24, second = (IntVec)word >> 24;
  return ((UintVec)first & 0xffffu) | ((UintVec)second << 16);
}

}  // namespace flashattn
