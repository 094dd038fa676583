// The row-wise launches of backward, before and after its main kernel.
#include "range.cuh"
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

/** x, or 0: what is not finite has no place in any range. */
FLASHATTN_DEVICE float finite_or_zero(float x) { return fabsf(x) < INFINITY ? fabsf(x) : 0.0f; }

/** The largest length of rows [first, end) in steps, of one head; for all lanes of a row. */
FLASHATTN_DEVICE float longest_row(const TensorRef& tensor, Row row, int begin, Range rows, int step, int lanes,
                                   int dim) {
  float longest = 0;
  for (int first = rows.begin; first < rows.end; first += step) {
    row.i = first + ptx::thread() % kWarpSize / lanes;
    row.exists = row.i < rows.end;
    row.i += begin;
    float x[kVector];
    load_row(x, tensor, row, first_element(lanes), dim);
    longest = fmaxf(longest, finite_or_zero(sqrtf(sum_lanes(dot(x, x), lanes))));
  }
  return longest;
}

/** A warp is a slice of a key/value head: see range.cuh. */
FLASHATTN_KERNEL(kFlatThreads) range_kernel(RowLaunch<AttentionParams> launch) {
  const AttentionParams& p = launch.params;
  const int slices = range_slices(p), lane = ptx::thread() % kWarpSize, rows = kWarpSize / launch.lanes;
  const int64_t index = flat_thread() / kWarpSize, head = index / slices;
  const int slice = static_cast<int>(index % slices), b = static_cast<int>(head / p.kv_heads);
  const int kv_head = static_cast<int>(head % p.kv_heads), group = p.heads / p.kv_heads, step = slices * rows;
  if (b >= p.batch) return;
  const Sequence s = sequence_of(p, b);

  HeadRange range{};
  range.value = longest_row(p.value, {b, kv_head, 0, 0, false}, s.key_begin, {slice * rows, s.key_length}, step,
                            launch.lanes, p.value_dim);
  for (int h = kv_head * group; h < (kv_head + 1) * group; ++h) {
    range.d_out = fmaxf(range.d_out, longest_row(p.d_out, {b, h, 0, 0, false}, s.query_begin,
                                                 {slice * rows, s.query_length}, step, launch.lanes, p.value_dim));
    const float* delta = p.row_terms + b * p.lse_batch + h * p.lse_head + s.query_begin;
    for (int i = slice * kWarpSize + lane; i < s.query_length; i += slices * kWarpSize)
      range.delta = fmaxf(range.delta, finite_or_zero(ptx::load_global(delta + i)));
  }
  range = {warp_max(range.d_out), warp_max(range.value), warp_max(range.delta)};
  if (lane > 0) return;
  HeadRange* to = head_ranges(p) + index;
  ptx::store_global(&to->d_out, range.d_out);
  ptx::store_global(&to->value, range.value);
  ptx::store_global(&to->delta, range.delta);
}

/** Computes the rows that a lane has found a NaN in again. A whole warp. */
template <bool HasExtras>
FLASHATTN_DEVICE void repair_rows(const AttentionParams& p, const Row& row, bool has_nan) {
  for (uint32_t left = ptx::ballot(has_nan); left;) {
    const int leader = ptx::lowest_bit(left);
    const int b = ptx::shuffle(row.b, leader), h = ptx::shuffle(row.h, leader), i = ptx::shuffle(row.i, leader);
    ptx::sync_warp();
    with_element(p.d_query.dtype, [&](auto element) {
      repair_d_query<decltype(element), HasExtras>(p, b, h, i - sequence_of(p, b).query_begin);
    });
    left &= ~ptx::ballot(row.b == b && row.h == h && row.i == i);
  }
}

template <bool HasExtras>
FLASHATTN_KERNEL(kFlatThreads, 4)
d_query_kernel(const FLASHATTN_CONSTANT RowLaunch<AttentionParams> launch) {
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
  repair_rows<HasExtras>(p, row, has_nan);
}

}  // namespace

cudaError_t launch_backward_rows(const AttentionParams& p, cudaStream_t stream) {
  if (const cudaError_t error = launch_rows("backward_rows", delta_kernel, p.value_dim, stream, p)) return error;
  if (p.d_out.dtype != DType::Float16) return cudaSuccess;
  const int64_t warps = static_cast<int64_t>(p.batch) * p.kv_heads * range_slices(p);
  return launch_flat("backward_range", range_kernel, warps * kWarpSize, stream,
                     RowLaunch<AttentionParams>{p, lanes_for(p.value_dim), 0});
}

cudaError_t launch_backward_finish(const AttentionParams& p, cudaStream_t stream) {
  // What calls score_mod reserves memory for its registers.
  const auto kernel = p.score_mod.program ? d_query_kernel<true> : d_query_kernel<false>;
  return launch_rows("backward_finish", kernel, p.head_dim, stream, p, head_dim_bucket(p));
}

}  // namespace flashattn
