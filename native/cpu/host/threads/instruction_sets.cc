#include "instruction_sets.h"

#include <algorithm>
#include <chrono>

// The build names what it compiled: FLASHATTN_HAS_<name>.
#if defined(__x86_64__) || defined(_M_X64)
extern "C" const cpu_host::KernelTable kernels_avx2, kernels_avx512, kernels_avx512bf16;
#else
extern "C" const cpu_host::KernelTable kernels_neon;
#endif

namespace cpu_host {

namespace {

#if defined(__x86_64__) || defined(_M_X64)
// The compiler's runtime also asks whether the system saves the registers.
[[maybe_unused]] bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
[[maybe_unused]] bool has_avx512bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
[[maybe_unused]] bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
#else
[[maybe_unused]] bool always() { return true; }
#endif

struct InstructionSet {
  const KernelTable* kernels;
  bool (*supported)();
};

// Each faster than the next, where it pays.
constexpr InstructionSet kInstructionSets[] = {
#if defined(FLASHATTN_HAS_avx512bf16)
    {&kernels_avx512bf16, has_avx512bf16},
#endif
#if defined(FLASHATTN_HAS_avx512)
    {&kernels_avx512, has_avx512},
#endif
#if defined(FLASHATTN_HAS_avx2)
    {&kernels_avx2, has_avx2},
#endif
#if defined(FLASHATTN_HAS_neon)
    {&kernels_neon, always},
#endif
};

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

const std::vector<const KernelTable*>& supported_kernels() {
  static const auto sorted = [] {
    std::vector<const KernelTable*> found;
    for (const InstructionSet& set : kInstructionSets)
      if (set.supported()) found.push_back(set.kernels);
    std::stable_partition(found.begin(), found.end(), [](const KernelTable* kernels) { return kernels->pays(now); });
    return found;
  }();
  return sorted;
}

std::vector<std::string> unsupported_names() {
  std::vector<std::string> names;
  for (const InstructionSet& set : kInstructionSets)
    if (!set.supported()) names.emplace_back(set.kernels->name);
  return names;
}

}  // namespace cpu_host
