// Rows moved, copied and added up: how patterns that regroup tokens (windows, axes, frames, segments) reach attention.
#pragma once
#include "simd/rows.h"
#include "structs/gather.h"

namespace flashattn {

inline int gather_items(const GatherParams& p) { return p.batch * divide_up(p.rows, kRowsPerItem); }

FLASHATTN_CALLED void gather_row(const GatherParams& p, int b, int row, RowWorkspace& ws) {
  const size_t size = element_size(p.dtype);
  const uint8_t* source = bytes_of(p.source);
  uint8_t* result = bytes_of(p.result) + (size_t(b) * p.rows + row) * p.row_elements * size;
  for (int begin = 0; begin < p.row_elements; begin += kRowElements) {
    const int length = min(kRowElements, p.row_elements - begin);
    float* sum = ws.row[0];
    fill(sum, 0.0f, length);
    for (int at = p.lists.offsets[row]; at < p.lists.offsets[row + 1]; ++at) {
      const size_t from = size_t(b) * p.source_batch + size_t(p.lists.indices[at]) * p.source_row + begin;
      load_row(ws.row[1], source + from * size, p.dtype, length);
      for (int i = 0; i < length; i += kLanes) store(sum + i, load(sum + i) + load(ws.row[1] + i));
    }
    for (int i = 0; i < length; i += kLanes) store(sum + i, load(sum + i) * splat(p.scale));
    store_row(result + begin * size, p.dtype, sum, length);
  }
}

inline void gather_item(const GatherParams& p, int item, RowWorkspace& ws) {
  const int chunks = divide_up(p.rows, kRowsPerItem), begin = item % chunks * kRowsPerItem;
  for (int row = begin; row < min(begin + kRowsPerItem, p.rows); ++row) gather_row(p, item / chunks, row, ws);
}

}  // namespace flashattn
