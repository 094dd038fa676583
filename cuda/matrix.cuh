// Matrices of a batch with any strides: where those of an entry lie, and eight neighbouring columns of a row at a time.
#pragma once
#include "structs/matmul.h"
#include "vector.cuh"

namespace flashattn {

/** An entry of a batch, by its coordinates. */
struct BatchEntry {
  int at[4];

  FLASHATTN_DEVICE BatchEntry(const MatmulParams& p, int index) {
#pragma unroll
    for (int axis = 3; axis >= 0; --axis) {
      const int size = static_cast<int>(p.batch[axis]);
      at[axis] = index % size;
      index /= size;
    }
  }

  /** Where the entry's matrix begins, in elements. */
  FLASHATTN_DEVICE int64_t offset(const MatrixRef& matrix) const {
    return at[0] * matrix.batch[0] + at[1] * matrix.batch[1] + at[2] * matrix.batch[2] + at[3] * matrix.batch[3];
  }
};

struct Matrix {
  uint8_t* data;        // [rows, columns], null: none
  int64_t row, column;  // strides in elements
  DType dtype;
  bool aligned;  // columns are neighbours, and every row starts at a multiple of 16 bytes

  FLASHATTN_DEVICE Matrix(const MatrixRef& matrix, const BatchEntry& entry)
      : data(static_cast<uint8_t*>(matrix.data)),
        row(matrix.row),
        column(matrix.column),
        dtype(matrix.dtype) {
    const int64_t bytes = element_size(dtype);
    if (data) data += entry.offset(matrix) * bytes;
    aligned = column == 1 && ((reinterpret_cast<uintptr_t>(data) | static_cast<uint64_t>(row * bytes)) & 15) == 0;
  }

  template <class Element>
  FLASHATTN_DEVICE float get(int i, int j) const {
    const auto* from = reinterpret_cast<const typename Element::Storage*>(data) + i * row + j * column;
    return Element::load(ptx::load_global(from));
  }

  /** x = columns [j, j + kVector) of row i; what is not among `count` of them is zero. j is a multiple of kVector. */
  FLASHATTN_DEVICE void load(float (&x)[kVector], int i, int j, int count) const {
    const int64_t first = i * row + j * column;
    if (aligned) return load_vector(x, dtype, data, first, count, true);
    with_element(dtype, [&](auto element) {
      using Element = decltype(element);
      const auto* from = reinterpret_cast<const typename Element::Storage*>(data) + first;
      for (int e = 0; e < kVector; ++e) x[e] = e < count ? Element::load(ptx::load_global(from + e * column)) : 0.0f;
    });
  }

  FLASHATTN_DEVICE void store(int i, int j, const float (&x)[kVector], int count) const {
    const int64_t first = i * row + j * column;
    if (aligned) return store_vector(dtype, data, first, x, count, true);
    with_element(dtype, [&](auto element) {
      using Element = decltype(element);
      auto* to = reinterpret_cast<typename Element::Storage*>(data) + first;
      for (int e = 0; e < kVector; ++e)
        if (e < count) ptx::store_global(to + e * column, Element::store(x[e]));
    });
  }
};

}  // namespace flashattn
