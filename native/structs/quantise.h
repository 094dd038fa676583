// Whole numbers of few bits in words: rows of codes, which x is about codes / scale of.
#pragma once
#include "types.h"

namespace flashattn {

/**
 * How codes lie in the words of a row. Bytes: code 4w + i is byte i of word w; behind the words of codes comes their sum.
 * Trits, from -1 to 1: code 16w + 4q + i, plus 1, is bits 8i + 2q and 8i + 2q + 1 of word w. What is left of a row is zero.
 */
enum class CodeFormat : int32_t { Bytes, Trits };

constexpr int kCodesPerByteWord = 4, kCodesPerTritWord = 16;

struct QuantiseParams {
  Pointer<const void> x;       // [rows, inner], rows contiguous
  Pointer<const float> scale;  // [1], of all rows; null: of each row 127 / max(max|x|, least)
  Pointer<int32_t> codes;      // [rows, words]: round(x * scale), ties to even, from `smallest` to `largest`
  Pointer<float> row_scale;    // [rows], written where scale is null; NaN where a row has a number that is not finite
  int64_t x_row;               // stride
  DType dtype;
  int32_t rows, inner, words;
  CodeFormat format;
  float least, smallest, largest;
};
FLASHATTN_FIELDS(QuantiseParams, x, scale, codes, row_scale, x_row, dtype, rows, inner, words, format, least, smallest,
                 largest);

}  // namespace flashattn
