// Arrays and strided tensors in device memory with a mirror on the host, and the checks that tests make on them.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "numbers.h"
#if !defined(__CUDACC__)
#include "emulator/emulator.h"
#endif

namespace flashattn::test {

inline int failures = 0;

/** Counts a check that does not hold and says which, the first few times. */
[[gnu::format(printf, 2, 3)]] inline void expect(bool holds, const char* format, ...) {
  if (holds || ++failures > 20) return;
  std::va_list arguments;
  va_start(arguments, format);
  std::printf("failed: ");
  std::vprintf(format, arguments);
  std::printf("\n");
  va_end(arguments);
}

/** Begins a program: kernels may reach device memory through ptx:: alone. */
inline void start() {
#if !defined(__CUDACC__)
  emulator::config().plain_accesses = emulator::PlainAccesses::Forbid;
#endif
}

/** Ends a program: says how many checks failed, reports of the emulator among them, and returns its exit code. */
inline int finish() {
#if !defined(__CUDACC__)
  for (const std::string& report : emulator::reports()) expect(false, "%s", report.c_str());
#endif
  std::printf("%d failed\n", failures);
  return failures != 0;
}

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  expect(false, "%s", cudaGetErrorString(error));
  std::exit(finish());
}

/** Device memory of exactly `host.size()` elements. */
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(std::vector<T> values) : host(std::move(values)) {
    check(cudaMalloc(reinterpret_cast<void**>(&data_), std::max<size_t>(bytes(), 16)));
    upload();
  }
  DeviceArray(size_t count, T value) : DeviceArray(std::vector<T>(count, value)) {}
  DeviceArray(DeviceArray&& other) : host(std::move(other.host)), data_(other.data_) { other.data_ = nullptr; }
  ~DeviceArray() { cudaFree(data_); }

  T* data() const { return data_; }
  void upload() { check(cudaMemcpy(data_, host.data(), bytes(), cudaMemcpyHostToDevice)); }
  void download() {
    check(cudaDeviceSynchronize());
    check(cudaMemcpy(host.data(), data_, bytes(), cudaMemcpyDeviceToHost));
  }

  std::vector<T> host;

 private:
  size_t bytes() const { return host.size() * sizeof(T); }
  T* data_ = nullptr;
};

inline DeviceArray<float> random_floats(size_t count, Random& random) {
  std::vector<float> values(count);
  for (float& x : values) x = static_cast<float>(random.uniform(-1, 1));
  return DeviceArray<float>(std::move(values));
}

/** Padded: no row starts at a multiple of 16 bytes by more than chance, and there are gaps between all of them. */
enum class Layout { SeqFirst, HeadsFirst, Padded };
inline constexpr Layout kLayouts[] = {Layout::SeqFirst, Layout::HeadsFirst, Layout::Padded};

/** [batch, seq, heads, dim] */
class Tensor {
 public:
  const int batch, seq, heads, dim;
  const DType dtype;

  Tensor(int batch, int seq, int heads, int dim, DType dtype, Layout layout)
      : batch(batch),
        seq(seq),
        heads(heads),
        dim(dim),
        dtype(dtype),
        strides_(strides_of(seq, heads, dim, layout)),
        bytes_(static_cast<size_t>(strides_.offset + strides_.batch * batch) * format_of(dtype).bytes, kGap) {}

  TensorRef ref() const {
    return {bytes_.data() + strides_.offset * format_of(dtype).bytes,
            strides_.batch,
            strides_.seq,
            strides_.head,
            dtype,
            0};
  }
  double get(int b, int i, int h, int d) const {
    return decode(dtype, read_bits(dtype, bytes_.host.data(), index(b, i, h, d)));
  }
  void set(int b, int i, int h, int d, double x) {
    write_bits(dtype, bytes_.host.data(), index(b, i, h, d), encode(dtype, x));
  }
  void randomize(Random& random) {
    for_each([&](int b, int i, int h, int d) { set(b, i, h, d, random.uniform(-1, 1)); });
    upload();
  }
  void upload() { bytes_.upload(); }
  void download() { bytes_.download(); }

  /** Whether what lies between the elements is as it was made. */
  bool gaps_are_intact() const {
    std::vector<uint8_t> rest = bytes_.host;
    for_each([&](int b, int i, int h, int d) { write_bits(dtype, rest.data(), index(b, i, h, d), 0xffffffffu); });
    return std::all_of(rest.begin(), rest.end(), [](uint8_t byte) { return byte == kGap; });
  }

  template <class F>
  void for_each(F f) const {
    for (int b = 0; b < batch; ++b)
      for (int i = 0; i < seq; ++i)
        for (int h = 0; h < heads; ++h)
          for (int d = 0; d < dim; ++d) f(b, i, h, d);
  }

 private:
  static constexpr uint8_t kGap = 0xff;  // a NaN in every dtype

  struct Strides {
    int64_t offset, batch, seq, head;
  };
  static Strides strides_of(int seq, int heads, int dim, Layout layout) {
    const int64_t row = layout == Layout::Padded ? dim + 3 : dim;
    if (layout == Layout::HeadsFirst) return {0, row * seq * heads, row, row * seq};
    return {layout == Layout::Padded ? 1 : 0, row * seq * heads, row * heads, row};
  }
  int64_t index(int b, int i, int h, int d) const {
    return strides_.offset + b * strides_.batch + i * strides_.seq + h * strides_.head + d;
  }

  Strides strides_;
  DeviceArray<uint8_t> bytes_;
};

}  // namespace flashattn::test
