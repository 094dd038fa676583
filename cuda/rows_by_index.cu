// Rows of a table by their index: how token ids become embeddings, and how gradients find their way back.
#include "flat.cuh"
#include "launch.h"
#include "sum.cuh"
#include "tile.cuh"
#include "vector.cuh"

namespace flashattn {

namespace {

struct RowsByIndexLaunch {
  RowsByIndexParams params;
  bool aligned;   // whether every kVector elements are one access
  int32_t steps;  // of so many threads, or warps, a row is made
};

FLASHATTN_KERNEL(kFlatThreads) take_rows_kernel(RowsByIndexLaunch launch) {
  const RowsByIndexParams& p = launch.params;
  const int64_t thread = flat_thread(), i = thread / launch.steps;
  if (i >= p.count) return;
  const int step = launch.aligned ? kVector : 1;
  const int64_t first = thread % launch.steps * step, count = launch.aligned ? p.row_elements - first : 1;
  const int32_t id = ptx::load_global(p.ids + i);
  float x[kVector];
  for (int e = 0; e < kVector; ++e) x[e] = NAN;
  if (static_cast<uint32_t>(id) < static_cast<uint32_t>(p.rows))
    load_vector(x, p.table_dtype, p.table, id * p.table_row + first, count, launch.aligned);
  store_vector(p.table_dtype, p.values, i * p.values_row + first, x, count, launch.aligned);
}

// Rows that a lane has under way at once.
constexpr int kBatch = 4;

/** A warp owns some columns of one row: it looks for its row among all ids, and adds up in their order. */
FLASHATTN_KERNEL(kFlatThreads) add_rows_kernel(RowsByIndexLaunch launch) {
  const RowsByIndexParams& p = launch.params;
  const int64_t warp = flat_thread() / kWarpSize, row = warp / launch.steps;
  if (row >= p.rows) return;
  const int lane = ptx::thread() % kWarpSize;
  const int64_t first = (warp % launch.steps * kWarpSize + lane) * kVector, columns = p.row_elements - first;

  float sum[kVector] = {}, lost[kVector] = {};
  bool found = !p.accumulate;
  if (p.accumulate) load_vector(sum, p.table_dtype, p.table, row * p.table_row + first, columns, launch.aligned);
  for (int64_t begin = 0; begin < p.count; begin += kBatch * kWarpSize) {
    uint32_t masks[kBatch];
    for (int b = 0; b < kBatch; ++b) {
      const int64_t i = begin + b * kWarpSize + lane;
      masks[b] = ptx::ballot(i < p.count && ptx::load_global(p.ids + i) == row);
    }
    for (int b = 0; b < kBatch; ++b) {
      uint32_t mask = masks[b];
      found |= mask != 0;
      while (mask != 0) {
        float x[kBatch][kVector];
        int count = 0;
        for (int n = 0; n < kBatch; ++n) {
          if (mask == 0) continue;
          const int64_t i = begin + b * kWarpSize + ptx::lowest_bit(mask);
          mask &= mask - 1;
          load_vector(x[n], p.values_dtype, p.values, i * p.values_row + first, columns, launch.aligned);
          count = n + 1;
        }
        for (int n = 0; n < kBatch; ++n)
          for (int e = 0; e < kVector; ++e)
            if (n < count) add_compensated(sum[e], lost[e], x[n][e]);
      }
    }
  }
  if (!found) return;
  for (int e = 0; e < kVector; ++e) sum[e] -= lost[e];
  store_vector(p.table_dtype, p.table, row * p.table_row + first, sum, columns, launch.aligned);
}

bool rows_are_aligned(const RowsByIndexParams& p) {
  const auto is_aligned_to = [](const void* data, DType dtype, int64_t row) {
    return is_aligned(data) && row * element_size(dtype) % kAccessBytes == 0;
  };
  return is_aligned_to(p.table, p.table_dtype, p.table_row) && is_aligned_to(p.values, p.values_dtype, p.values_row);
}

}  // namespace

cudaError_t launch_take_rows(const RowsByIndexParams& p, const DeviceLimits&, cudaStream_t stream) {
  const bool aligned = rows_are_aligned(p);
  const int steps = aligned ? divide_up(p.row_elements, kVector) : p.row_elements;
  return launch_flat("take_rows", take_rows_kernel, int64_t{p.count} * steps, stream,
                     RowsByIndexLaunch{p, aligned, steps});
}

cudaError_t launch_add_rows(const RowsByIndexParams& p, const DeviceLimits&, cudaStream_t stream) {
  const int steps = divide_up(p.row_elements, kWarpSize * kVector);
  return launch_flat("add_rows", add_rows_kernel, int64_t{p.rows} * steps * kWarpSize, stream,
                     RowsByIndexLaunch{p, rows_are_aligned(p), steps});
}

}  // namespace flashattn
