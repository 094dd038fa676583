// Sums over a block.
#pragma once
#include "ptx.cuh"

namespace flashattn {

/** The sum over a block of kThreads, a power of two, in its first thread: always the same pairs in the same order. */
template <int kThreads>
FLASHATTN_DEVICE double sum_block(double x) {
  const auto at = [](int thread) { return ptx::shared_base() + static_cast<uint32_t>(thread * sizeof(double)); };
  const int thread = ptx::thread();
  ptx::store_shared(at(thread), x);
  for (int half = kThreads / 2; half > 0; half /= 2) {
    ptx::sync_threads();
    if (thread >= half) continue;
    x += ptx::load_shared<double>(at(thread + half));
    ptx::store_shared(at(thread), x);
  }
  return x;
}

template <int kThreads>
inline constexpr int kSumBytes = kThreads * static_cast<int>(sizeof(double));

}  // namespace flashattn
