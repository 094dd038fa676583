// Loads and stores of kernels that go past ptx::. A translation unit compiled with -fsanitize=thread calls a function
// before every access to memory; linked without the sanitizer's library, it calls these.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "debug_lines.h"
#include "device_memory.h"
#include "global_memory.h"
#include "machine.h"
#include "report.h"
#include "shared_memory.h"

namespace emulator {

namespace {

/** Kernels run on the stack of a fiber; everything else in their translation unit may do as it likes. */
bool in_kernel(const void* frame) {
  const Thread* self = machine.current;
  if (!self) return false;
  const char* stack = static_cast<const char*>(self->context.stack);
  return frame >= stack && frame < stack + self->context.stack_bytes;
}

void report_plain(const void* pc, const char* kind, const std::string& message) {
  count_report();
  add_report(*machine.current->warp->block, machine.current->index, place_of_code(pc), kind, message);
}

enum class Access { Load, Store };

void check_access(Access access, const void* p, size_t bytes, const void* pc) {
  const std::string what = access == Access::Load ? "plain load" : "plain store";
  if (in_shared_arena(p)) {
    report_plain(pc, "unwrapped-access", what + " of shared memory through a pointer");
    return;
  }
  Allocation* allocation = device_memory().find(p, bytes);
  const auto where = [&] { return what + " of " + std::to_string(bytes) + " bytes, " + describe_address(p); };
  if (!allocation) {
    report_plain(pc, "global-out-of-bounds", where());
  } else if (!allocation->live) {
    report_plain(pc, "use-after-free", where());
  } else {
    if (machine.config.plain_accesses == PlainAccesses::Forbid) report_plain(pc, "unwrapped-access", where());
    const auto report_race = [&](const auto& race) {
      if (race) report_plain(pc, "global-race", what + " of " + describe_race(*race, p));
    };
    if (access == Access::Load)
      report_race(race_of_load(*allocation, p, bytes));
    else
      report_race(race_of_store(*allocation, p, bytes, Site()));
  }
}

inline void check_plain(Access access, const void* p, size_t bytes, const void* pc) {
  if (!in_kernel(__builtin_frame_address(0))) return;
  if (device_memory().contains(p) || in_shared_arena(p)) check_access(access, p, bytes, pc);  // else the stack, or so
}

}  // namespace

}  // namespace emulator

#define FLASHATTN_HOOK(name, access, bytes) \
  void name(void* p) { emulator::check_plain(emulator::Access::access, p, bytes, __builtin_return_address(0)); }

#define FLASHATTN_ACCESS_HOOKS(bytes)                         \
  FLASHATTN_HOOK(__tsan_read##bytes, Load, bytes)             \
  FLASHATTN_HOOK(__tsan_write##bytes, Store, bytes)           \
  FLASHATTN_HOOK(__tsan_unaligned_read##bytes, Load, bytes)   \
  FLASHATTN_HOOK(__tsan_unaligned_write##bytes, Store, bytes) \
  FLASHATTN_HOOK(__tsan_volatile_read##bytes, Load, bytes)    \
  FLASHATTN_HOOK(__tsan_volatile_write##bytes, Store, bytes)

// Host code of the same translation unit may use atomics: the guards of static variables, for one.
#define FLASHATTN_ATOMIC_HOOKS(bits, T)                                                                    \
  T __tsan_atomic##bits##_load(const T* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }           \
  void __tsan_atomic##bits##_store(T* p, T v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }           \
  T __tsan_atomic##bits##_exchange(T* p, T v, int) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_add(T* p, T v, int) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_sub(T* p, T v, int) { return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_and(T* p, T v, int) { return __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_or(T* p, T v, int) { return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); }   \
  T __tsan_atomic##bits##_fetch_xor(T* p, T v, int) { return __atomic_fetch_xor(p, v, __ATOMIC_SEQ_CST); } \
  int __tsan_atomic##bits##_compare_exchange_strong(T* p, T* expected, T v, int, int) {                    \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);         \
  }                                                                                                        \
  int __tsan_atomic##bits##_compare_exchange_weak(T* p, T* expected, T v, int, int) {                      \
    return __atomic_compare_exchange_n(p, expected, v, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);          \
  }

extern "C" {

FLASHATTN_ACCESS_HOOKS(1)
FLASHATTN_ACCESS_HOOKS(2)
FLASHATTN_ACCESS_HOOKS(4)
FLASHATTN_ACCESS_HOOKS(8)
FLASHATTN_ACCESS_HOOKS(16)

void __tsan_read_range(void* p, unsigned long bytes) {
  emulator::check_plain(emulator::Access::Load, p, bytes, __builtin_return_address(0));
}
void __tsan_write_range(void* p, unsigned long bytes) {
  emulator::check_plain(emulator::Access::Store, p, bytes, __builtin_return_address(0));
}

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}

FLASHATTN_ATOMIC_HOOKS(8, uint8_t)
FLASHATTN_ATOMIC_HOOKS(16, uint16_t)
FLASHATTN_ATOMIC_HOOKS(32, uint32_t)
FLASHATTN_ATOMIC_HOOKS(64, uint64_t)
void __tsan_atomic_thread_fence(int) { std::atomic_thread_fence(std::memory_order_seq_cst); }
void __tsan_atomic_signal_fence(int) { std::atomic_signal_fence(std::memory_order_seq_cst); }

}  // extern "C"
