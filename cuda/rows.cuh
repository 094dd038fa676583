// Rows of tensors, each handled by a group of neighbouring lanes of a warp that hold kVector elements apiece.
#pragma once
#include "band.cuh"
#include "flat.cuh"
#include "vector.cuh"

namespace flashattn {

// Where a row is ------------------------------------------------------------------------------------------------------

/** Query row i of head h of batch entry b. */
struct Row {
  int b, h, i;
  int64_t lse;  // its place in lse and in what is laid out like lse
  bool exists;  // false for threads beyond the last row
};

/** Row `index` of [batch, heads, query_length] */
FLASHATTN_DEVICE Row row_at(int64_t index, int batch, int heads, int query_length) {
  const int64_t head = index / query_length;
  const int b = static_cast<int>(head / heads);
  return {b, static_cast<int>(head % heads), static_cast<int>(index % query_length), index, b < batch};
}

/** The same where a batch entry is a sequence, which may be shorter than query_length. */
FLASHATTN_DEVICE Row row_at(int64_t index, const AttentionParams& p) {
  Row row = row_at(index, p.batch, p.heads, p.query_length);
  if (!row.exists) return row;
  const Sequence s = sequence_of(p, row.b);
  row.exists = row.i < s.query_length;
  row.i += s.query_begin;
  row.lse = row.b * p.lse_batch + row.h * p.lse_head + row.i;
  return row;
}

template <class Params>
int64_t row_count(const Params& p) {
  return int64_t{p.batch} * p.heads * p.query_length;
}

// Lanes ---------------------------------------------------------------------------------------------------------------

/** What a row kernel is told. */
template <class Params>
struct RowLaunch {
  Params params;
  int32_t lanes;      // of a warp that share a row: a power of two
  int32_t sum_width;  // row stride of d_query_sum
};

/** Enough lanes for dims up to 32 * kVector = 256. */
inline int lanes_for(int dim) {
  int lanes = 1;
  while (lanes * kVector < dim) lanes *= 2;
  return lanes;
}

template <class Params>
cudaError_t launch_rows(const char* name, void (*kernel)(RowLaunch<Params>), int dim, cudaStream_t stream,
                        const Params& params, int sum_width = 0) {
  const int lanes = lanes_for(dim);
  return launch_flat(name, kernel, row_count(params) * lanes, stream, RowLaunch<Params>{params, lanes, sum_width});
}

/** The index of this lane's row. */
FLASHATTN_DEVICE int64_t row_index(int lanes) {
  return static_cast<int64_t>(ptx::block().x) * (kFlatThreads / lanes) + ptx::thread() / lanes;
}

/** The first of this lane's elements of the row. */
FLASHATTN_DEVICE int first_element(int lanes) { return (ptx::thread() & (lanes - 1)) * kVector; }

/** The sum over the lanes of a row, in each of them. Every lane of the warp takes part. */
FLASHATTN_DEVICE float sum_lanes(float x, int lanes) {
  for (int mask = lanes >> 1; mask > 0; mask >>= 1) x += ptx::shuffle_xor(x, mask);
  return x;
}

// Access --------------------------------------------------------------------------------------------------------------

/** Whether every row starts at a multiple of 16 bytes. */
FLASHATTN_DEVICE bool rows_are_aligned(const TensorRef& tensor) {
  const int64_t bytes = (tensor.batch | tensor.seq | tensor.head) * (tensor.dtype == DType::Float32 ? 4 : 2);
  return ((reinterpret_cast<uintptr_t>(tensor.data) | static_cast<uintptr_t>(bytes)) & (kAccessBytes - 1)) == 0;
}

FLASHATTN_DEVICE int64_t row_offset(const TensorRef& tensor, const Row& row) {
  return row.b * tensor.batch + row.i * tensor.seq + row.h * tensor.head;
}

/** x = elements [first, first + kVector) of a row of `dim`, zero beyond and where there is no row. */
FLASHATTN_DEVICE void load_row(float (&x)[kVector], const TensorRef& tensor, const Row& row, int first, int dim) {
  load_vector(x, tensor.dtype, tensor.data, row_offset(tensor, row) + first, row.exists ? dim - first : 0,
              rows_are_aligned(tensor));
}

FLASHATTN_DEVICE void store_row(const TensorRef& tensor, const Row& row, int first, int dim,
                                const float (&x)[kVector]) {
  store_vector(tensor.dtype, tensor.data, row_offset(tensor, row) + first, x, row.exists ? dim - first : 0,
               rows_are_aligned(tensor));
}

FLASHATTN_DEVICE float dot(const float (&a)[kVector], const float (&b)[kVector]) {
  float sum = 0;
  for (int i = 0; i < kVector; ++i) sum += a[i] * b[i];
  return sum;
}

FLASHATTN_DEVICE void multiply(float (&x)[kVector], float factor) {
  for (int i = 0; i < kVector; ++i) x[i] *= factor;
}

}  // namespace flashattn
