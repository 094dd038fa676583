#include "../faults.h"

#include <cuda_runtime_api.h>

namespace flashattn {

const char* const kKind = "cuda";

namespace {

/** A function of the driver, which nothing links; null where there is no such driver. */
template <class Function>
Function driver_function(const char* name) {
  constexpr unsigned kVersion = 12000;
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  const cudaError_t error = cudaGetDriverEntryPointByVersion(name, &function, kVersion, cudaEnableDefault, &found);
  if (error != cudaSuccess) cudaGetLastError();
  return error == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<Function>(function) : nullptr;
}

}  // namespace

bool has_primary_context(int device) {
  using GetState = int (*)(int device, unsigned* flags, int* active);
  static const auto get_state = driver_function<GetState>("cuDevicePrimaryCtxGetState");
  unsigned flags = 0;
  int active = 0;
  // Handles of devices are their numbers.
  return get_state != nullptr && get_state(device, &flags, &active) == 0 && active != 0;
}

std::string admit_library(const SharedLibrary&) { return {}; }

FaultWatch::FaultWatch() = default;
std::string FaultWatch::first_fault() const { return {}; }
Napi::Value emulator_controls(Napi::Env env) { return env.Undefined(); }

}  // namespace flashattn
