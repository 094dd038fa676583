// The C++ API of the device code: plain structs in, cudaError_t out. Launches return at once and run in the order of
// their stream; nothing here allocates. Arguments are trusted: the callers validate.
#pragma once
#include <cuda_runtime_api.h>

#include "params.h"

namespace flashattn {

/** What the choice of tiles depends on. */
struct DeviceLimits {
  int major, minor;   // compute capability
  int shared_memory;  // bytes a block may opt in to
  int multiprocessors;
};

/** How a launch is cut into thread blocks. */
struct Tiling {
  int query_tile, key_tile, threads, shared_memory;
  int64_t blocks;
};

Tiling forward_tiling(const AttentionParams&, const DeviceLimits&);
Tiling backward_tiling(const AttentionParams&, const DeviceLimits&);

/** Sizes of the scratch arrays of AttentionParams, in elements. */
struct BackwardScratch {
  int64_t delta, d_query_sum, turns, d_relative_partial;
  int32_t relative_slices;
};
BackwardScratch backward_scratch(const AttentionParams&, const DeviceLimits&);

/** Writes out and lse of every row of every sequence. */
cudaError_t launch_forward(const AttentionParams&, const DeviceLimits&, cudaStream_t);

/** Everything: row preprocess, main kernel, and the gradients of bias, table and sink where their pointers are set. */
cudaError_t launch_backward(const AttentionParams&, const DeviceLimits&, cudaStream_t);

cudaError_t launch_merge(const MergeParams&, cudaStream_t);
cudaError_t launch_merge_backward(const MergeParams&, cudaStream_t);
cudaError_t launch_gather(const GatherParams&, cudaStream_t);
cudaError_t launch_convert(const ConvertParams&, cudaStream_t);
cudaError_t launch_fill(const FillParams&, cudaStream_t);

/** Tensor-core multiply-adds on registers alone: `blocks` x 8 warps x `iterations` x 8 mma.m16n8k16. */
cudaError_t launch_peak(int blocks, int iterations, float* sink /* [1] */, cudaStream_t);

/** The kernel of the last launch that failed on this thread, for messages. */
const char* last_kernel();

}  // namespace flashattn
