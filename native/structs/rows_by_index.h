// Rows of a table by their index: values[i] = table[ids[i]], and its adjoint, table[v] = the sum of values[i] where ids[i] is v.
#pragma once
#include "types.h"

namespace flashattn {

struct RowsByIndexParams {
  Pointer<void> table;            // [rows, row_elements]
  Pointer<void> values;           // [count, row_elements]
  Pointer<const int32_t> ids;     // [count]; what is not in [0, rows) names no row
  int64_t table_row, values_row;  // strides; the elements of a row lie side by side
  DType table_dtype, values_dtype;
  int32_t rows, count, row_elements;
  int32_t accumulate;  // 1: rows of the table are added to, in float32
};
FLASHATTN_FIELDS(RowsByIndexParams, table, values, ids, table_row, values_row, table_dtype, values_dtype, rows, count,
                 row_elements, accumulate);

}  // namespace flashattn
