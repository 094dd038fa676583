// Whether every wrapper of ptx.cuh does what the kernels rely on. The same source runs on a GPU (nvcc) and on the
// emulator (g++), each checked against plain C++; --write and --compare set the one against the other.
//
//   conformance [--write <file>] [--compare <file>]
//
// Exit code: 0 all agree, 1 some do not, 2 bad arguments, 3 no CUDA device.
#include <cstring>

#include "fragments.cuh"
#include "memory.cuh"
#include "numbers.cuh"
#include "results.h"
#include "threads.cuh"

namespace flashattn::test {

namespace {

constexpr int kDisagree = 1, kBadArguments = 2, kNoDevice = 3;

struct Arguments {
  const char* write = nullptr;
  const char* compare = nullptr;
  bool valid = true;

  Arguments(int count, char** values) {
    for (int i = 1; i < count; i += 2) {
      const bool writes = !std::strcmp(values[i], "--write"), compares = !std::strcmp(values[i], "--compare");
      valid = valid && (writes || compares) && i + 1 < count;
      if (valid) (writes ? write : compare) = values[i + 1];
    }
  }
};

bool print_device() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  cudaDeviceProp device{};
  if (error != cudaSuccess || count == 0 || cudaGetDeviceProperties(&device, 0) != cudaSuccess) {
    std::printf("no CUDA device: %s\n", error == cudaSuccess ? "none is visible" : cudaGetErrorString(error));
    return false;
  }
  std::printf("%s, compute capability %d.%d\n", device.name, device.major, device.minor);
  return true;
}

Cases all_cases() {
  Cases cases;
  add_thread_cases(cases);
  add_memory_cases(cases);
  add_fragment_cases(cases);
  add_number_cases(cases);
  return cases;
}

/** Twice the tolerance: what is compared has been within it of the truth, on either side. */
Tolerance between_devices(const Tolerance& t) { return {t.kind, 2 * t.absolute, 2 * t.relative}; }

/** What is wrong with the words of a case, in a few words; empty: nothing. */
std::string judge(const Case& c, const Words& got, const Results* others) {
  const std::string against_truth = difference(c.tolerance, got, c.expected());
  if (!against_truth.empty()) return "not what is expected: " + against_truth;
  if (!others) return "";
  const auto other = others->find(c.name());
  if (other == others->end()) return "missing in the file to compare with";
  const std::string against_other = difference(between_devices(c.tolerance), got, other->second);
  return against_other.empty() ? "" : "unlike the file: " + against_other;
}

int run(const Arguments& arguments) {
  if (!print_device()) return kNoDevice;
  Results others, results;
  if (arguments.compare) others = read_results(arguments.compare);
  size_t failures = 0, words = 0;
  const Cases cases = all_cases();
  for (const Case& c : cases) {
    const Words& got = results[c.name()] = c.on_device();
    words += got.size();
    const std::string wrong = judge(c, got, arguments.compare ? &others : nullptr);
    if (!wrong.empty()) ++failures;
    std::printf("%s  %s%s%s\n", wrong.empty() ? "pass" : "FAIL", c.name().c_str(), wrong.empty() ? "" : ": ",
                wrong.c_str());
  }
  if (arguments.write) write_results(arguments.write, results);
  std::printf("%zu cases, %zu words, %zu failed\n", cases.size(), words, failures);
  return failures ? kDisagree : 0;
}

}  // namespace

}  // namespace flashattn::test

int main(int count, char** values) {
  const flashattn::test::Arguments arguments(count, values);
  if (!arguments.valid) {
    std::fprintf(stderr, "usage: conformance [--write <file>] [--compare <file>]\n");
    return flashattn::test::kBadArguments;
  }
  try {
    return flashattn::test::run(arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return flashattn::test::kDisagree;
  }
}
