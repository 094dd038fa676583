#include "contexts.h"

#include <atomic>

namespace emulator {

namespace {

thread_local int current = 0;
std::atomic<unsigned> contexts = 0;  // a bit for each device

}  // namespace

int current_device() { return current; }

void set_current_device(int device) {
  current = device;
  need_context();
}

void need_context() { contexts |= 1u << current; }
bool has_context(int device) { return contexts >> device & 1; }

}  // namespace emulator
