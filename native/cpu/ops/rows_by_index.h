// Rows of a table by their index: how token ids become embeddings, and how gradients find their way back.
#pragma once
#include "simd/rows.h"
#include "simd/sums.h"
#include "structs/rows_by_index.h"

namespace flashattn {

namespace detail {

// An item adds to so many rows of the table at most, and there are so many items where the table has as many rows: some ids
// are named far more often than others.
constexpr int kMostOwnedRows = 512;
constexpr int kWantedRanges = 128;
constexpr int kListedValues = 4096;

}  // namespace detail

struct alignas(kCacheLine) IndexWorkspace {
  float sum[kRowElements], rest[kRowElements], row[kRowElements];
  int32_t counts[detail::kMostOwnedRows], places[detail::kMostOwnedRows], list[detail::kListedValues];
};

inline int take_rows_items(const RowsByIndexParams& p) { return divide_up(p.count, kRowsPerItem); }

FLASHATTN_CALLED void take_rows_item(const RowsByIndexParams& p, int item, RowWorkspace& ws) {
  const size_t size = element_size(p.table_dtype);
  const int begin = item * kRowsPerItem;
  for (int i = begin; i < begin + min(kRowsPerItem, p.count - begin); ++i) {
    uint8_t* to = bytes_of(p.values) + size_t(i) * p.values_row * size;
    const int32_t id = p.ids[i];
    if (static_cast<uint32_t>(id) < static_cast<uint32_t>(p.rows)) {
      __builtin_memcpy(to, bytes_of(p.table) + size_t(id) * p.table_row * size, size_t(p.row_elements) * size);
      continue;
    }
    fill(ws.row[0], __builtin_nanf(""), kRowElements);
    for (int e = 0; e < p.row_elements; e += kRowElements)
      store_row(to + e * size, p.table_dtype, ws.row[0], min(kRowElements, p.row_elements - e));
  }
}

namespace detail {

/** f(i, ids[i] - begin) for all ids in [begin, begin + rows), in the order of i. */
template <class F>
FLASHATTN_INLINE void for_ids(const RowsByIndexParams& p, int begin, int rows, F f) {
  const int32_t* ids = p.ids;
  const uint32_t first = static_cast<uint32_t>(begin), count = static_cast<uint32_t>(rows);
  int i = 0;
  for (; i + kLanes <= p.count; i += kLanes) {
    const UintVec row = load_bits(reinterpret_cast<const uint32_t*>(ids + i)) - first;
    const IntVec inside = row < count;
    if (!any(inside)) continue;
    for (int lane = 0; lane < kLanes; ++lane)
      if (inside[lane]) f(i + lane, static_cast<int>(row[lane]));
  }
  for (; i < p.count; ++i) {
    const uint32_t row = static_cast<uint32_t>(ids[i]) - first;
    if (row < count) f(i, static_cast<int>(row));
  }
}

/** How sums of rows are cut into items: by rows of the table and by columns. */
struct AddGrid {
  int owned, columns;  // rows of a range; column chunks

  explicit AddGrid(const RowsByIndexParams& p)
      : owned(max(1, min(kMostOwnedRows, divide_up(p.rows, kWantedRanges)))),
        columns(divide_up(p.row_elements, kRowElements)) {}
};

/** One row of the sum, some columns of it, with what rounding cuts off. */
struct RowSum {
  const RowsByIndexParams& p;
  IndexWorkspace& ws;
  int column, length;

  void add(const void* data, DType dtype, int64_t offset) {
    load_row(ws.row, bytes_of(data) + (offset + column) * element_size(dtype), dtype, length);
    for (int e = 0; e < length; e += kLanes) {
      Vec sum = load(ws.sum + e);
      store(ws.rest + e, load(ws.rest + e) + add_exactly(sum, load(ws.row + e)));
      store(ws.sum + e, sum);
    }
  }
  void begin(int row) {
    fill(ws.sum, 0.0f, length);
    fill(ws.rest, 0.0f, length);
    if (p.accumulate) add(p.table, p.table_dtype, row * p.table_row);
  }
  void add_value(int i) { add(p.values, p.values_dtype, i * p.values_row); }
  void end(int row) {
    for (int e = 0; e < length; e += kLanes) store(ws.sum + e, load(ws.sum + e) + load(ws.rest + e));
    store_row(bytes_of(p.table) + (row * p.table_row + column) * element_size(p.table_dtype), p.table_dtype, ws.sum,
              length);
  }
};

}  // namespace detail

inline int add_rows_items(const RowsByIndexParams& p) {
  const detail::AddGrid grid(p);
  return divide_up(p.rows, grid.owned) * grid.columns;
}

/** An item owns its rows: it looks for them among all ids, lists the places by row, and adds each row up in their order. */
FLASHATTN_CALLED void add_rows_item(const RowsByIndexParams& p, int item, IndexWorkspace& ws) {
  using namespace detail;
  const AddGrid grid(p);
  const int begin = item / grid.columns * grid.owned, owned = min(grid.owned, p.rows - begin);
  const int column = item % grid.columns * kRowElements;
  RowSum sum{p, ws, column, min(kRowElements, p.row_elements - column)};
  for (int row = 0; row < owned; ++row) ws.counts[row] = 0;
  for_ids(p, begin, owned, [&](int, int row) { ++ws.counts[row]; });
  for (int row = 0; row < owned;) {
    int end = row, listed = 0;
    for (; end < owned && listed + ws.counts[end] <= kListedValues; ++end) {
      ws.places[end] = listed;
      listed += ws.counts[end];
    }
    if (end == row) {  // more than can be listed
      sum.begin(begin + row);
      for_ids(p, begin + row, 1, [&](int i, int) { sum.add_value(i); });
      sum.end(begin + row++);
      continue;
    }
    const int first = row;
    if (listed > 0) for_ids(p, begin + first, end - first, [&](int i, int r) { ws.list[ws.places[first + r]++] = i; });
    for (int at = 0; row < end; ++row) {
      if (p.accumulate && ws.counts[row] == 0) continue;
      sum.begin(begin + row);
      for (int n = ws.counts[row]; n > 0; --n) sum.add_value(ws.list[at++]);
      sum.end(begin + row);
    }
  }
}

}  // namespace flashattn
