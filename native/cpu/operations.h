// Every operation of the processor: its name, its struct, and the launches that it is made of. Hosts find it by its name.
#pragma once
#include "attention/backward_extras.h"
#include "attention/decode.h"
#include "attention/merge.h"
#include "attention/partition.h"
#include "ops/copy.h"
#include "ops/gather.h"
#include "ops/matmul.h"
#include "ops/peak.h"

namespace flashattn {

/** What a thread keeps for itself. */
union Workspace {
  ForwardWorkspace forward;
  BackwardWorkspace backward;
  RowWorkspace rows;
  MatmulWorkspace matmul;
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
template <class P>
void run(void (*f)(const P&, int, ForwardWorkspace&), const P& params, int item, Workspace& ws) {
  f(params, item, ws.forward);
}
template <class P>
void run(void (*f)(const P&, int, BackwardWorkspace&), const P& params, int item, Workspace& ws) {
  f(params, item, ws.backward);
}
template <class P>
void run(void (*f)(const P&, int, RowWorkspace&), const P& params, int item, Workspace& ws) {
  f(params, item, ws.rows);
}
template <class P>
void run(void (*f)(const P&, int, MatmulWorkspace&), const P& params, int item, Workspace& ws) {
  f(params, item, ws.matmul);
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

inline constexpr Operation kOperations[] = {
    {"attentionForward",
     detail::describe<TensorRef, BlockLists, BiasParams, AlibiParams, RelativeParams, DropoutParams, BlockMaskParams,
                      AttentionShape, AttentionPartition, AttentionParams>,
     {detail::phase<AttentionParams, attention_items, attention_item>,
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
    {"gather", detail::describe<GatherParams>, {detail::phase<GatherParams, gather_items, gather_item>}},
    {"matmul",
     detail::describe<MatrixRef, MatmulParams>,
     {detail::phase<MatmulParams, matmul_packing_items, matmul_packing_item>,
      detail::phase<MatmulParams, matmul_items, matmul_item>}},
    {"copy", detail::describe<CopyParams>, {detail::phase<CopyParams, copy_items, copy_item>}},
    {"fill", detail::describe<FillParams>, {detail::phase<FillParams, fill_items, fill_item>}},
    {"peak", detail::describe<PeakParams>, {detail::phase<PeakParams, peak_items, peak_item>}},
};

inline constexpr int kOperationCount = sizeof(kOperations) / sizeof(kOperations[0]);

/** A line with the names of all operations, then one for each struct. */
inline void describe_operations(FieldText& text) {
  text.begin("operations");
  for (const Operation& operation : kOperations) text.word(operation.name);
  text.end();
  for (const Operation& operation : kOperations) operation.describe(text);
}

}  // namespace flashattn
