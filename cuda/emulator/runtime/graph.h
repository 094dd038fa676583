// Launches that a captured stream keeps instead of running them, and graphs of them.
#pragma once
#include <cstddef>
#include <vector>

#include "../calls.h"

namespace emulator {

/** A launch with parameters of its own. */
class KeptLaunch {
 public:
  explicit KeptLaunch(const Launch&);

  cudaError_t run(cudaStream_t) const;

 private:
  Launch launch_;
  std::vector<std::max_align_t> call_;
};

cudaGraph_t make_graph(int device, std::vector<KeptLaunch>);

}  // namespace emulator
