// Launches over flat memory: converting and filling.
#include "flat.cuh"
#include "launch.h"
#include "vector.cuh"

namespace flashattn {

namespace {

template <class Params>
struct FlatLaunch {
  Params params;
  int32_t step;  // elements a thread handles
};

FLASHATTN_KERNEL(kFlatThreads) convert_kernel(FlatLaunch<ConvertParams> launch) {
  const ConvertParams& p = launch.params;
  const int64_t first = flat_thread() * launch.step;
  const bool aligned = launch.step == kVector;
  const int64_t left = p.count - first, count = left < launch.step ? left : launch.step;
  float x[kVector];
  load_vector(x, p.from_dtype, p.from, first, count, aligned);
  store_vector(p.to_dtype, p.to, first, x, count, aligned);
}

constexpr int kFillVector = 4;

FLASHATTN_KERNEL(kFlatThreads) fill_kernel(FlatLaunch<FillParams> launch) {
  const FillParams& p = launch.params;
  const int64_t first = flat_thread() * launch.step;
  if (launch.step == kFillVector && first + kFillVector <= p.count) {
    ptx::store_global(reinterpret_cast<uint4*>(p.data + first), uint4{p.bits, p.bits, p.bits, p.bits});
    return;
  }
  for (int64_t i = first; i < first + launch.step && i < p.count; ++i) ptx::store_global(p.data + i, p.bits);
}

template <class Params>
cudaError_t launch_steps(const char* name, void (*kernel)(FlatLaunch<Params>), int step, cudaStream_t stream,
                         const Params& params) {
  return launch_flat(name, kernel, (params.count + step - 1) / step, stream, FlatLaunch<Params>{params, step});
}

}  // namespace

cudaError_t launch_convert(const ConvertParams& p, cudaStream_t stream) {
  const int step = is_aligned(p.from) && is_aligned(p.to) ? kVector : 1;
  return launch_steps("convert", convert_kernel, step, stream, p);
}

cudaError_t launch_fill(const FillParams& p, cudaStream_t stream) {
  return launch_steps("fill", fill_kernel, is_aligned(p.data) ? kFillVector : 1, stream, p);
}

}  // namespace flashattn
