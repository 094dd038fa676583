// Rows of any length that are passed over several times: a piece of them at hand as float32, in whole vectors.
#pragma once
#include "simd/rows.h"
#include "simd/sums.h"

namespace flashattn {

// A row that is passed over several times stays in the workspace as float32 meanwhile, if it has at most so many elements:
// 32 KB, with which all arrays of a row lie in the second cache. A longer row is read again for each pass.
inline constexpr int kLongRow = 8192;

struct alignas(kCacheLine) LongRowWorkspace {
  // Loads would wait for the stores of an array that begins a multiple of 4 KB apart.
  float row[4][kLongRow + 80];
};

/** Elements of a row of `length` from `begin` on that are handled at a time. */
inline int row_piece(int64_t length, int64_t begin) {
  return static_cast<int>(length - begin < kLongRow ? length - begin : kLongRow);
}

/** How many pieces an item handles that have `elements` each, and items there are of `pieces`. */
struct PieceGrid {
  int64_t pieces, per_item;

  PieceGrid(int64_t pieces, int64_t elements)
      : pieces(pieces),
        per_item(kItemElements / (elements < 1 ? 1 : elements)) {
    if (per_item < 1) per_item = 1;
  }
  int items() const { return static_cast<int>((pieces + per_item - 1) / per_item); }
  int64_t begin(int item) const { return item * per_item; }
  int64_t end(int item) const { return pieces - begin(item) < per_item ? pieces : begin(item) + per_item; }

 private:
  static constexpr int64_t kItemElements = 1 << 14;
};

/**
 * n elements, `step` apart, as float32 in whole vectors: where they lie, or in `row`, with zeros up to the end of the last
 * vector.
 */
FLASHATTN_CALLED const float* read_floats(const uint8_t* from, DType dtype, int64_t step, int n, float* row /* [n] */) {
  if (step == 1) {
    if (dtype == DType::Float32 && n % kLanes == 0) return reinterpret_cast<const float*>(from);
    load_row(row, from, dtype, n);
    return row;
  }
  if (dtype == DType::Float32) {
    for (int i = 0; i < n; ++i) row[i] = reinterpret_cast<const float*>(from)[i * step];
  } else {
    uint16_t* const halves = reinterpret_cast<uint16_t*>(row) + round_up(n, kLanes);
    for (int i = 0; i < n; ++i) halves[i] = reinterpret_cast<const uint16_t*>(from)[i * step];
    load_row(row, halves, dtype, n);
  }
  for (int i = n; i % kLanes != 0; ++i) row[i] = 0;
  return row;
}

/** Where to write float32 in whole vectors for `write_floats`: to the place of the elements, or to `row`. */
inline float* floats_of(uint8_t* to, DType dtype, int64_t step, int n, float* row) {
  return step == 1 && dtype == DType::Float32 && n % kLanes == 0 ? reinterpret_cast<float*>(to) : row;
}

/** Elements `step` apart become the n floats that have been written to `floats_of` them. */
FLASHATTN_CALLED void write_floats(uint8_t* to, DType dtype, int64_t step, const float* from /* [n] */, int n) {
  if (reinterpret_cast<const uint8_t*>(from) == to) return;
  if (step == 1) return store_row(to, dtype, from, n);
  const int size = element_size(dtype);
  float vector[kLanes];
  for (int i = 0; i < n; i += kLanes) {
    store_row(vector, dtype, from + i, kLanes);
    for (int lane = 0; lane < kLanes && i + lane < n; ++lane) {
      const uint8_t* element = reinterpret_cast<const uint8_t*>(vector) + lane * size;
      uint8_t* place = to + (i + lane) * step * size;
      if (size == 4)
        __builtin_memcpy(place, element, 4);
      else
        __builtin_memcpy(place, element, 2);
    }
  }
}

}  // namespace flashattn
