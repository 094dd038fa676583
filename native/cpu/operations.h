// Every operation of the processor: its name, its struct, and the launches that it is made of. Hosts find it by its name.
#pragma once
#include "attention/backward_extras.h"
#include "attention/decode.h"
#include "attention/head_mixing_backward.h"
#include "attention/merge.h"
#include "attention/partition.h"
#include "attention/selected_backward.h"
#include "attention/store_rows.h"
#include "linear/diagonal_scan.h"
#include "linear/linear_scan.h"
#include "linear/recurrence_backward.h"
#include "linear/selective_scan.h"
#include "linear/wkv.h"
#include "ops/code_matmul.h"
#include "ops/copy.h"
#include "ops/cross_entropy.h"
#include "ops/elementwise.h"
#include "ops/gather.h"
#include "ops/lines.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/peak.h"
#include "ops/quantise.h"
#include "ops/reduce.h"
#include "ops/rows_by_index.h"
#include "ops/softmax.h"
#include "ops/svd.h"

namespace flashattn {

/** What a thread keeps for itself. */
union Workspace {
  ForwardWorkspace forward;
  BackwardWorkspace backward;
  SelectedWorkspace selected;
  SelectedBackwardWorkspace selected_backward;
  HeadMixingWorkspace head_mixing;
  RowWorkspace rows;
  LongRowWorkspace long_rows;
  MatmulWorkspace matmul;
  CodeMatmulWorkspace code_matmul;
  IndexWorkspace index;
  LineWorkspace lines;
  ElementwiseWorkspace elementwise;
  RecurrenceWorkspace recurrence;
  RecurrenceBackwardWorkspace recurrence_backward;
  LinearScanWorkspace linear_scan;
  SelectiveScanWorkspace selective_scan;
  DiagonalScanWorkspace diagonal_scan;
  WkvWorkspace wkv;
};

/** Items that may run at the same time; the items of the next phase run when all of them are done. */
struct Phase {
  int (*count)(const void* params);
  void (*run)(const void* params, int item, Workspace&);
};

inline constexpr int kMaxPhases = 6;

struct Operation {
  const char* name;
  void (*describe)(FieldText&);
  Phase phases[kMaxPhases];
};

namespace detail {

template <class P>
void run(void (*f)(const P&, int), const P& params, int item, Workspace&) {
  f(params, item);
}
/** `W` is one of the workspace's members, all of which begin where it does. */
template <class P, class W>
void run(void (*f)(const P&, int, W&), const P& params, int item, Workspace& ws) {
  f(params, item, reinterpret_cast<W&>(ws));
}

template <class P, int (*kCount)(const P&), auto kRun>
constexpr Phase phase = {
    [](const void* params) { return kCount(*static_cast<const P*>(params)); },
    [](const void* params, int item, Workspace& ws) { run(kRun, *static_cast<const P*>(params), item, ws); },
};

template <class... Structs>
void describe(FieldText& text) {
  (describe_fields(text, static_cast<const Structs*>(nullptr)), ...);
}

}  // namespace detail

/** What products of pairs and tiles are for: the sets of instructions that add them to another one have this of their own. */
inline constexpr Operation kAttentionForward = {
    "attentionForward",
    detail::describe<TensorRef, BlockLists, BiasParams, AlibiParams, RelativeParams, RotaryAngles, RotaryParams,
                     PageParams, DropoutParams, ScoreProgram, ScoreTable, ScoreModParams, BlockMaskParams,
                     AttentionShape, AttentionPartition, AttentionParams>,
    {detail::phase<AttentionParams, attention_items, attention_item>,
     detail::phase<AttentionParams, finish_decode_items, finish_decode_item>}};

inline constexpr Operation kOperations[] = {
    kAttentionForward,
    {"pagedAttention",
     detail::describe<>,
     {detail::phase<AttentionParams, paged_items, paged_item>,
      detail::phase<AttentionParams, finish_decode_items, finish_decode_item>}},
    {"attentionBackward",
     detail::describe<>,
     {detail::phase<AttentionParams, row_items, backward_rows>,
      detail::phase<AttentionParams, backward_items, backward_item>,
      detail::phase<AttentionParams, row_items, finish_query_gradients>,
      detail::phase<AttentionParams, bias_items, backward_bias_item>,
      detail::phase<AttentionParams, relative_items, backward_relative_item>,
      detail::phase<AttentionParams, sink_items, backward_sink_item>}},
    {"merge", detail::describe<MergePart, MergeParams>, {detail::phase<MergeParams, merge_items, merge_item>}},
    {"mergeBackward", detail::describe<>, {detail::phase<MergeParams, merge_items, merge_backward_item>}},
    {"selectedAttention",
     detail::describe<SelectedAttentionParams>,
     {detail::phase<SelectedAttentionParams, selected_items, selected_item>}},
    {"selectedAttentionBackward",
     detail::describe<>,
     {detail::phase<SelectedAttentionParams, selected_backward_items, selected_backward_item>,
      detail::phase<SelectedAttentionParams, finish_selected_items, finish_selected_item>}},
    {"headMixing",
     detail::describe<HeadMix, HeadMixingParams>,
     {detail::phase<HeadMixingParams, head_mixing_items, head_mixing_item>}},
    {"headMixingBackward",
     detail::describe<>,
     {detail::phase<HeadMixingParams, head_mixing_items, head_mixing_deltas>,
      detail::phase<HeadMixingParams, head_mixing_key_items, head_mixing_keys>,
      detail::phase<HeadMixingParams, finish_head_mixing_items, finish_head_mixing>}},
    {"gather", detail::describe<GatherParams>, {detail::phase<GatherParams, gather_items, gather_item>}},
    {"matmul",
     detail::describe<MatrixRef, MatmulParams>,
     {detail::phase<MatmulParams, matmul_packing_items, matmul_packing_item>,
      detail::phase<MatmulParams, matmul_items, matmul_item>}},
    {"quantise", detail::describe<QuantiseParams>, {detail::phase<QuantiseParams, quantise_items, quantise_item>}},
    {"codeMatmul",
     detail::describe<CodesRef, CodeMatmulParams>,
     {detail::phase<CodeMatmulParams, code_matmul_items, code_matmul_item>}},
    {"takeRows",
     detail::describe<RowsByIndexParams>,
     {detail::phase<RowsByIndexParams, take_rows_items, take_rows_item>}},
    {"storeRows",
     detail::describe<StoreRowsParams>,
     {detail::phase<StoreRowsParams, store_rows_items, store_rows_item>}},
    {"addRows", detail::describe<>, {detail::phase<RowsByIndexParams, add_rows_items, add_rows_item>}},
    {"crossEntropy",
     detail::describe<CrossEntropyParams>,
     {detail::phase<CrossEntropyParams, cross_entropy_items, cross_entropy_item>,
      detail::phase<CrossEntropyParams, cross_entropy_reduce_items, cross_entropy_reduce_item>}},
    {"crossEntropyBackward",
     detail::describe<>,
     {detail::phase<CrossEntropyParams, cross_entropy_items, cross_entropy_backward_item>}},
    {"argmax", detail::describe<LinesParams>, {detail::phase<LinesParams, line_items, argmax_item>}},
    {"sort", detail::describe<>, {detail::phase<LinesParams, sort_items, sort_item>}},
    {"takeAlong", detail::describe<>, {detail::phase<LinesParams, take_along_items, take_along_item>}},
    {"addAlong", detail::describe<>, {detail::phase<LinesParams, add_along_items, add_along_item>}},
    {"cumulativeSum", detail::describe<>, {detail::phase<LinesParams, cumulative_sum_items, cumulative_sum_item>}},
    {"elementwise",
     detail::describe<ProgramOperand, ElementwiseParams>,
     {detail::phase<ElementwiseParams, elementwise_items, elementwise_item>}},
    {"reduce",
     detail::describe<ReduceParams>,
     {detail::phase<ReduceParams, reduce_items, reduce_item>,
      detail::phase<ReduceParams, reduce_split_items, reduce_split_item>}},
    {"softmax", detail::describe<SoftmaxParams>, {detail::phase<SoftmaxParams, softmax_items, softmax_item>}},
    {"softmaxBackward", detail::describe<>, {detail::phase<SoftmaxParams, softmax_items, softmax_backward_item>}},
    {"norm", detail::describe<NormParams>, {detail::phase<NormParams, norm_items, norm_item>}},
    {"normBackward",
     detail::describe<>,
     {detail::phase<NormParams, norm_backward_items, norm_backward_item>,
      detail::phase<NormParams, finish_norm_items, finish_norm_item>}},
    {"recurrence",
     detail::describe<RecurrenceParams>,
     {detail::phase<RecurrenceParams, recurrence_items, recurrence_item>}},
    {"recurrenceBackward",
     detail::describe<>,
     {detail::phase<RecurrenceParams, recurrence_items, recurrence_backward_item>}},
    {"svd", detail::describe<SvdParams>, {detail::phase<SvdParams, svd_items, svd_item>}},
    {"linearScan",
     detail::describe<LinearScanParams>,
     {detail::phase<LinearScanParams, linear_scan_items, linear_scan_item>}},
    {"linearScanBackward",
     detail::describe<>,
     {detail::phase<LinearScanParams, linear_scan_items, linear_scan_backward_item>}},
    {"selectiveScan",
     detail::describe<SelectiveScanParams>,
     {detail::phase<SelectiveScanParams, selective_scan_items, selective_scan_item>}},
    {"selectiveScanBackward",
     detail::describe<>,
     {detail::phase<SelectiveScanParams, selective_scan_items, selective_scan_backward_item>,
      detail::phase<SelectiveScanParams, finish_selective_items, finish_selective_item>}},
    {"diagonalScan",
     detail::describe<DiagonalScanParams>,
     {detail::phase<DiagonalScanParams, diagonal_scan_items, diagonal_scan_item>}},
    {"diagonalScanBackward",
     detail::describe<>,
     {detail::phase<DiagonalScanParams, diagonal_scan_items, diagonal_scan_backward_item>,
      detail::phase<DiagonalScanParams, finish_diagonal_items, finish_diagonal_item>}},
    {"wkv", detail::describe<WkvParams>, {detail::phase<WkvParams, wkv_items, wkv_item>}},
    {"wkvBackward",
     detail::describe<>,
     {detail::phase<WkvParams, wkv_items, wkv_backward_item>,
      detail::phase<WkvParams, finish_wkv_items, finish_wkv_item>}},
    {"copy", detail::describe<CopyParams>, {detail::phase<CopyParams, copy_items, copy_item>}},
    {"fill", detail::describe<FillParams>, {detail::phase<FillParams, fill_items, fill_item>}},
    {"peak", detail::describe<PeakParams>, {detail::phase<PeakParams, peak_items, peak_item>}},
};

static_assert(kOperations[0].name == kAttentionForward.name);  // where tables of kernels look for it

inline constexpr int kOperationCount = sizeof(kOperations) / sizeof(kOperations[0]);

/** A line with the names of all operations, then one for each struct. */
inline void describe_operations(FieldText& text) {
  text.begin("operations");
  for (const Operation& operation : kOperations) text.word(operation.name);
  text.end();
  for (const Operation& operation : kOperations) operation.describe(text);
  text.begin("opcodes");
  for (const char* name : kOpcodeNames) text.word(name);
  text.end();
}

}  // namespace flashattn
