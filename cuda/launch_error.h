// Which kernel a failed launch was of.
#pragma once
#include <cuda_runtime_api.h>

namespace flashattn {

/** Passes `error` on; a failure makes `kernel`, a string that is never freed, the `last_kernel()` of this thread. */
cudaError_t launched(const char* kernel, cudaError_t error);

}  // namespace flashattn
