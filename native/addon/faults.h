// What differs between the real device and the emulated one: folder real/ or emulated/ is compiled.
#pragma once
#include <napi.h>

#include <string>

namespace flashattn {

/** 'cuda' or 'emulator'. */
extern const char* const kKind;

/** Watches one launch, which the emulator runs to its end before it returns. */
class FaultWatch {
 public:
  FaultWatch();
  /** What the emulator first saw the launch do wrong; empty where it saw nothing, and on the real device. */
  std::string first_fault() const;

 private:
  [[maybe_unused]] size_t before_ = 0;
};

/** { configure, reports, clearReports, statistics }, or undefined on the real device. */
Napi::Value emulator_controls(Napi::Env);

}  // namespace flashattn
