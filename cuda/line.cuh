// Lines along one axis of a contiguous array, element by element.
#pragma once
#include "structs/lines.h"
#include "vector.cuh"

namespace flashattn {

/** Where a line begins in data and in what has `count` elements of each line. */
struct LinePlace {
  int64_t data, others;

  FLASHATTN_DEVICE LinePlace(const LinesParams& p, int64_t line) {
    const int64_t row = line / p.inner, column = line % p.inner;
    data = row * p.length * p.inner + column;
    others = row * p.count * p.inner + column;
  }
};

FLASHATTN_DEVICE float load_element(DType dtype, const void* data, int64_t at) {
  float x[kVector];
  load_vector(x, dtype, data, at, 1, false);
  return x[0];
}

FLASHATTN_DEVICE void store_element(DType dtype, void* data, int64_t at, float value) {
  const float x[kVector] = {value};
  store_vector(dtype, data, at, x, 1, false);
}

}  // namespace flashattn
