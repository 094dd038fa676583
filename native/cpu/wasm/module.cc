// The WebAssembly module: a table of kernels and the loop that worker threads run.
#include "backward_extras.h"
#include "decode.h"
#include "elementwise.h"
#include "gather.h"
#include "merge.h"
#include "wasm/queue.h"

#define FLASHATTN_EXPORT(name) extern "C" __attribute__((export_name(#name)))

namespace flashattn {
namespace {

union Workspace {
  ForwardWorkspace forward;
  BackwardWorkspace backward;
};

// Order known to lib/backends/wasm/launch.ts.
enum class Kernel : uint32_t {
  Forward,
  BackwardRows,
  Backward,
  FinishQueryGradients,
  BackwardBias,
  BackwardRelative,
  BackwardSink,
  Merge,
  MergeBackward,
  Gather,
  Fill,
  Convert,
  Peak,
  FinishDecode,
};

template <class Params>
const Params& as(const uint32_t* words) {
  static_assert(sizeof(Params) <= kSlotParamWords * 4);
  return *reinterpret_cast<const Params*>(words);
}

int count_items(Kernel kernel, const uint32_t* words) {
  switch (kernel) {
    case Kernel::Forward: return attention_items(as<AttentionParams>(words));
    case Kernel::Backward: return backward_items(as<AttentionParams>(words));
    case Kernel::BackwardRows:
    case Kernel::FinishQueryGradients: return row_items(as<AttentionParams>(words));
    case Kernel::BackwardBias: return bias_items(as<AttentionParams>(words));
    case Kernel::BackwardRelative:
    case Kernel::BackwardSink: return as<AttentionParams>(words).heads;
    case Kernel::Merge:
    case Kernel::MergeBackward: return merge_items(as<MergeParams>(words));
    case Kernel::Gather: return gather_items(as<GatherParams>(words));
    case Kernel::Fill: return chunks(as<FillParams>(words).count);
    case Kernel::Convert: return chunks(as<ConvertParams>(words).count);
    case Kernel::Peak: return as<PeakParams>(words).items;
    case Kernel::FinishDecode: return finish_decode_items(as<AttentionParams>(words));
  }
  __builtin_trap();
}

__attribute__((noinline)) void run(Kernel kernel, const uint32_t* words, int item, Workspace& ws) {
  switch (kernel) {
    case Kernel::Forward: return attention_item(as<AttentionParams>(words), item, ws.forward);
    case Kernel::BackwardRows: return backward_rows(as<AttentionParams>(words), item, ws.backward);
    case Kernel::Backward: return backward_item(as<AttentionParams>(words), item, ws.backward);
    case Kernel::FinishQueryGradients: return finish_query_gradients(as<AttentionParams>(words), item, ws.backward);
    case Kernel::BackwardBias: return backward_bias_item(as<AttentionParams>(words), item, ws.backward);
    case Kernel::BackwardRelative: return backward_relative_item(as<AttentionParams>(words), item);
    case Kernel::BackwardSink: return backward_sink_item(as<AttentionParams>(words), item);
    case Kernel::Merge: return merge_item(as<MergeParams>(words), item, ws.backward);
    case Kernel::MergeBackward: return merge_backward_item(as<MergeParams>(words), item, ws.backward);
    case Kernel::Gather: return gather_item(as<GatherParams>(words), item, ws.backward);
    case Kernel::Fill: return fill_item(as<FillParams>(words), item);
    case Kernel::Convert: return convert_item(as<ConvertParams>(words), item, ws.backward);
    case Kernel::Peak: return peak_item(as<PeakParams>(words));
    case Kernel::FinishDecode: return finish_decode_item(as<AttentionParams>(words), item, ws.forward);
  }
  __builtin_trap();
}

}  // namespace
}  // namespace flashattn

/** What a worker thread does for ever. Every worker has its own instance, stack and workspace. */
FLASHATTN_EXPORT(work) [[noreturn]] void work(flashattn::Queue* queue, flashattn::Workspace* workspace) {
  flashattn::worker_loop(*queue, [&](uint32_t kernel, const uint32_t* params, uint32_t item) {
    flashattn::run(static_cast<flashattn::Kernel>(kernel), params, static_cast<int>(item), *workspace);
  });
}

/** How many items a launch with these parameters has. */
FLASHATTN_EXPORT(count_items) int count_items(uint32_t kernel, const uint32_t* params) {
  return flashattn::count_items(static_cast<flashattn::Kernel>(kernel), params);
}

FLASHATTN_EXPORT(query_tile) int query_tile() { return flashattn::kQueryTile; }
FLASHATTN_EXPORT(key_tile) int key_tile() { return flashattn::kKeyTile; }
FLASHATTN_EXPORT(decode_floats)
int decode_floats(int query_length, int key_length, int group, int value_dim, int heads_differ, int block_mask) {
  const flashattn::DecodeColumns columns(group, query_length, heads_differ != 0);
  return flashattn::decode_floats(columns, query_length, key_length, value_dim, block_mask != 0);
}

FLASHATTN_EXPORT(d_query_planes) int d_query_planes(int key_length, int key_splits) {
  return flashattn::d_query_planes(key_length, key_splits);
}
FLASHATTN_EXPORT(max_tiles_per_item) int max_tiles_per_item() { return flashattn::kMaxTilesPerItem; }

FLASHATTN_EXPORT(workspace_bytes) uint32_t workspace_bytes() { return sizeof(flashattn::Workspace); }
FLASHATTN_EXPORT(queue_bytes) uint32_t queue_bytes() { return sizeof(flashattn::Queue); }
FLASHATTN_EXPORT(attention_params_bytes) uint32_t attention_params_bytes() {
  return sizeof(flashattn::AttentionParams);
}
FLASHATTN_EXPORT(gather_params_bytes) uint32_t gather_params_bytes() { return sizeof(flashattn::GatherParams); }
FLASHATTN_EXPORT(merge_part_bytes) uint32_t merge_part_bytes() { return sizeof(flashattn::MergePart); }
FLASHATTN_EXPORT(merge_params_bytes) uint32_t merge_params_bytes() { return sizeof(flashattn::MergeParams); }
