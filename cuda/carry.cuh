// Sums in registers that are carried to memory before they have had too many terms: every addition to a sum rounds by
// up to half a unit of it, and over a million terms of one sign that would show. With a carry after every kCarryRows
// rows, a sum of N has seen kCarryRows / 16 + N / kCarryRows additions instead of N / 16. Float32 alone: 16-bit results
// have no room for it, and are rounded more coarsely anyway.
#pragma once
#include "tile.cuh"

namespace flashattn {

/** Keys, or queries, whose sums stay in registers. */
inline constexpr int kCarryRows = 2048;

template <class Element>
inline constexpr bool kCarries = sizeof(typename Element::Storage) == 4;

/** A row of a result that holds sums for now, from a column on. */
struct CarryRow {
  float* data;
  int columns;  // that there are; none of a row beyond the last

  /** `row` of `count` in `rows`. Made anew for each row: all addresses at once would not fit in registers. */
  FLASHATTN_DEVICE CarryRow(const Rows& rows, int row, int count, int column)
      : data(ptx::opaque(reinterpret_cast<float*>(rows.data + row * rows.stride) + column)),
        columns(row < count ? rows.dim - column : 0) {}

  /** The sum in memory becomes `factor` times itself and `sum`, which starts again. `first`: none is in memory yet. */
  FLASHATTN_DEVICE void carry(int column, float& sum, float factor, bool first) const {
    if (column < columns)
      ptx::store_global(data + column, first ? sum : ptx::load_global(data + column) * factor + sum);
    sum = 0.0f;
  }

  /** Brings back what was carried. */
  FLASHATTN_DEVICE void bring_back(int column, float& sum, float factor) const {
    if (column < columns) sum += ptx::load_global(data + column) * factor;
  }
};

}  // namespace flashattn
