#include "launch_error.h"

#include "launch.h"

namespace flashattn {

namespace {
thread_local const char* failed_kernel = "";
}

cudaError_t launched(const char* kernel, cudaError_t error) {
  if (error != cudaSuccess) failed_kernel = kernel;
  return error;
}

const char* last_kernel() { return failed_kernel; }

}  // namespace flashattn
