// The exact merge of attention over disjoint key sets: the algebra behind split-KV, ring and tree attention.
//
//   lse = log sum_p e^lse_p      out = sum_p e^(lse_p - lse) out_p
#include "launch.h"
#include "rows.cuh"
#include "sum.cuh"

namespace flashattn {

namespace {

constexpr float kLog2E = 1.4426950408889634f;

FLASHATTN_DEVICE TensorRef load_tensor(const TensorRef* tensor) {
  return {ptx::load_global(&tensor->data), ptx::load_global(&tensor->batch), ptx::load_global(&tensor->seq),
          ptx::load_global(&tensor->head), ptx::load_global(&tensor->dtype), 0};
}

FLASHATTN_DEVICE float load_lse(const MergePart* part, const Row& row) {
  return row.exists ? ptx::load_global(ptx::load_global(&part->lse) + row.lse) : -INFINITY;
}

/** e^(lse_p - lse), 0 for an empty part (also of an empty row). */
FLASHATTN_DEVICE float part_weight(float lse_part, float lse) {
  return lse_part == -INFINITY ? 0.0f : ptx::exp2((lse_part - lse) * kLog2E);
}

FLASHATTN_DEVICE float sum_weights(const MergeParams& p, const Row& row, float lse) {
  float sum = 0, lost = 0;
  for (int i = 0; i < p.part_count; ++i) add_compensated(sum, lost, part_weight(load_lse(p.parts + i, row), lse));
  return sum - lost;
}

FLASHATTN_KERNEL(kFlatThreads) merge_kernel(RowLaunch<MergeParams> launch) {
  const MergeParams& p = launch.params;
  const Row row = row_at(row_index(launch.lanes), p.batch, p.heads, p.query_length);
  const int first = first_element(launch.lanes);

  float maximum = -INFINITY;
  for (int i = 0; i < p.part_count; ++i) {
    const float lse = load_lse(p.parts + i, row);
    if (!(lse <= maximum)) maximum = lse;  // a NaN reaches the sum of weights in any case
  }

  const float sum = sum_weights(p, row, maximum);

  // Weights that add up to 1, so that merging values never leaves their range.
  float merged[kVector] = {}, lost_of_merged[kVector] = {}, out[kVector];
  for (int i = 0; i < p.part_count; ++i) {
    const MergePart* part = p.parts + i;
    const float weight = sum == 0 ? 0.0f : part_weight(load_lse(part, row), maximum) / sum;
    if (weight == 0) continue;  // whatever the part's out holds
    load_row(out, load_tensor(&part->out), row, first, p.value_dim);
    for (int e = 0; e < kVector; ++e) add_compensated(merged[e], lost_of_merged[e], weight * out[e]);
  }
  for (int e = 0; e < kVector; ++e) merged[e] -= lost_of_merged[e];
  store_row(p.out, row, first, p.value_dim, merged);
  if (row.exists && first == 0)
    ptx::store_global(p.lse + row.lse, sum > 0 ? maximum + ptx::log(sum) : sum == 0 ? -INFINITY : sum);
}

/** With w = e^(lse_p - lse): d_out_p = w d_out, d_lse_p = w (d_out . (out_p - out) + d_lse). */
FLASHATTN_KERNEL(kFlatThreads) merge_backward_kernel(RowLaunch<MergeParams> launch) {
  const MergeParams& p = launch.params;
  const Row row = row_at(row_index(launch.lanes), p.batch, p.heads, p.query_length);
  const int first = first_element(launch.lanes);

  float d_out[kVector], out[kVector], part_out[kVector];
  load_row(d_out, p.d_out, row, first, p.value_dim);
  load_row(out, p.out, row, first, p.value_dim);
  const float lse = row.exists ? ptx::load_global(p.lse + row.lse) : 0.0f;
  const float d_lse = p.d_lse && row.exists ? ptx::load_global(p.d_lse + row.lse) : 0.0f;
  // 1, but for the rounding of lse, which is large where lse is.
  const float sum = sum_weights(p, row, lse);

  for (int i = 0; i < p.part_count; ++i) {
    const MergePart* part = p.parts + i;
    const float weight = sum == 0 ? 0.0f : part_weight(load_lse(part, row), lse) / sum;
    load_row(part_out, load_tensor(&part->out), row, first, p.value_dim);
    for (int e = 0; e < kVector; ++e) part_out[e] -= out[e];
    const float d_weight = sum_lanes(dot(d_out, part_out), launch.lanes) + d_lse;

    float d_part[kVector];
    for (int e = 0; e < kVector; ++e) d_part[e] = weight == 0 ? 0.0f : d_out[e] * weight;
    store_row(load_tensor(&part->d_out), row, first, p.value_dim, d_part);
    if (row.exists && first == 0)
      ptx::store_global(ptx::load_global(&part->d_lse) + row.lse, weight == 0 ? 0.0f : weight * d_weight);
  }
}

}  // namespace

cudaError_t launch_merge(const MergeParams& p, const DeviceLimits&, cudaStream_t stream) {
  return launch_rows("merge", merge_kernel, p.value_dim, stream, p);
}

cudaError_t launch_merge_backward(const MergeParams& p, const DeviceLimits&, cudaStream_t stream) {
  return launch_rows("merge_backward", merge_backward_kernel, p.value_dim, stream, p);
}

}  // namespace flashattn
