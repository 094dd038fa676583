// d_relative = the sum of the warps' tables, in their order.
#include "launch_error.h"
#include "ptx.cuh"
#include "sm80/backward_parts.h"

namespace flashattn {

namespace {

constexpr int kThreads = 128;

/** A thread is one entry of the table. */
FLASHATTN_KERNEL(kThreads) tables_kernel(const FLASHATTN_CONSTANT AttentionParams p) {
  const int64_t entries = static_cast<int64_t>(p.relative.bucket_count) * p.heads;
  const int64_t entry = static_cast<int64_t>(ptx::block().x) * kThreads + ptx::thread();
  if (entry >= entries) return;
  const int64_t bucket = entry / p.heads, h = entry % p.heads;
  double sum = 0;
  const float2* partial = reinterpret_cast<const float2*>(p.d_relative_partial) + h * p.relative.bucket_count + bucket;
  for (int slice = 0; slice < p.relative_slices; ++slice) {
    const float2 part = ptx::load_global(partial + slice * entries);
    sum += static_cast<double>(part.x) - part.y;
  }
  ptx::store_global(p.d_relative + entry, static_cast<float>(sum));
}

}  // namespace

cudaError_t launch_backward_tables(const AttentionParams& p, cudaStream_t stream) {
  const int64_t entries = static_cast<int64_t>(p.relative.bucket_count) * p.heads;
  if (!p.d_relative || entries == 0) return cudaSuccess;
  return launched("backward_tables", ptx::launch(tables_kernel, "backward_tables",
                                                 dim3(static_cast<unsigned>((entries + kThreads - 1) / kThreads)),
                                                 kThreads, 0, stream, p));
}

}  // namespace flashattn
