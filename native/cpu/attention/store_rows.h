// Keys and values go to their places in a cache.
#pragma once
#include "attention/rotary.h"
#include "simd/rows.h"
#include "structs/store_rows.h"

namespace flashattn {

inline int store_rows_items(const StoreRowsParams& p) { return divide_up(p.count, kRowsPerItem); }

FLASHATTN_CALLED void store_rows_item(const StoreRowsParams& p, int item, RowWorkspace& ws) {
  const size_t from_size = element_size(p.from.dtype), to_size = element_size(p.to.dtype);
  const int begin = item * kRowsPerItem;
  for (int i = begin; i < min(begin + kRowsPerItem, p.count); ++i) {
    if (p.rows[i] < 0) continue;
    for (int h = 0; h < p.heads; ++h) {
      const uint8_t* from = p.from.row(0, i, h);
      uint8_t* to = p.to.row(0, p.rows[i], h);
      // What is turned has at most kRowElements dims.
      for (int d = 0; d < p.dim; d += kRowElements) {
        const int length = min(kRowElements, p.dim - d);
        load_row(ws.row[0], from + d * from_size, p.from.dtype, length);
        if (p.pairs) {
          const size_t at = size_t(p.positions[i]) * p.pairs;
          detail::turn_row<Turn::Forth>(ws.row[0], p.angles.cos + at, p.angles.sin + at, p.pairs, p.interleaved);
        }
        store_row(to + d * to_size, p.to.dtype, ws.row[0], length);
      }
    }
  }
}

}  // namespace flashattn
