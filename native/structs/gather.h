// Rows moved, copied and added up: result[b, row] = scale * the sum of source[b, r] over the rows r of list `row`.
#pragma once
#include "types.h"

namespace flashattn {

struct GatherParams {
  Pointer<const void> source;        // [batch, source rows, row_elements]
  Pointer<void> result;              // [batch, rows, row_elements], contiguous
  int64_t source_batch, source_row;  // strides
  BlockLists lists;                  // [rows] lists of source rows
  DType dtype;                       // of both
  int32_t batch, rows, row_elements;
  float scale;
  int32_t reserved;
};
FLASHATTN_FIELDS(GatherParams, source, result, source_batch, source_row, lists, dtype, batch, rows, row_elements, scale,
                 reserved);

}  // namespace flashattn
