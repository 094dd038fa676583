// What differs between real devices and emulated ones: folder real/ or emulated/ is compiled.
#pragma once
#include <napi.h>

#include <string>

namespace flashattn {

/** 'cuda' or 'emulator'. */
extern const char* const kKind;

/** Whether a device has a primary context: asking the runtime for it by making the device current would make one. */
bool has_primary_context(int device);

/** Watches one launch, which the emulator runs to its end before it returns. */
class FaultWatch {
 public:
  FaultWatch();
  /** What the emulator first saw the launch do wrong; empty where it saw nothing, and on the real device. */
  std::string first_fault() const;

 private:
  [[maybe_unused]] size_t before_ = 0;
};

/** What tests control and see of the emulated device; undefined on the real one. See EmulatorControls in lib. */
Napi::Value emulator_controls(Napi::Env);

}  // namespace flashattn
