// The row-wise launches of backward, before and after its main kernel.
#include "rows.cuh"
#include "sm80/backward_parts.h"
#include "sm80/repair_backward.cuh"

namespace flashattn {

namespace {

FLASHATTN_KERNEL(kFlatThreads) delta_kernel(RowLaunch<AttentionParams> launch) {
  const AttentionParams& p = launch.params;
  const Row row = row_at(row_index(launch.lanes), p);
  const int first = first_element(launch.lanes);
  float out[kVector], d_out[kVector];
  load_row(out, p.out, row, first, p.value_dim);
  load_row(d_out, p.d_out, row, first, p.value_dim);
  const float sum = sum_lanes(dot(out, d_out), launch.lanes);
  if (row.exists && first == 0)
    ptx::store_global(p.row_terms + row.lse, sum - (p.d_lse ? ptx::load_global(p.d_lse + row.lse) : 0.0f));
}

/** Computes the rows that a lane has found a NaN in again. A whole warp. */
FLASHATTN_DEVICE void repair_rows(const AttentionParams& p, const Row& row, bool has_nan) {
  for (uint32_t left = ptx::ballot(has_nan); left;) {
    const int leader = ptx::lowest_bit(left);
    const int b = ptx::shuffle(row.b, leader), h = ptx::shuffle(row.h, leader), i = ptx::shuffle(row.i, leader);
    ptx::sync_warp();
    with_element(p.d_query.dtype,
                 [&](auto element) { repair_d_query<decltype(element)>(p, b, h, i - sequence_of(p, b).query_begin); });
    left &= ~ptx::ballot(row.b == b && row.h == h && row.i == i);
  }
}

FLASHATTN_KERNEL(kFlatThreads, 4) d_query_kernel(const FLASHATTN_CONSTANT RowLaunch<AttentionParams> launch) {
  const AttentionParams& p = launch.params;
  const Row row = row_at(row_index(launch.lanes), p);
  const int first = first_element(launch.lanes);
  float x[kVector] = {};
  if (row.exists && first < p.head_dim) {
    load_vector<Float32>(x, p.d_query_sum + row.lse * launch.sum_width + first, p.head_dim - first, true);
    multiply(x, p.scale);
    store_row(p.d_query, row, first, p.head_dim, x);
  }
  bool has_nan = false;
  for (const float value : x) has_nan = has_nan || value != value;
  repair_rows(p, row, has_nan);
}

}  // namespace

cudaError_t launch_backward_rows(const AttentionParams& p, cudaStream_t stream) {
  return launch_rows("backward_rows", delta_kernel, p.value_dim, stream, p);
}

cudaError_t launch_backward_finish(const AttentionParams& p, cudaStream_t stream) {
  return launch_rows("backward_finish", d_query_kernel, p.head_dim, stream, p, head_dim_bucket(p));
}

}  // namespace flashattn
