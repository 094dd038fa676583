// Singular values and vectors of small matrices: one-sided Jacobi rotations make the rows orthogonal (Hestenes, "Inversion of
// Matrices by Biorthogonalization and Related Results", 1958), which finds small values as exactly as large ones.
#pragma once
#include "simd/rows.h"
#include "structs/svd.h"

namespace flashattn {

inline int svd_items(const SvdParams& p) { return static_cast<int>(p.matrices); }

namespace detail {

struct Products {
  float first, second, both;
};

/** |a|^2, |b|^2 and a b, each in two sums a lane. */
FLASHATTN_CALLED Products products_of(const float* a /* [n] */, const float* b /* [n] */, int n) {
  Vec first[2] = {}, second[2] = {}, both[2] = {};
  int i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes)
    for (int k = 0; k < 2; ++k) {
      const Vec x = load(a + i + k * kLanes), y = load(b + i + k * kLanes);
      first[k] = multiply_add(x, x, first[k]);
      second[k] = multiply_add(y, y, second[k]);
      both[k] = multiply_add(x, y, both[k]);
    }
  Products sums = {sum_lanes(first[0] + first[1]), sum_lanes(second[0] + second[1]), sum_lanes(both[0] + both[1])};
  for (; i < n; ++i) {
    sums.first += a[i] * a[i];
    sums.second += b[i] * b[i];
    sums.both += a[i] * b[i];
  }
  return sums;
}

/** a, b = c a - s b, s a + c b */
FLASHATTN_CALLED void rotate_rows(float* a /* [n] */, float* b /* [n] */, int n, float c, float s) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Vec x = load(a + i), y = load(b + i);
    store(a + i, x * splat(c) - y * splat(s));
    store(b + i, multiply_add(x, splat(s), y * splat(c)));
  }
  for (; i < n; ++i) {
    const float x = a[i], y = b[i];
    a[i] = c * x - s * y;
    b[i] = s * x + c * y;
  }
}

/** to += factor * x */
FLASHATTN_CALLED void add_scaled(float* to /* [n] */, const float* x /* [n] */, int n, float factor) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, multiply_add(load(x + i), splat(factor), load(to + i)));
  for (; i < n; ++i) to[i] += factor * x[i];
}

inline void scale_row(float* x /* [n] */, int64_t n, float factor) {
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

inline void swap_rows(float* a /* [n] */, float* b /* [n] */, int n) {
  for (int i = 0; i < n; ++i) {
    const float x = a[i];
    a[i] = b[i];
    b[i] = x;
  }
}

/** Turns every two rows, and those of `others` with them, until all are orthogonal. */
inline void orthogonalise(float* rows /* [count, length] */, float* others /* [count, count] */, int count,
                          int length) {
  const float tolerance = 0x1p-24f * max(8.0f, __builtin_sqrtf(static_cast<float>(length)));
  bool turned = true;
  for (int sweep = 0; turned && sweep < kSvdMostSweeps; ++sweep) {
    turned = false;
    for (int i = 0; i < count; ++i)
      for (int j = i + 1; j < count; ++j) {
        float* const a = rows + size_t(i) * length;
        float* const b = rows + size_t(j) * length;
        const Products p = products_of(a, b, length);
        if (!(__builtin_fabsf(p.both) > tolerance * __builtin_sqrtf(p.first) * __builtin_sqrtf(p.second))) continue;
        turned = true;
        const float zeta = (p.second - p.first) / (2 * p.both);
        const float size = __builtin_fabsf(zeta);
        const float t = __builtin_copysignf(1 / (size + __builtin_sqrtf(1 + size * size)), zeta);
        const float c = 1 / __builtin_sqrtf(1 + t * t);
        rotate_rows(a, b, length, c, c * t);
        rotate_rows(others + size_t(i) * count, others + size_t(j) * count, count, c, c * t);
      }
  }
}

/** A row that is orthogonal to those before it: what is left of a unit vector, one of which most is. */
inline void complete_row(float* rows /* [at + 1, length] */, int at, int length) {
  float* const row = rows + size_t(at) * length;
  for (int k = 0; k < length; ++k) row[k] = 0;
  for (int j = 0; j < at; ++j)
    for (int k = 0; k < length; ++k) {
      const float x = rows[size_t(j) * length + k];
      row[k] += x * x;
    }
  int least = 0;
  for (int k = 1; k < length; ++k)
    if (row[k] < row[least]) least = k;
  for (int k = 0; k < length; ++k) row[k] = k == least ? 1.0f : 0.0f;
  // Once more: what rounding has left of the others is as large as what little may remain.
  for (int pass = 0; pass < 2; ++pass)
    for (int j = 0; j < at; ++j) {
      const float* const other = rows + size_t(j) * length;
      add_scaled(row, other, length, -products_of(row, other, length).both);
    }
  scale_row(row, length, 1 / __builtin_sqrtf(products_of(row, row, length).first));
}

/** 2^-e for the largest of the numbers, between 2^e and 2^(e + 1) in size; 0 where one is no number or infinite. */
inline float scale_of(const float* x /* [n] */, int64_t n) {
  float most = 0;
  bool finite = true;
  for (int64_t i = 0; i < n; ++i) {
    const float size = __builtin_fabsf(x[i]);
    finite = finite && size <= 0x1.fffffep127f;
    if (size > most) most = size;
  }
  if (!finite) return 0;
  uint32_t bits;
  __builtin_memcpy(&bits, &most, 4);
  const int exponent = min(126, max(-126, static_cast<int>(bits >> 23) - 127));
  bits = static_cast<uint32_t>(127 - exponent) << 23;
  float scale;
  __builtin_memcpy(&scale, &bits, 4);
  return scale;
}

}  // namespace detail

/** One matrix. NaN or Infinity makes NaN of all of it. */
FLASHATTN_CALLED void svd_item(const SvdParams& p, int item) {
  using namespace detail;
  const int count = p.count, length = p.length;
  float* const rows = p.vectors + size_t(item) * count * length;
  float* const others = p.others + size_t(item) * count * count;
  float* const values = p.values + size_t(item) * count;
  const int64_t elements = int64_t{count} * length;
  const float scale = scale_of(rows, elements);
  if (scale == 0) {
    const float nan = __builtin_nanf("");
    for (int64_t i = 0; i < elements; ++i) rows[i] = nan;
    for (int i = 0; i < count * count; ++i) others[i] = nan;
    for (int i = 0; i < count; ++i) values[i] = nan;
    return;
  }
  scale_row(rows, elements, scale);
  for (int i = 0; i < count; ++i)
    for (int j = 0; j < count; ++j) others[size_t(i) * count + j] = i == j ? 1.0f : 0.0f;
  orthogonalise(rows, others, count, length);
  for (int i = 0; i < count; ++i) {
    float* const row = rows + size_t(i) * length;
    float* const other = others + size_t(i) * count;
    // What rounding has made of the length of both.
    const float size = __builtin_sqrtf(products_of(other, other, count).first);
    scale_row(other, count, 1 / size);
    values[i] = __builtin_sqrtf(products_of(row, row, length).first) / size;
    if (values[i] < kSvdLeastValue) values[i] = 0;
  }
  for (int i = 0; i < count; ++i) {
    int best = i;
    for (int j = i + 1; j < count; ++j)
      if (values[j] > values[best]) best = j;
    if (best != i) {
      swap_rows(values + i, values + best, 1);
      swap_rows(rows + size_t(i) * length, rows + size_t(best) * length, length);
      swap_rows(others + size_t(i) * count, others + size_t(best) * count, count);
    }
    float* const row = rows + size_t(i) * length;
    if (values[i] > 0)
      scale_row(row, length, 1 / __builtin_sqrtf(products_of(row, row, length).first));
    else
      complete_row(rows, i, length);
    values[i] /= scale;
  }
}

}  // namespace flashattn
