// d_sink[h] = -sum over rows of e^(sink - lse) * delta: the sink's value is zero, so its dP is too.
#include "block_sum.cuh"
#include "rows.cuh"
#include "scores.cuh"
#include "sm80/backward_parts.h"

namespace flashattn {

namespace {

constexpr int kThreads = 512;

/** A block is one head. */
FLASHATTN_KERNEL(kThreads) sink_kernel(AttentionParams p) {
  const int h = static_cast<int>(ptx::block().x);
  const float sink = ptx::load_global(p.sink + h);
  const int64_t rows = static_cast<int64_t>(p.batch) * p.query_length;
  double sum = 0;
  for (int64_t index = ptx::thread(); index < rows; index += kThreads) {
    const int b = static_cast<int>(index / p.query_length), i = static_cast<int>(index % p.query_length);
    const Sequence s = sequence_of(p, b);
    if (i >= s.query_length) continue;
    const int64_t row = b * p.lse_batch + h * p.lse_head + s.query_begin + i;
    const float lse = ptx::load_global(p.lse + row);
    if (lse == -INFINITY) continue;
    const float weight = is_coarse_lse(lse) ? ptx::load_global(p.row_terms + p.lse_rows + row) : 1.0f;
    sum -= static_cast<double>(ptx::exp2((sink - lse) * kLog2E) / weight) * ptx::load_global(p.row_terms + row);
  }
  sum = sum_block<kThreads>(sum);
  if (ptx::thread() == 0) ptx::store_global(p.d_sink + h, static_cast<float>(sum));
}

}  // namespace

cudaError_t launch_backward_sink(const AttentionParams& p, cudaStream_t stream) {
  if (!p.d_sink) return cudaSuccess;
  return launched("backward_sink",
                  ptx::launch(sink_kernel, "backward_sink", dim3(p.heads), kThreads, kSumBytes<kThreads>, stream, p));
}

}  // namespace flashattn
