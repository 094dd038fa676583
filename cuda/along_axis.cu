// Elements of lines by their index, taken and added up, and sums up to each element.
#include "flat.cuh"
#include "launch.h"
#include "line.cuh"

namespace flashattn {

namespace {

/** others[r, i, c] = data[r, indices[r, i, c], c]; NaN where that is no place of a line. */
FLASHATTN_KERNEL(kFlatThreads) take_along_kernel(LinesParams p) {
  const int64_t at = flat_thread();
  if (at >= int64_t{p.lines} * p.count) return;
  const int64_t row = at / p.inner / p.count, column = at % p.inner;
  const int32_t index = ptx::load_global(p.indices + at);
  float x = NAN;
  if (static_cast<uint32_t>(index) < static_cast<uint32_t>(p.length))
    x = load_element(p.dtype, p.data, (row * p.length + index) * p.inner + column);
  store_element(p.others_dtype, p.others, at, x);
}

/** data[r, j, c] = the sum of others[r, i, c] over all i with indices[r, i, c] = j, in the order of i. */
FLASHATTN_KERNEL(kFlatThreads) add_along_kernel(LinesParams p) {
  const int64_t at = flat_thread();
  if (at >= int64_t{p.lines} * p.length) return;
  const int64_t row = at / p.inner / p.length, first = row * p.count * p.inner + at % p.inner;
  const auto place = static_cast<int32_t>(at / p.inner % p.length);
  double sum = 0;
  for (int64_t i = 0; i < p.count; ++i) {
    const int64_t from = first + i * p.inner;
    if (ptx::load_global(p.indices + from) == place) sum += load_element(p.others_dtype, p.others, from);
  }
  store_element(p.dtype, p.data, at, static_cast<float>(sum));
}

constexpr int kSumBytes = kFlatThreads * static_cast<int>(sizeof(double));

/** A block owns a line and walks along it, kVector elements a thread at a time. Lines lie in one piece. */
FLASHATTN_KERNEL(kFlatThreads) sum_long_lines_kernel(LinesParams p) {
  const int thread = ptx::thread();
  const int64_t line = static_cast<int64_t>(ptx::block().x) * p.length;
  const auto place = [&](int64_t i) { return line + (p.reversed ? p.length - 1 - i : i); };
  const auto at = [](int n) { return ptx::shared_base() + static_cast<uint32_t>(n * sizeof(double)); };
  double before = 0;
  for (int64_t begin = 0; begin < p.length; begin += kFlatThreads * kVector) {
    const int64_t first = begin + thread * kVector;
    float x[kVector];
    double own = 0;
    for (int e = 0; e < kVector; ++e) {
      x[e] = first + e < p.length ? load_element(p.dtype, p.data, place(first + e)) : 0.0f;
      own += x[e];
    }
    // The sums of all threads up to each: Hillis and Steele, "Data parallel algorithms" (1986).
    ptx::store_shared(at(thread), own);
    ptx::sync_threads();
    for (int distance = 1; distance < kFlatThreads; distance *= 2) {
      if (thread >= distance) own = ptx::load_shared<double>(at(thread - distance)) + own;
      ptx::sync_threads();
      ptx::store_shared(at(thread), own);
      ptx::sync_threads();
    }
    double sum = thread == 0 ? before : before + ptx::load_shared<double>(at(thread - 1));
    for (int e = 0; e < kVector; ++e) {
      if (first + e >= p.length) continue;
      sum += x[e];
      store_element(p.others_dtype, p.others, place(first + e), static_cast<float>(sum));
    }
    before += ptx::load_shared<double>(at(kFlatThreads - 1));
    ptx::sync_threads();
  }
}

/** A thread owns a line. */
FLASHATTN_KERNEL(kFlatThreads) sum_lines_kernel(LinesParams p) {
  const int64_t line = flat_thread();
  if (line >= p.lines) return;
  const LinePlace begin(p, line);
  double sum = 0;
  for (int64_t i = 0; i < p.length; ++i) {
    const int64_t at = begin.data + (p.reversed ? p.length - 1 - i : i) * p.inner;
    sum += load_element(p.dtype, p.data, at);
    store_element(p.others_dtype, p.others, at, static_cast<float>(sum));
  }
}

constexpr int kLongLine = 64;

}  // namespace

cudaError_t launch_take_along(const LinesParams& p, const DeviceLimits&, cudaStream_t stream) {
  return launch_flat("take_along", take_along_kernel, int64_t{p.lines} * p.count, stream, p);
}

cudaError_t launch_add_along(const LinesParams& p, const DeviceLimits&, cudaStream_t stream) {
  return launch_flat("add_along", add_along_kernel, int64_t{p.lines} * p.length, stream, p);
}

cudaError_t launch_cumulative_sum(const LinesParams& p, const DeviceLimits&, cudaStream_t stream) {
  if (p.inner > 1 || p.length <= kLongLine) return launch_flat("sum_lines", sum_lines_kernel, p.lines, stream, p);
  if (p.lines == 0) return cudaSuccess;
  return launched("sum_long_lines",
                  ptx::launch(sum_long_lines_kernel, "sum_long_lines", dim3(static_cast<unsigned>(p.lines)),
                              kFlatThreads, kSumBytes, stream, p));
}

}  // namespace flashattn
