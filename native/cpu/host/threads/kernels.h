// The kernels of one instruction set, as native hosts see them.
#pragma once
#include <stddef.h>

namespace cpu_host {

struct KernelTable {
  const char* name;  // of the instruction set: what FLASHATTN_CPU and status() call it
  int lanes;         // floats in a vector
  /** What each thread needs. */
  size_t (*workspace_bytes)();
  int max_phases;
  /** Whether it is faster here than the next simpler set. `now`: any clock. */
  bool (*pays)(double (*now)());
  /** Names of operations and fields of structs, ended by 0. */
  void (*describe)(char* to /* [kDescriptionBytes] */);
  /** AttentionShape -> AttentionPartition */
  void (*partition)(const void* shape, void* result, int threads);
  /** Items of a phase; -1: there is no such phase. */
  int (*count)(int launch, const void* params);
  void (*run)(int launch, const void* params, int item, void* workspace);
  /** Lets kernels use products of bytes, which some machines have beside the set (simd/dot.h). */
  void (*use_dot_products)();
};

inline constexpr size_t kDescriptionBytes = 16384;

}  // namespace cpu_host
