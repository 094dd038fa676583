// The kernels of one instruction set.
//
// This file is compiled once for each of them, with the compiler's flags for it, FLASHATTN_ISA as its name, and another
// word in the place of `flashattn`: inline functions of one name would be merged by the linker, and machines would meet
// instructions that they do not have. A set that only adds products to another one, FLASHATTN_BASE, has kernels of its own
// for the operation that uses them, and takes the others from there: each copy of all of them is some 600 kB.
#include "host/threads/kernels.h"

#include "operations.h"

#define FLASHATTN_TEXT(word) FLASHATTN_TEXT_OF(word)
#define FLASHATTN_TEXT_OF(word) #word
#define FLASHATTN_TABLE(name) FLASHATTN_TABLE_OF(name)
#define FLASHATTN_TABLE_OF(name) kernels_##name

#if defined(FLASHATTN_BASE)
extern "C" const cpu_host::KernelTable FLASHATTN_TABLE(FLASHATTN_BASE);
#endif

namespace flashattn {

namespace {

#if defined(FLASHATTN_BASE)
constexpr const cpu_host::KernelTable& kBase = FLASHATTN_TABLE(FLASHATTN_BASE);
static_assert(kHasPairs, "a set without products of its own needs no copy of the kernels");

const Phase* own_phase(int launch) {
  return launch < kMaxPhases ? &kAttentionForward.phases[launch] : nullptr;  // the first of kOperations
}

void describe(char* to) { kBase.describe(to); }

size_t workspace_bytes() { return max(sizeof(Workspace), kBase.workspace_bytes()); }

int count(int launch, const void* params) {
  const Phase* phase = own_phase(launch);
  if (phase == nullptr) return kBase.count(launch, params);
  return phase->count ? phase->count(params) : -1;
}

void run(int launch, const void* params, int item, void* workspace) {
  if (const Phase* phase = own_phase(launch))
    phase->run(params, item, *static_cast<Workspace*>(workspace));
  else
    kBase.run(launch, params, item, workspace);
}

void use_dot_products() { kBase.use_dot_products(); }
#else
const Phase& phase_of(int launch) { return kOperations[launch / kMaxPhases].phases[launch % kMaxPhases]; }

void describe(char* to) {
  FieldText text(to);
  describe_operations(text);
}

size_t workspace_bytes() { return sizeof(Workspace); }

int count(int launch, const void* params) {
  const Phase& phase = phase_of(launch);
  return phase.count ? phase.count(params) : -1;
}

void run(int launch, const void* params, int item, void* workspace) {
  phase_of(launch).run(params, item, *static_cast<Workspace*>(workspace));
}

void use_dot_products() { has_dot_products = true; }
#endif

void partition_shape(const void* shape, void* result, int threads) {
  *static_cast<AttentionPartition*>(result) = partition(*static_cast<const AttentionShape*>(shape), threads);
}

template <class Arithmetic>
double multiply_add_time(double (*now)()) {
  float sink[4] = {0.9999f, 1e-4f};
  double least = kInfinity;
  for (int trial = 0; trial < 5; ++trial) {
    const double start = now();
    detail::multiply_adds<Arithmetic>(sink, 1 << 12);
    if (const double time = now() - start; time < least) least = time;
    sink[0] *= sink[2] > 0 ? 0.99f : 1.0f;  // uses the result, so that it is computed
  }
  return least;
}

/**
 * A product of pairs stands for two multiply-adds; some processors take longer for it than for those. Tiles have not been
 * tried on a processor that has them: they are for those who ask for them.
 */
bool pays([[maybe_unused]] double (*now)()) {
  if constexpr (kHasTiles) return false;
  if constexpr (kHasPairs) return multiply_add_time<BFloat16Pairs>(now) < 1.5 * multiply_add_time<Floats>(now);
  return true;
}

}  // namespace

}  // namespace flashattn

extern "C" const cpu_host::KernelTable FLASHATTN_TABLE(FLASHATTN_ISA) = {
    FLASHATTN_TEXT(FLASHATTN_ISA), flashattn::kLanes, flashattn::workspace_bytes,
    flashattn::kMaxPhases,         flashattn::pays,   flashattn::describe,
    flashattn::partition_shape,    flashattn::count,  flashattn::run,
    flashattn::use_dot_products,
};
