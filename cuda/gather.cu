// Rows moved, copied and added up: how patterns that regroup tokens (windows, axes, frames, segments) reach attention.
#include "flat.cuh"
#include "launch.h"
#include "vector.cuh"

namespace flashattn {

namespace {

struct GatherLaunch {
  GatherParams params;
  int32_t step, steps;  // elements a thread handles; threads a row has
};

FLASHATTN_KERNEL(kFlatThreads) gather_kernel(GatherLaunch launch) {
  const GatherParams& p = launch.params;
  const int64_t thread = flat_thread(), result_row = thread / launch.steps, b = result_row / p.rows;
  if (b >= p.batch) return;
  const int64_t first = thread % launch.steps * launch.step, row = result_row % p.rows;
  const bool aligned = launch.step == kVector;
  const int64_t count = aligned ? p.row_elements - first : 1;

  float sum[kVector] = {}, x[kVector];
  const int32_t end = ptx::load_global(p.lists.offsets + row + 1);
  for (int32_t at = ptx::load_global(p.lists.offsets + row); at < end; ++at) {
    const int64_t source_row = ptx::load_global(p.lists.indices + at);
    load_vector(x, p.dtype, p.source, b * p.source_batch + source_row * p.source_row + first, count, aligned);
    for (int e = 0; e < kVector; ++e) sum[e] += x[e];
  }
  for (int e = 0; e < kVector; ++e) sum[e] *= p.scale;
  store_vector(p.dtype, p.result, result_row * p.row_elements + first, sum, count, aligned);
}

}  // namespace

cudaError_t launch_gather(const GatherParams& p, const DeviceLimits&, cudaStream_t stream) {
  const int64_t strides = p.source_batch | p.source_row | p.row_elements;
  const bool aligned = is_aligned(p.source) && is_aligned(p.result) && strides * element_size(p.dtype) % 16 == 0;
  const int step = aligned ? kVector : 1, steps = (p.row_elements + step - 1) / step;
  return launch_flat("gather", gather_kernel, int64_t{p.batch} * p.rows * steps, stream, GatherLaunch{p, step, steps});
}

}  // namespace flashattn
