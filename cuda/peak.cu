// The arithmetic peak that benchmarks compare with: multiply-adds that depend on nothing but registers.
#include "launch.h"
#include "launch_error.h"
#include "ptx.cuh"

namespace flashattn {

namespace {

constexpr int kWarps = 8;
constexpr int kChains = 8;  // independent accumulators a warp keeps, to cover the latency of one multiply-add

/** Two fp16 numbers of either sign in [1/16, 1/8), unlike each other: multiplying zeros would draw less power. */
FLASHATTN_DEVICE uint32_t operand(uint32_t seed) {
  return (ptx::multiply_high(seed * 0x9e3779b9u, 0x85ebca6bu) & 0x83ff83ffu) | 0x2c002c00u;
}

FLASHATTN_KERNEL(kWarps * 32) peak_kernel(PeakParams p) {
  const uint32_t seed = 8 * static_cast<uint32_t>(ptx::thread()) + 1;
  const uint32_t a[4] = {operand(seed), operand(seed + 1), operand(seed + 2), operand(seed + 3)};
  const uint32_t b0 = operand(seed + 4), b1 = operand(seed + 5);
  float chains[kChains][4] = {};
  for (int i = 0; i < p.iterations; ++i)
    for (int c = 0; c < kChains; ++c) ptx::mma_f16(chains[c], a, b0, b1);

  float sum = 0;
  for (int c = 0; c < kChains; ++c)
    for (int e = 0; e < 4; ++e) sum += chains[c][e];
  if (ptx::block().x == 0 && ptx::thread() == 0) ptx::store_global(p.sink, sum);
}

}  // namespace

cudaError_t launch_peak(const PeakParams& p, const DeviceLimits&, cudaStream_t stream) {
  return launched("peak", ptx::launch(peak_kernel, "peak", dim3(p.items), kWarps * 32, 0, stream, p));
}

}  // namespace flashattn
