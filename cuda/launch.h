// The C++ API of the device code: plain structs in, cudaError_t out. Launches return at once and run in the order of
// their stream; nothing here allocates. Arguments are trusted: the callers validate.
#pragma once
#include <cuda_runtime_api.h>

#include "structs/attention.h"
#include "structs/copy.h"
#include "structs/gather.h"
#include "structs/merge.h"

namespace flashattn {

/** What the choice of tiles depends on. */
struct DeviceLimits {
  int major, minor;   // compute capability
  int shared_memory;  // bytes a block may opt in to
  int multiprocessors;
};

AttentionPartition attention_partition(const AttentionShape&, const DeviceLimits&);

/** Writes out and lse of every row of every sequence. */
cudaError_t launch_forward(const AttentionParams&, const DeviceLimits&, cudaStream_t);

/** Everything: row preprocess, main kernel, and the gradients of bias, table and sink where their pointers are set. */
cudaError_t launch_backward(const AttentionParams&, const DeviceLimits&, cudaStream_t);

cudaError_t launch_merge(const MergeParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_merge_backward(const MergeParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_gather(const GatherParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_copy(const CopyParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_fill(const FillParams&, const DeviceLimits&, cudaStream_t);

/** Tensor-core multiply-adds: items x 8 warps x iterations x 8 mma.m16n8k16. */
cudaError_t launch_peak(const PeakParams&, const DeviceLimits&, cudaStream_t);

/** The kernel of the last launch that failed on this thread, for messages. */
const char* last_kernel();

/** One of the launches above, as a host that holds bytes finds it by its name. */
struct Operation {
  const char* name;
  size_t params_bytes;
  void (*describe)(FieldText&);
  cudaError_t (*launch)(const void* params, const DeviceLimits&, cudaStream_t);
};

/** `Structs`: those of the params that no earlier operation has described. */
template <class Params, cudaError_t (*kLaunch)(const Params&, const DeviceLimits&, cudaStream_t), class... Structs>
constexpr Operation operation(const char* name) {
  return {
      name,
      sizeof(Params),
      [](FieldText& text) { (describe_fields(text, static_cast<const Structs*>(nullptr)), ...); },
      [](const void* params, const DeviceLimits& limits, cudaStream_t stream) {
        return kLaunch(*static_cast<const Params*>(params), limits, stream);
      },
  };
}

inline constexpr Operation kOperations[] = {
    operation<AttentionParams, launch_forward, TensorRef, BlockLists, BiasParams, AlibiParams, RelativeParams,
              DropoutParams, BlockMaskParams, AttentionShape, AttentionPartition, AttentionParams>("attentionForward"),
    operation<AttentionParams, launch_backward>("attentionBackward"),
    operation<MergeParams, launch_merge, MergePart, MergeParams>("merge"),
    operation<MergeParams, launch_merge_backward>("mergeBackward"),
    operation<GatherParams, launch_gather, GatherParams>("gather"),
    operation<CopyParams, launch_copy, CopyParams>("copy"),
    operation<FillParams, launch_fill, FillParams>("fill"),
    operation<PeakParams, launch_peak, PeakParams>("peak"),
};

}  // namespace flashattn
