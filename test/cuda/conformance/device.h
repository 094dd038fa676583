// Running the body of a case on the device: words in, words out.
#pragma once
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>

#include "case.h"
#include "ptx.cuh"
#if !defined(__CUDACC__)
#include "emulator/emulator.h"
#endif

namespace flashattn::test {

/** What the emulator has against a kernel; nothing on a GPU. */
inline void print_reports() {
#if !defined(__CUDACC__)
  for (const std::string& report : emulator::reports()) std::fprintf(stderr, "%s\n", report.c_str());
#endif
}

inline void check(cudaError_t error, const char* doing) {
  if (error == cudaSuccess) return;
  print_reports();
  std::fprintf(stderr, "%s: %s: %s\n", doing, cudaGetErrorName(error), cudaGetErrorString(error));
  std::exit(1);
}

/** Words in device memory. */
class DeviceWords {
 public:
  explicit DeviceWords(const Words& words) : count_(words.size()) {
    check(cudaMalloc(&data_, bytes() + kSpare), "cudaMalloc");
    check(cudaMemcpy(data_, words.data(), bytes(), cudaMemcpyHostToDevice), "cudaMemcpy to the device");
  }
  DeviceWords(const DeviceWords&) = delete;
  DeviceWords& operator=(const DeviceWords&) = delete;
  ~DeviceWords() { cudaFree(data_); }

  uint32_t* data() const { return data_; }
  Words download() const {
    Words words(count_);
    check(cudaMemcpy(words.data(), data_, bytes(), cudaMemcpyDeviceToHost), "cudaMemcpy from the device");
    return words;
  }

 private:
  static constexpr size_t kSpare = 16;  // no allocation is empty
  size_t bytes() const { return count_ * sizeof(uint32_t); }

  size_t count_;
  uint32_t* data_ = nullptr;  // [count_]
};

/** What the body of a case gets. */
struct Arrays {
  const uint32_t* in;  // [in_count]
  uint32_t* out;       // [out_count]
  int in_count, out_count;
};

inline constexpr uint32_t kUnwritten = 0xdeadbeef;  // in every word of `out`, where nothing else is wanted

template <class Body>
FLASHATTN_KERNEL(Body::kThreads)
body_kernel(const FLASHATTN_CONSTANT Arrays arrays) {
  Body::run(arrays);
}

/** How many blocks, and how much dynamic shared memory each has. */
struct Grid {
  dim3 blocks = dim3(1);
  int shared_bytes = 0;
};

/** `Body` has kThreads and, for the device, run(const Arrays&). */
template <class Body>
Words run_body(const char* name, const Words& in, const Words& out, const Grid& grid) {
  const DeviceWords input(in), output(out);
  const Arrays arrays{input.data(), output.data(), static_cast<int>(in.size()), static_cast<int>(out.size())};
  check(ptx::launch(body_kernel<Body>, name, grid.blocks, Body::kThreads, grid.shared_bytes, nullptr, arrays), name);
  check(cudaDeviceSynchronize(), name);
  return output.download();
}

/** The case of a body that gives as many words as are expected. */
template <class Body>
Case body_case(const char* function, const char* aspect, Tolerance tolerance, const Words& in, const Words& expected,
               const Grid& grid = {}) {
  const auto on_device = [=] { return run_body<Body>(function, in, Words(expected.size(), kUnwritten), grid); };
  return {function, aspect, tolerance, on_device, [=] { return expected; }};
}

/** F::apply(a, b) of pairs of words, on the device. */
template <class F>
struct MapBody {
  static constexpr int kThreads = 128;
  static FLASHATTN_DEVICE void run(const Arrays& arrays) {
    const int i = static_cast<int>(ptx::block().x) * kThreads + ptx::thread();
    if (i >= arrays.out_count) return;
    const uint32_t a = ptx::load_global(arrays.in + 2 * i), b = ptx::load_global(arrays.in + 2 * i + 1);
    ptx::store_global(arrays.out + i, F::apply(a, b));
  }
};

/** The case of a function of two words; F::expect(a, b) says what they give. */
template <class F>
Case map_case(const char* function, const char* aspect, Tolerance tolerance, const Words& pairs) {
  Words expected;
  for (size_t i = 0; i + 1 < pairs.size(); i += 2) expected.push_back(F::expect(pairs[i], pairs[i + 1]));
  const auto blocks = static_cast<unsigned>((expected.size() + MapBody<F>::kThreads - 1) / MapBody<F>::kThreads);
  return body_case<MapBody<F>>(function, aspect, tolerance, pairs, expected, {dim3(blocks), 0});
}

}  // namespace flashattn::test
