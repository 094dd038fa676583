// What differs between real devices and emulated ones: folder real/ or emulated/ is compiled.
#pragma once
#include <napi.h>

#include <string>

#include "shared_library.h"

namespace flashattn {

/** 'cuda' or 'emulator'. */
extern const char* const kKind;

/** Whether a device has a primary context: asking the runtime for it by making the device current would make one. */
bool has_primary_context(int device);

/** Why a library of NVIDIA's cannot work on these devices, which it finds by itself; empty where it can. */
std::string admit_library(const SharedLibrary&);

/** Watches one launch, which the emulator runs to its end before it returns. */
class FaultWatch {
 public:
  FaultWatch();
  /** What the emulator first saw the launch do wrong; empty where it saw nothing, and on the real device. */
  std::string first_fault() const;

 private:
  [[maybe_unused]] size_t before_ = 0, complaints_before_ = 0;
};

/** What tests control and see of the emulated device; undefined on the real one. See EmulatorControls in lib. */
Napi::Value emulator_controls(Napi::Env);

}  // namespace flashattn
