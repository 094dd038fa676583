// The C++ API of the device code: plain structs in, cudaError_t out. Launches return at once and run in the order of
// their stream; nothing here allocates. Arguments are trusted: the callers validate.
#pragma once
#include <cuda_runtime_api.h>

#include "device_limits.h"
#include "structs/attention.h"
#include "structs/code_matmul.h"
#include "structs/copy.h"
#include "structs/cross_entropy.h"
#include "structs/diagonal_scan.h"
#include "structs/elementwise.h"
#include "structs/gather.h"
#include "structs/linear_scan.h"
#include "structs/lines.h"
#include "structs/matmul.h"
#include "structs/merge.h"
#include "structs/norm.h"
#include "structs/quantise.h"
#include "structs/recurrence.h"
#include "structs/reduce.h"
#include "structs/rows_by_index.h"
#include "structs/selective_scan.h"
#include "structs/softmax.h"
#include "structs/store_rows.h"
#include "structs/svd.h"
#include "structs/wkv.h"

namespace flashattn {

AttentionPartition attention_partition(const AttentionShape&, const DeviceLimits&);

/** Writes out and lse of every row of every sequence. */
cudaError_t launch_forward(const AttentionParams&, const DeviceLimits&, cudaStream_t);

/** Everything: row preprocess, main kernel, and the gradients of bias, table and sink where their pointers are set. */
cudaError_t launch_backward(const AttentionParams&, const DeviceLimits&, cudaStream_t);

cudaError_t launch_merge(const MergeParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_merge_backward(const MergeParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_gather(const GatherParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_take_rows(const RowsByIndexParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_add_rows(const RowsByIndexParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_store_rows(const StoreRowsParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_cross_entropy(const CrossEntropyParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_cross_entropy_backward(const CrossEntropyParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_argmax(const LinesParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_sort(const LinesParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_take_along(const LinesParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_add_along(const LinesParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_cumulative_sum(const LinesParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_elementwise(const ElementwiseParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_reduce(const ReduceParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_softmax(const SoftmaxParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_softmax_backward(const SoftmaxParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_norm(const NormParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_norm_backward(const NormParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_recurrence(const RecurrenceParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_recurrence_backward(const RecurrenceParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_svd(const SvdParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_linear_scan(const LinearScanParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_linear_scan_backward(const LinearScanParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_selective_scan(const SelectiveScanParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_selective_scan_backward(const SelectiveScanParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_diagonal_scan(const DiagonalScanParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_diagonal_scan_backward(const DiagonalScanParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_wkv(const WkvParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_wkv_backward(const WkvParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_matmul(const MatmulParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_quantise(const QuantiseParams&, const DeviceLimits&, cudaStream_t);
cudaError_t launch_code_matmul(const CodeMatmulParams&, const DeviceLimits&, cudaStream_t);
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
              RotaryAngles, RotaryParams, PageParams, DropoutParams, ScoreProgram, ScoreTable, ScoreModParams,
              BlockMaskParams, AttentionShape, AttentionPartition, AttentionParams>("attentionForward"),
    operation<AttentionParams, launch_backward>("attentionBackward"),
    operation<MergeParams, launch_merge, MergePart, MergeParams>("merge"),
    operation<MergeParams, launch_merge_backward>("mergeBackward"),
    operation<GatherParams, launch_gather, GatherParams>("gather"),
    operation<RowsByIndexParams, launch_take_rows, RowsByIndexParams>("takeRows"),
    operation<RowsByIndexParams, launch_add_rows>("addRows"),
    operation<StoreRowsParams, launch_store_rows, StoreRowsParams>("storeRows"),
    operation<CrossEntropyParams, launch_cross_entropy, CrossEntropyParams>("crossEntropy"),
    operation<CrossEntropyParams, launch_cross_entropy_backward>("crossEntropyBackward"),
    operation<LinesParams, launch_argmax, LinesParams>("argmax"),
    operation<LinesParams, launch_sort>("sort"),
    operation<LinesParams, launch_take_along>("takeAlong"),
    operation<LinesParams, launch_add_along>("addAlong"),
    operation<LinesParams, launch_cumulative_sum>("cumulativeSum"),
    operation<ElementwiseParams, launch_elementwise, ProgramOperand, ElementwiseParams>("elementwise"),
    operation<ReduceParams, launch_reduce, ReduceParams>("reduce"),
    operation<SoftmaxParams, launch_softmax, SoftmaxParams>("softmax"),
    operation<SoftmaxParams, launch_softmax_backward>("softmaxBackward"),
    operation<NormParams, launch_norm, NormParams>("norm"),
    operation<NormParams, launch_norm_backward>("normBackward"),
    operation<RecurrenceParams, launch_recurrence, RecurrenceParams>("recurrence"),
    operation<RecurrenceParams, launch_recurrence_backward>("recurrenceBackward"),
    operation<SvdParams, launch_svd, SvdParams>("svd"),
    operation<MatmulParams, launch_matmul, MatrixRef, MatmulParams>("matmul"),
    operation<QuantiseParams, launch_quantise, QuantiseParams>("quantise"),
    operation<CodeMatmulParams, launch_code_matmul, CodesRef, CodeMatmulParams>("codeMatmul"),
    operation<LinearScanParams, launch_linear_scan, LinearScanParams>("linearScan"),
    operation<LinearScanParams, launch_linear_scan_backward>("linearScanBackward"),
    operation<SelectiveScanParams, launch_selective_scan, SelectiveScanParams>("selectiveScan"),
    operation<SelectiveScanParams, launch_selective_scan_backward>("selectiveScanBackward"),
    operation<DiagonalScanParams, launch_diagonal_scan, DiagonalScanParams>("diagonalScan"),
    operation<DiagonalScanParams, launch_diagonal_scan_backward>("diagonalScanBackward"),
    operation<WkvParams, launch_wkv, WkvParams>("wkv"),
    operation<WkvParams, launch_wkv_backward>("wkvBackward"),
    operation<CopyParams, launch_copy, CopyParams>("copy"),
    operation<FillParams, launch_fill, FillParams>("fill"),
    operation<PeakParams, launch_peak, PeakParams>("peak"),
};

}  // namespace flashattn
