// Operations along one axis: a line is all elements that differ in their place on it alone.
#pragma once
#include "types.h"

namespace flashattn {

/** Line l is of row l / inner and column l % inner. Everything is contiguous. */
struct LinesParams {
  Pointer<void> data;        // [lines / inner, length, inner]
  Pointer<void> others;      // [lines / inner, count, inner]: as many of each line; null: there are none
  Pointer<int32_t> indices;  // [lines / inner, count, inner]: places on lines
  Pointer<uint64_t> keys;    // [so many lines, 2 * length]: scratch memory of a sort
  DType dtype, others_dtype;
  int32_t first, lines;  // which lines, of more: of a sort
  int32_t length, count, inner;
  int32_t reversed;  // 1: a sort with the largest first, a sum from the end on
};
FLASHATTN_FIELDS(LinesParams, data, others, indices, keys, dtype, others_dtype, first, lines, length, count, inner,
                 reversed);

}  // namespace flashattn
