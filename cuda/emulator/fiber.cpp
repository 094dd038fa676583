#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__) && !defined(__aarch64__)
#error "fiber.cpp knows how to switch stacks on x86-64 and on 64-bit Arm"
#endif

// Saves the registers that a function must keep, exchanges the stack pointers, and takes the other side's registers
// back. Returns as the other side, wherever that called the function; a restarted fiber "returns" into its entry.
extern "C" void emulator_switch_stack(void** save, void* load);

#if defined(__x86_64__)
asm(R"(
.text
.globl emulator_switch_stack
.hidden emulator_switch_stack
.type emulator_switch_stack,@function
emulator_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch_stack,.-emulator_switch_stack
)");
#else
asm(R"(
.text
.globl emulator_switch_stack
.hidden emulator_switch_stack
.type emulator_switch_stack,@function
emulator_switch_stack:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size emulator_switch_stack,.-emulator_switch_stack
)");
#endif

namespace emulator {

namespace {

constexpr size_t kStackBytes = 512 << 10, kGuardBytes = 4096;
constexpr size_t kStagger = 640, kStaggers = 64;

/** The frame that emulator_switch_stack takes registers from, with `entry` as the address to return to. */
void** first_frame(void* top, void (*entry)()) {
  void** frame = static_cast<void**>(top);
#if defined(__x86_64__)
  constexpr int kRegisters = 6;
  *--frame = nullptr;  // as if the entry had been called: the stack is 8 bytes off a multiple of 16
  *--frame = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kRegisters; ++i) *--frame = nullptr;
#else
  constexpr int kRegisters = 20, kReturnAddress = 11;
  frame -= kRegisters;
  for (int i = 0; i < kRegisters; ++i) frame[i] = nullptr;
  frame[kReturnAddress] = reinterpret_cast<void*>(entry);
#endif
  return frame;
}

#if defined(__SANITIZE_ADDRESS__)
Context* arriving = nullptr;
#endif

}  // namespace

Context make_fiber(int index) {
  void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kGuardBytes, PROT_NONE) != 0) {
    std::perror("emulator: no memory for a fiber's stack");
    std::abort();
  }
  const size_t stagger = static_cast<size_t>(index) % kStaggers * kStagger;
  Context fiber;
  fiber.stack = static_cast<char*>(memory) + kGuardBytes;
  fiber.stack_bytes = kStackBytes - kGuardBytes - stagger;
  return fiber;
}

void Context::restart(void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack, stack_bytes);
  sanitizer = nullptr;
#endif
  stack_pointer = first_frame(static_cast<char*>(stack) + stack_bytes, entry);
}

#if defined(__SANITIZE_ADDRESS__)

void enter_context() {
  const void* stack;
  size_t bytes;
  __sanitizer_finish_switch_fiber(arriving->sanitizer, &stack, &bytes);
}

void switch_context(Context& from, Context& to) {
  arriving = &to;
  if (!from.stack) {
    // The host thread's stack, which the sanitizer has to be told on the way back.
    pthread_attr_t attributes;
    pthread_getattr_np(pthread_self(), &attributes);
    void* stack;
    size_t bytes;
    pthread_attr_getstack(&attributes, &stack, &bytes);
    pthread_attr_destroy(&attributes);
    from.stack = stack;
    from.stack_bytes = bytes;
  }
  __sanitizer_start_switch_fiber(&from.sanitizer, to.stack, to.stack_bytes);
  emulator_switch_stack(&from.stack_pointer, to.stack_pointer);
  __sanitizer_finish_switch_fiber(from.sanitizer, nullptr, nullptr);
}

void leave_context(Context& from, Context& to) {
  arriving = &to;
  __sanitizer_start_switch_fiber(nullptr, to.stack, to.stack_bytes);
  emulator_switch_stack(&from.stack_pointer, to.stack_pointer);
  __builtin_unreachable();
}

#else

void enter_context() {}

void switch_context(Context& from, Context& to) { emulator_switch_stack(&from.stack_pointer, to.stack_pointer); }

void leave_context(Context& from, Context& to) {
  emulator_switch_stack(&from.stack_pointer, to.stack_pointer);
  __builtin_unreachable();
}

#endif

}  // namespace emulator
