// Fibers: stacks of their own that one host thread switches between.
#pragma once
#include <cstddef>

namespace emulator {

/** A place to continue at: a fiber that waits, or the host thread that started the first one. */
struct Context {
  void* stack_pointer = nullptr;
  void* stack = nullptr;  // lowest usable byte, null for the host thread
  size_t stack_bytes = 0;
  void* sanitizer = nullptr;  // AddressSanitizer's own record of the stack

  /** Makes the next switch to this fiber call `entry`, which must not return; the stack's old contents are dropped. */
  void restart(void (*entry)());
};

/** A fiber with a new stack; `index` staggers the stacks, so that they do not all fall into the same cache sets. */
Context make_fiber(int index);

/** Continues `to`; returns when somebody switches back to `from`. */
void switch_context(Context& from, Context& to);
/** Continues `to` and forgets where it came from. */
[[noreturn]] void leave_context(Context& from, Context& to);
/** The first thing that a fiber's entry does. */
void enter_context();

}  // namespace emulator
