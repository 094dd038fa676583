// Numbers become whole ones of few bits, in words.
#pragma once
#include "simd/long_rows.h"
#include "structs/quantise.h"

namespace flashattn {

namespace detail {

/** The bits of the largest |x|, which order as the numbers do, with Infinity and then NaN above all others. */
FLASHATTN_CALLED IntVec largest_bits(const float* x /* [n] in whole vectors */, int n, IntVec most) {
  for (int i = 0; i < n; i += kLanes) {
    const IntVec bits = (IntVec)load(x + i) & 0x7fffffff;
    const IntVec larger = bits > most;
    most = (bits & larger) | (most & ~larger);
  }
  return most;
}

inline float scale_of_row(IntVec most, float least) {
  int32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits = max(bits, most[lane]);
  float largest;
  __builtin_memcpy(&largest, &bits, 4);
  if (!(largest <= 0x1.fffffep127f)) return __builtin_nanf("");
  return 127.0f / (largest > least ? largest : least);
}

using Bytes = int8_t __attribute__((vector_size(kLanes)));

/** codes[i] = round(x[i] * scale), ties to even; returns the sums of codes. */
FLASHATTN_CALLED IntVec round_to_codes(const QuantiseParams& p, const float* x /* [n] in whole vectors */, float scale,
                                       int n, uint8_t* codes /* [n] in whole vectors */) {
  constexpr float kRoundToInteger = 12582912.0f;  // 1.5 * 2^23: adding it leaves the integer in the low mantissa bits
  const Vec times = splat(scale), smallest = splat(p.smallest), largest = splat(-p.largest);
  IntVec sums{};
  for (int i = 0; i < n; i += kLanes) {
    const Vec bounded = -max(largest, -max(smallest, load(x + i) * times));  // NaN gives the smallest
    IntVec code = (IntVec)(bounded + splat(kRoundToInteger)) - 0x4b400000;
    if (i + kLanes > n) code &= iota(i) < n;
    sums += code;
#if defined(__AVX512F__)
    const __m128i bytes = _mm512_cvtepi32_epi8((__m512i)code);
    __builtin_memcpy(codes + i, &bytes, kLanes);
#else
    const Bytes bytes = __builtin_convertvector(code, Bytes);
    __builtin_memcpy(codes + i, &bytes, kLanes);
#endif
  }
  return sums;
}

/** 16 codes from -1 to 1 as a word. */
inline uint32_t trits_of(const uint8_t* codes /* [16] */) {
  uint32_t four[4], word = 0;
  __builtin_memcpy(four, codes, 16);
  for (int q = 0; q < 4; ++q) word |= (((four[q] & 0x7f7f7f7fu) + 0x01010101u) & 0x03030303u) << (2 * q);
  return word;
}

}  // namespace detail

inline PieceGrid quantise_grid(const QuantiseParams& p) { return {p.rows, p.inner}; }

inline int quantise_items(const QuantiseParams& p) { return quantise_grid(p).items(); }

FLASHATTN_CALLED void quantise_row(const QuantiseParams& p, int64_t row, LongRowWorkspace& ws) {
  using namespace detail;
  const uint8_t* x = bytes_of(p.x) + row * p.x_row * element_size(p.dtype);
  const auto read = [&](int begin, int n) {
    return read_floats(x + int64_t{begin} * element_size(p.dtype), p.dtype, 1, n, ws.row[0]);
  };
  float scale;
  if (p.scale) {
    scale = *p.scale;
  } else {
    IntVec most{};
    for (int begin = 0; begin < p.inner; begin += kLongRow) {
      const int n = row_piece(p.inner, begin);
      most = largest_bits(read(begin, n), n, most);
    }
    scale = scale_of_row(most, p.least);
    p.row_scale[row] = scale;
  }
  uint8_t* const bytes = reinterpret_cast<uint8_t*>(ws.row[1]);
  int32_t* to = p.codes + row * p.words;
  const int32_t* const end = to + p.words;
  IntVec sums{};
  for (int begin = 0; begin < p.inner; begin += kLongRow) {
    const int n = row_piece(p.inner, begin);
    sums += round_to_codes(p, read(begin, n), scale, n, bytes);
    const int step = p.format == CodeFormat::Trits ? kCodesPerTritWord : kCodesPerByteWord;
    for (int i = round_up(n, kLanes); i < round_up(n, 16); ++i) bytes[i] = 0;
    if (p.format == CodeFormat::Trits)
      for (int i = 0; i < n; i += step) *to++ = static_cast<int32_t>(trits_of(bytes + i));
    else
      __builtin_memcpy(to, bytes, size_t(divide_up(n, step)) * 4), to += divide_up(n, step);
  }
  if (p.format == CodeFormat::Bytes) {
    int32_t sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += sums[lane];
    *to++ = sum;
  }
  while (to < end) *to++ = 0;
}

inline void quantise_item(const QuantiseParams& p, int item, LongRowWorkspace& ws) {
  const PieceGrid grid = quantise_grid(p);
  for (int64_t row = grid.begin(item); row < grid.end(item); ++row) quantise_row(p, row, ws);
}

}  // namespace flashattn
