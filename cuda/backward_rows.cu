// The row-wise launches of backward, before and after its main kernel.
#include "rows.cuh"
#include "sm80/backward_parts.h"

namespace flashattn {

namespace {

FLASHATTN_KERNEL(kFlatThreads) delta_kernel(RowLaunch<AttentionParams> launch) {
  const AttentionParams& p = launch.params;
  const Row row = row_at(row_index(launch.lanes), p);
  const int first = first_element(launch.lanes);
  float out[kVector], d_out[kVector];
  load_row(out, p.out, p.dtype, row, first, p.value_dim);
  load_row(d_out, p.d_out, p.dtype, row, first, p.value_dim);
  const float sum = sum_lanes(dot(out, d_out), launch.lanes);
  if (row.exists && first == 0)
    ptx::store_global(p.delta + row.lse, sum - (p.d_lse ? ptx::load_global(p.d_lse + row.lse) : 0.0f));
}

FLASHATTN_KERNEL(kFlatThreads) d_query_kernel(RowLaunch<AttentionParams> launch) {
  const AttentionParams& p = launch.params;
  const Row row = row_at(row_index(launch.lanes), p);
  const int first = first_element(launch.lanes);
  if (!row.exists || first >= p.head_dim) return;
  float x[kVector];
  load_vector<Float32>(x, p.d_query_sum + row.lse * launch.sum_width + first, p.head_dim - first, true);
  multiply(x, p.scale);
  store_row(p.d_query, p.dtype, row, first, p.head_dim, x);
}

}  // namespace

cudaError_t launch_backward_rows(const AttentionParams& p, cudaStream_t stream) {
  return launch_rows("backward_rows", delta_kernel, p.value_dim, stream, p);
}

cudaError_t launch_backward_finish(const AttentionParams& p, cudaStream_t stream) {
  return launch_rows("backward_finish", d_query_kernel, p.head_dim, stream, p, head_dim_bucket(p));
}

}  // namespace flashattn
