#include "stand_in.h"

#include <mutex>

#include "../faults.h"
#include "emulator/calls.h"
#include "emulator/emulator.h"
#include "stand_in_state.h"

namespace flashattn {

namespace emulated {

StandInState& stand_in_state() {
  static StandInState& state = *new StandInState;  // other threads may outlive main
  return state;
}

namespace {

int launch(void* stream, const char* name, void (*run)(const void*), const void* call, size_t call_bytes) {
  return emulator::launch({run, call, call_bytes, name, dim3(1), 1, 0, static_cast<cudaStream_t>(stream)});
}

void complain(const char* message) {
  const std::scoped_lock lock(stand_in_state().mutex);
  stand_in_state().complaints.emplace_back(message);
  ++stand_in_state().counts["complaints"];
}

void count(const char* name, int64_t by) {
  const std::scoped_lock lock(stand_in_state().mutex);
  stand_in_state().counts[name] += by;
}

const char* behaviour() { return stand_in_state().behaviour.c_str(); }

constexpr Device kDevice{launch, emulator::is_device_memory, complain, count, behaviour};

}  // namespace

}  // namespace emulated

std::string admit_library(const SharedLibrary& library) {
  const auto use_device = reinterpret_cast<emulated::UseDevice>(library.find("flashattn_use_device"));
  if (use_device == nullptr) return "it needs a GPU, and the emulator is none";
  use_device(&emulated::kDevice);
  return {};
}

}  // namespace flashattn
