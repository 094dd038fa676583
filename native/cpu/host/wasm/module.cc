// The WebAssembly module: what it can do, and the loop that worker threads run. lib/backends/wasm/module.ts imports it.
#include "host/queue.h"
#include "operations.h"

#define FLASHATTN_EXPORT(name) extern "C" __attribute__((export_name(#name)))

namespace flashattn {
namespace {

/** A launch is one phase of an operation. */
const Phase& phase_of(uint32_t launch) { return kOperations[launch / kMaxPhases].phases[launch % kMaxPhases]; }

char description[16384];

}  // namespace
}  // namespace flashattn

/** What a worker thread does until the queue is given up. Every thread has its own instance, stack and workspace. */
FLASHATTN_EXPORT(work) void work(flashattn::Queue* queue, flashattn::Workspace* workspace) {
  const auto run = [&](uint32_t launch, const uint32_t* params, uint32_t item) {
    flashattn::phase_of(launch).run(params, static_cast<int>(item), *workspace);
  };
  flashattn::worker_loop(*queue, run, [] {});
}

/** Runs pending launches on the calling thread, up to items that workers hold. */
FLASHATTN_EXPORT(run_pending) void run_pending(flashattn::Queue* queue, flashattn::Workspace* workspace) {
  flashattn::run_available(*queue, [&](uint32_t launch, const uint32_t* params, uint32_t item) {
    flashattn::phase_of(launch).run(params, static_cast<int>(item), *workspace);
  });
}

/** Runs a launch that is in no queue on the calling thread. */
FLASHATTN_EXPORT(run_launch)
void run_launch(uint32_t launch, const uint32_t* params, int items, flashattn::Workspace* workspace) {
  for (int item = 0; item < items; ++item) flashattn::phase_of(launch).run(params, item, *workspace);
}

/** How many items a phase with these parameters has; -1: the operation has no such phase. */
FLASHATTN_EXPORT(count_items) int count_items(uint32_t launch, const void* params) {
  const flashattn::Phase& phase = flashattn::phase_of(launch);
  return phase.count ? phase.count(params) : -1;
}

/** The names of all operations and the fields of all structs, ended by 0. */
FLASHATTN_EXPORT(describe) const char* describe() {
  {
    flashattn::FieldText text(flashattn::description);
    flashattn::describe_operations(text);
    describe_fields(text, static_cast<const flashattn::Slot*>(nullptr));
    describe_fields(text, static_cast<const flashattn::QueueHeader*>(nullptr));
  }
  return flashattn::description;
}

FLASHATTN_EXPORT(partition)
void partition(const flashattn::AttentionShape* shape, flashattn::AttentionPartition* result, int threads) {
  *result = flashattn::partition(*shape, threads);
}

FLASHATTN_EXPORT(max_phases) int max_phases() { return flashattn::kMaxPhases; }
FLASHATTN_EXPORT(workspace_bytes) uint32_t workspace_bytes() { return sizeof(flashattn::Workspace); }
FLASHATTN_EXPORT(slots) uint32_t slots() { return flashattn::kSlots; }
