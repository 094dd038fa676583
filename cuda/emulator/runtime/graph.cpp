#include "graph.h"

#include <cstring>
#include <set>
#include <utility>

#include "../launch_lock.h"
#include "stream.h"

struct CUgraph_st {
  int device;
  std::vector<emulator::KeptLaunch> launches;
};

struct CUgraphExec_st : CUgraph_st {};

namespace emulator {

namespace {

/** What has been made and not destroyed yet. */
template <class Object>
std::set<Object*>& alive() {
  static auto& objects = *new std::set<Object*>;  // other threads may outlive main
  return objects;
}

template <class Object>
cudaError_t destroy(Object* object) {
  const LaunchLock lock;
  if (alive<Object>().erase(object) == 0) return fail(cudaErrorInvalidValue);
  delete object;
  return cudaSuccess;
}

}  // namespace

KeptLaunch::KeptLaunch(const Launch& launch)
    : launch_(launch),
      call_((launch.call_bytes + sizeof(std::max_align_t) - 1) / sizeof(std::max_align_t)) {
  std::memcpy(call_.data(), launch.call, launch.call_bytes);
}

cudaError_t KeptLaunch::run(cudaStream_t stream) const {
  Launch launch = launch_;
  launch.call = call_.data();
  launch.stream = stream;
  return emulator::launch(launch);
}

cudaGraph_t make_graph(int device, std::vector<KeptLaunch> launches) {
  const LaunchLock lock;
  auto* graph = new CUgraph_st{device, std::move(launches)};
  alive<CUgraph_st>().insert(graph);
  return graph;
}

}  // namespace emulator

using emulator::alive;
using emulator::fail;
using emulator::LaunchLock;

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  const LaunchLock lock;
  if (!exec || alive<CUgraph_st>().count(graph) == 0) return fail(cudaErrorInvalidValue);
  *exec = new CUgraphExec_st{*graph};
  alive<CUgraphExec_st>().insert(*exec);
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  const LaunchLock lock;
  if (alive<CUgraphExec_st>().count(exec) == 0) return fail(cudaErrorInvalidValue);
  if (exec->device != emulator::device_of(stream)) return fail(cudaErrorInvalidValue);
  cudaError_t error = emulator::take_failure(stream);
  for (const emulator::KeptLaunch& launch : exec->launches)
    if (error == cudaSuccess) error = launch.run(stream);
  return error;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return emulator::destroy(graph); }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return emulator::destroy(exec); }
