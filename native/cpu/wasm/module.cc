// The WebAssembly module: what it can do, and the loop that worker threads run. lib/backends/wasm/module.ts imports it.
#include "operations.h"
#include "wasm/queue.h"

#define FLASHATTN_EXPORT(name) extern "C" __attribute__((export_name(#name)))

namespace flashattn {
namespace {

/** A launch is one phase of an operation. */
const Phase& phase_of(uint32_t launch) { return kOperations[launch / kMaxPhases].phases[launch % kMaxPhases]; }

char description[8192];

}  // namespace
}  // namespace flashattn

/** What a worker thread does for ever. Every worker has its own instance, stack and workspace. */
FLASHATTN_EXPORT(work) [[noreturn]] void work(flashattn::Queue* queue, flashattn::Workspace* workspace) {
  flashattn::worker_loop(*queue, [&](uint32_t launch, const uint32_t* params, uint32_t item) {
    flashattn::phase_of(launch).run(params, static_cast<int>(item), *workspace);
  });
}

/** How many items a phase with these parameters has; -1: the operation has no such phase. */
FLASHATTN_EXPORT(count_items) int count_items(uint32_t launch, const void* params) {
  const flashattn::Phase& phase = flashattn::phase_of(launch);
  return phase.count ? phase.count(params) : -1;
}

/** The names of all operations and the fields of all structs, ended by 0. */
FLASHATTN_EXPORT(describe) const char* describe() {
  flashattn::describe_operations(flashattn::description);
  return flashattn::description;
}

FLASHATTN_EXPORT(partition)
void partition(const flashattn::AttentionShape* shape, flashattn::AttentionPartition* result, int threads) {
  *result = flashattn::partition(*shape, threads);
}

FLASHATTN_EXPORT(max_phases) int max_phases() { return flashattn::kMaxPhases; }
FLASHATTN_EXPORT(workspace_bytes) uint32_t workspace_bytes() { return sizeof(flashattn::Workspace); }
FLASHATTN_EXPORT(queue_bytes) uint32_t queue_bytes() { return sizeof(flashattn::Queue); }
