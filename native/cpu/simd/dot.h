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

/** What fits the registers of sums: any number of steps. */
inline constexpr int kAnySteps = 1 << 30;

#if defined(FLASHATTN_DOT_TARGET)
/** Not intrinsics, which compilers refuse in what is only inlined into a function that has them. */
struct DotProducts {
  /** What is added to codes of B, the second factor, to make them what the instruction takes: on x86 it is unsigned. */
#if defined(__AVX2__)
  static constexpr int kByteOffset = 128;
#else
  static constexpr int kByteOffset = 0;
#endif
  static constexpr int kMostSteps = kAnySteps;

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
  FLASHATTN_INLINE IntVec finish(IntVec sum) { return sum; }
};
#endif

#if defined(__AVX2__) || defined(__wasm_relaxed_simd__)
inline constexpr bool kHasSmallDots = true;
#else
inline constexpr bool kHasSmallDots = false;
#endif

/**
 * Of b from 0 to 2: sums of pairs of products fit in 16 bits for so many steps. Not WebAssembly's instruction that adds to 32 bits,
 * which Node 20 gets wrong.
 */
struct SmallDots {
  static constexpr int kMostSteps = 63;  // of up to 2 * 2 * 128 each

  FLASHATTN_INLINE IntVec multiply_add(IntVec a, IntVec b, IntVec sum) {
#if defined(__wasm_relaxed_simd__)
    return (IntVec)wasm_i16x8_add((v128_t)sum, wasm_i16x8_relaxed_dot_i8x16_i7x16((v128_t)a, (v128_t)b));
#elif defined(__AVX512F__)
    return (IntVec)_mm512_add_epi16((__m512i)sum, _mm512_maddubs_epi16((__m512i)b, (__m512i)a));
#elif defined(__AVX2__)
    return (IntVec)_mm256_add_epi16((__m256i)sum, _mm256_maddubs_epi16((__m256i)b, (__m256i)a));
#else
    return sum + a * b;  // never run
#endif
  }

  /** Each lane's two sums as one of 32 bits. */
  FLASHATTN_INLINE IntVec finish(IntVec sum) { return ((sum << 16) >> 16) + (sum >> 16); }
};

/** Of pairs of 16 bits. */
struct PairProducts {
  static constexpr int kMostSteps = kAnySteps;

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
  FLASHATTN_INLINE IntVec finish(IntVec sum) { return sum; }
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
