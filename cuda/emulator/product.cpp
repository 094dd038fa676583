#include "product.h"

#include <bit>
#include <cstring>
#include <type_traits>

#include "number.h"

// A register of a fragment, over all lanes, is 8 rows of 16 bytes: lane l holds 4 bytes at column l % 4 of row l / 4.
// For a [16, k] the registers are the rows 0-7 and 8-15 of the first half of k, then those of the second half. For b,
// whose rows are the columns of the matrix, they are the halves of k.

#if defined(__x86_64__)
#define FLASHATTN_WIDE __attribute__((target("avx2,fma")))
#else
#define FLASHATTN_WIDE
#endif

// Vectors are passed by value between functions that are all inlined.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace emulator {

namespace {

constexpr int kFirstOfB = 4;                         // of the registers that the lanes hand in
constexpr int kRows = 16, kColumns = 8, kBlock = 8;  // a register covers kBlock rows

using Floats = float __attribute__((vector_size(32)));  // 8 of each
using Words = uint32_t __attribute__((vector_size(32)));
using Integers = int32_t __attribute__((vector_size(32)));
using Halves = uint16_t __attribute__((vector_size(16)));

#define FLASHATTN_INLINE inline __attribute__((always_inline))

template <class Vector>
FLASHATTN_INLINE Vector load(const void* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

/** As from_f16 of number.h, eight at a time. */
FLASHATTN_INLINE Floats from_f16(Halves halves) {
  const Words bits = __builtin_convertvector(halves, Words), magnitude = bits & 0x7fff;
  const Words finite = (Words)((Floats)(magnitude << 13) * 0x1p112f), special = magnitude << 13 | 0x7f800000;
  return (Floats)((bits & 0x8000) << 16 | (magnitude >= 0x7c00 ? special : finite));
}

FLASHATTN_INLINE Floats from_bf16(Halves halves) { return (Floats)(__builtin_convertvector(halves, Words) << 16); }

FLASHATTN_INLINE void transpose(Halves (&rows)[8]) {
  Halves step[8];
  for (int stage = 0; stage < 3; ++stage) {  // each interleaves the rows of the two halves
    for (int i = 0; i < 4; ++i) {
      step[2 * i] = __builtin_shufflevector(rows[i], rows[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
      step[2 * i + 1] = __builtin_shufflevector(rows[i], rows[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; ++i) rows[i] = step[i];
  }
}

/** Fragments as matrices of float32. */
template <int depth>
struct Operands {
  float a[2][2][kBlock][depth / 2];  // half of k, half of the rows, row, k
  Floats b[depth];                   // [k][column]
};

template <Format format>
FLASHATTN_INLINE Floats widen(Halves halves) {
  return format == Format::F16 ? from_f16(halves) : from_bf16(halves);
}

template <Format format>
FLASHATTN_INLINE void unpack(const Exchange& exchange, Operands<16>& operands) {
  for (int i = 0; i < kFirstOfB; ++i)
    for (int r = 0; r < kBlock; ++r) {
      const Floats row = widen<format>(load<Halves>(&exchange.in[i][4 * r]));
      std::memcpy(operands.a[i / 2][i % 2][r], &row, sizeof row);
    }
  for (int half = 0; half < 2; ++half) {
    Halves columns[8];
    std::memcpy(columns, exchange.in[kFirstOfB + half], sizeof columns);
    transpose(columns);
    for (int k = 0; k < 8; ++k) operands.b[8 * half + k] = widen<format>(columns[k]);
  }
}

template <Format format>
FLASHATTN_INLINE void unpack(const Exchange& exchange, Operands<8>& operands) {
  static_assert(format == Format::TF32);
  constexpr int kHalf = 4;
  const auto value = [&](int i, int row, int k) {
    return std::bit_cast<float>(truncate_tf32(exchange.in[i][row * kHalf + k]));
  };
  for (int half = 0; half < 2; ++half)
    for (int r = 0; r < kBlock; ++r)
      for (int k = 0; k < kHalf; ++k) {
        for (int i = 0; i < 2; ++i) operands.a[half][i][r][k] = value(2 * half + i, r, k);
        operands.b[kHalf * half + k][r] = value(kFirstOfB + half, r, k);
      }
}

/** c + the sum of `count` products, rounded as C++ does. */
template <int count>
FLASHATTN_INLINE Floats add_rounded(Floats c, const Floats (&products)[count]) {
  Floats total{};
#pragma GCC unroll 16
  for (int i = 0; i < count; ++i) total += products[i];
  return c + total;
}

/**
 * The same with c and all products cut, towards zero, to the last bit of a float32 of the largest one's size, and their
 * exact sum cut to float32.
 */
template <int count>
FLASHATTN_INLINE Floats add_cut(Floats c, const Floats (&products)[count]) {
  constexpr uint32_t kBits = 23, kBias = 127, kInfinite = 255;
  Words largest = (Words)c & 0x7fffffff;
  for (int i = 0; i < count; ++i) {
    const Words magnitude = (Words)products[i] & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  const Words least = Words{} + (kBits + 1), exponent = largest >> kBits > least ? largest >> kBits : least;
  // 2^(23 - exponent) makes the largest one an integer of 24 bits, and 2^(exponent - 23) undoes it.
  const Floats up = (Floats)((2 * kBias + kBits - exponent) << kBits), down = (Floats)((exponent - kBits) << kBits);
  Integers total = __builtin_convertvector(c * up, Integers);
  for (int i = 0; i < count; ++i) total += __builtin_convertvector(products[i] * up, Integers);
  const Words magnitude = (Words)(total < 0 ? -total : total);
  Words excess = magnitude >> (kBits + 1);  // then as many ones as it has bits
  excess |= excess >> 1;
  excess |= excess >> 2;
  const Floats size = __builtin_convertvector((Integers)(magnitude & ~excess), Floats) * down;
  const Floats cut = total < 0 ? -size : size;
  return exponent >= kInfinite ? add_rounded(c, products) : cut;
}

/** Every product of two such numbers is exact in float32, so that fused and separate additions give the same bits. */
template <Format format, bool cut>
FLASHATTN_INLINE void product(Exchange& exchange) {
  constexpr int kDepth = format == Format::TF32 ? 8 : 16, kParts = cut ? 2 : 1, kPart = kDepth / kParts;
  Operands<kDepth> operands;
  unpack<format>(exchange, operands);
  for (int r = 0; r < kRows; ++r) {
    float* sum = &exchange.sum[r / kBlock][0][0] + r % kBlock * kColumns;
    Floats c = load<Floats>(sum);
    for (int part = 0; part < kParts; ++part) {
      Floats products[kPart];
#pragma GCC unroll 16
      for (int i = 0; i < kPart; ++i) {
        const int k = part * kPart + i;
        products[i] = operands.a[k / (kDepth / 2)][r / kBlock][r % kBlock][k % (kDepth / 2)] * operands.b[k];
      }
      if constexpr (cut)
        c = add_cut(c, products);
      else
        c = add_rounded(c, products);
    }
    std::memcpy(sum, &c, sizeof c);
  }
}

template <Format format, bool cut>
void product_narrow(Exchange& exchange) {
  product<format, cut>(exchange);
}
template <Format format, bool cut>
FLASHATTN_WIDE void product_wide(Exchange& exchange) {
  product<format, cut>(exchange);
}

bool is_wide() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

template <Format format, bool cut>
void choose(Exchange& exchange) {
  static const bool wide = is_wide();
  wide ? product_wide<format, cut>(exchange) : product_narrow<format, cut>(exchange);
}

template <Format format>
void dispatch(Exchange& exchange) {
  machine.config.cut_sums ? choose<format, true>(exchange) : choose<format, false>(exchange);
}

/** Of bytes with signs; the 32 bits of the sums are those of integers, and wrap around. */
void add_bytes(Exchange& exchange) {
  constexpr int kHalf = 16;
  const auto byte = [&](int i, int row, int k) {
    return static_cast<int8_t>(exchange.in[i][row * 4 + k / 4] >> 8 * (k % 4));
  };
  for (int r = 0; r < kRows; ++r)
    for (int column = 0; column < kColumns; ++column) {
      float& bits = (&exchange.sum[r / kBlock][0][0])[r % kBlock * kColumns + column];
      uint32_t sum = std::bit_cast<uint32_t>(bits);
      for (int half = 0; half < 2; ++half)
        for (int k = 0; k < kHalf; ++k)
          sum += static_cast<uint32_t>(byte(2 * half + r / kBlock, r % kBlock, k) * byte(kFirstOfB + half, column, k));
      bits = std::bit_cast<float>(sum);
    }
}

}  // namespace

void add_product(Format format, Exchange& exchange) {
  switch (format) {
    case Format::F16: return dispatch<Format::F16>(exchange);
    case Format::BF16: return dispatch<Format::BF16>(exchange);
    case Format::TF32: return dispatch<Format::TF32>(exchange);
    case Format::S8: return add_bytes(exchange);
  }
}

}  // namespace emulator
