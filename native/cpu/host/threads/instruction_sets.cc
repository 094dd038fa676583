#include "instruction_sets.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include <algorithm>
#include <chrono>
#include <cstdint>

// The build names what it compiled: FLASHATTN_HAS_<name>.
#if defined(__x86_64__) || defined(_M_X64)
extern "C" const cpu_host::KernelTable kernels_avx2, kernels_avx512, kernels_avx512bf16, kernels_amx;
#else
extern "C" const cpu_host::KernelTable kernels_neon, kernels_neonbf16;
#endif

namespace cpu_host {

namespace {

#if defined(__x86_64__) || defined(_M_X64)
// Not __builtin_cpu_supports: not every compiler knows all names, nor every runtime library what stands behind them.
struct Registers {
  uint32_t a, b, c, d;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf = 0) {
  Registers r{};
  __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);  // leaves r as it is where the processor has no such leaf
  return r;
}

constexpr bool has_bit(uint32_t word, int bit) { return (word >> bit & 1) != 0; }

/** Whether the system saves the registers that have these bits in XCR0. */
bool saves(uint32_t states) {
  if (!has_bit(cpuid(1).c, 27)) return false;  // OSXSAVE: without it the instruction does not exist
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & states) == states;
}

[[maybe_unused]] bool has_avx2() {
  const uint32_t basic = cpuid(1).c;
  const bool fma = has_bit(basic, 12), f16c = has_bit(basic, 29), avx2 = has_bit(cpuid(7).b, 5);
  return fma && f16c && avx2 && saves(0x06);
}

[[maybe_unused]] bool has_avx512() {
  const uint32_t extended = cpuid(7).b;
  const bool f = has_bit(extended, 16), dq = has_bit(extended, 17), bw = has_bit(extended, 30),
             vl = has_bit(extended, 31);
  if (!f || !dq || !bw || !vl || !has_avx2()) return false;
#if defined(__APPLE__)
  return true;  // macOS sets the bits that say so when a thread first uses these registers
#else
  return saves(0xe6);
#endif
}

[[maybe_unused]] bool has_avx512bf16() { return has_bit(cpuid(7, 1).a, 5) && has_avx512(); }

/** VNNI: of 256 bits for those of AVX2, which have them without AVX-512 too, and of 512 for the others. */
[[maybe_unused]] bool has_avxvnni() { return has_bit(cpuid(7, 1).a, 4); }
[[maybe_unused]] bool has_avx512vnni() { return has_bit(cpuid(7).c, 11); }

/** Tiles are not tried on other systems than Linux. */
[[maybe_unused]] bool has_amx() {
#if defined(__linux__)
  const uint32_t extended = cpuid(7).d;
  const bool bf16 = has_bit(extended, 22), tile = has_bit(extended, 24);
  return bf16 && tile && has_avx512bf16() && saves(0x60000);
#else
  return false;
#endif
}

/** Linux saves the registers of tiles for processes that have asked for it. */
[[maybe_unused]] bool request_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#else
[[maybe_unused]] bool always() { return true; }

[[maybe_unused]] bool has_dotprod() {
#if defined(__linux__)
  constexpr unsigned long kDotProd = 1ul << 20;  // HWCAP_ASIMDDP
  return (getauxval(AT_HWCAP) & kDotProd) != 0;
#elif defined(__APPLE__)
  return true;  // of every M1 and later
#else
  return false;
#endif
}

[[maybe_unused]] bool has_neonbf16() {
#if defined(__linux__)
  constexpr unsigned long kBf16 = 1ul << 14;  // HWCAP2_BF16, which older headers lack
  return (getauxval(AT_HWCAP2) & kBf16) != 0;
#elif defined(__APPLE__)
  int found = 0;
  size_t size = sizeof(found);
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &found, &size, nullptr, 0) == 0 && found == 1;
#else
  return false;
#endif
}
#endif

struct InstructionSet {
  const KernelTable* kernels;
  bool (*supported)();
  bool (*has_dot_products)();
};

// Each faster than the next, where it pays.
constexpr InstructionSet kInstructionSets[] = {
#if defined(FLASHATTN_HAS_amx)
    {&kernels_amx, has_amx, has_avx512vnni},
#endif
#if defined(FLASHATTN_HAS_avx512bf16)
    {&kernels_avx512bf16, has_avx512bf16, has_avx512vnni},
#endif
#if defined(FLASHATTN_HAS_avx512)
    {&kernels_avx512, has_avx512, has_avx512vnni},
#endif
#if defined(FLASHATTN_HAS_avx2)
    {&kernels_avx2, has_avx2, has_avxvnni},
#endif
#if defined(FLASHATTN_HAS_neonbf16)
    {&kernels_neonbf16, has_neonbf16, has_dotprod},
#endif
#if defined(FLASHATTN_HAS_neon)
    {&kernels_neon, always, has_dotprod},
#endif
};

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

const std::vector<const KernelTable*>& supported_kernels() {
  static const auto sorted = [] {
    std::vector<const KernelTable*> found;
    for (const InstructionSet& set : kInstructionSets) {
      if (!set.supported()) continue;
      if (set.has_dot_products()) set.kernels->use_dot_products();
      found.push_back(set.kernels);
    }
    std::stable_partition(found.begin(), found.end(), [](const KernelTable* kernels) { return kernels->pays(now); });
    return found;
  }();
  return sorted;
}

bool prepare([[maybe_unused]] const KernelTable& kernels) {
#if defined(FLASHATTN_HAS_amx)
  if (&kernels == &kernels_amx) return request_tiles();
#endif
  return true;
}

std::vector<std::string> unsupported_names() {
  std::vector<std::string> names;
  for (const InstructionSet& set : kInstructionSets)
    if (!set.supported()) names.emplace_back(set.kernels->name);
  return names;
}

}  // namespace cpu_host
