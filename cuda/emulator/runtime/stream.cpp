#include "stream.h"

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "../emulator.h"
#include "../launch_lock.h"
#include "contexts.h"
#include "graph.h"
#include "pools.h"

namespace {
using Clock = std::chrono::steady_clock;
}  // namespace

struct CUstream_st {
  int device;
  cudaError_t failure = cudaSuccess;
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  std::vector<emulator::KeptLaunch> kept{};  // while it is captured
};

struct CUevent_st {
  int device;
  bool timed;
  bool recorded = false;
  Clock::time_point time;
};

namespace emulator {

namespace {

thread_local cudaError_t last_error = cudaSuccess;

template <class Object>
class Handles {
 public:
  Object* add(Object object) {
    auto owned = std::make_unique<Object>(std::move(object));
    Object* handle = owned.get();
    objects_[handle] = std::move(owned);
    return handle;
  }
  bool remove(Object* handle) { return objects_.erase(handle) == 1; }
  bool has(Object* handle) const { return objects_.count(handle) == 1; }

  template <class Visit>
  void visit(Visit visit) const {
    for (const auto& [handle, object] : objects_) visit(*object);
  }

 private:
  std::unordered_map<Object*, std::unique_ptr<Object>> objects_;
};

struct Context {
  CUstream_st default_stream{0};  // of all devices: what fails there is told to whoever asks first
  Handles<CUstream_st> streams;
  Handles<CUevent_st> events;
};

Context& context() {
  static Context& context = *new Context;  // other threads may outlive main
  return context;
}

struct Holding {
  std::mutex mutex;
  std::condition_variable changed;
  bool held = false;
};
Holding& holding = *new Holding;  // other threads may outlive main

CUstream_st* find(cudaStream_t stream) {
  if (!stream) return &context().default_stream;
  return context().streams.has(stream) ? stream : nullptr;
}

cudaError_t take(CUstream_st& stream) {
  const cudaError_t failure = stream.failure;
  stream.failure = cudaSuccess;
  return failure;
}

cudaError_t first_failure(bool clear) {
  cudaError_t failure = cudaSuccess;
  const auto visit = [&](CUstream_st& stream) {
    if (failure == cudaSuccess && stream.failure != cudaSuccess) failure = clear ? take(stream) : stream.failure;
  };
  visit(context().default_stream);
  context().streams.visit(visit);
  return failure;
}

}  // namespace

void hold_events(bool held) {
  {
    const std::scoped_lock lock(holding.mutex);
    holding.held = held;
  }
  holding.changed.notify_all();
}

void wait_while_held() {
  std::unique_lock lock(holding.mutex);
  holding.changed.wait(lock, [] { return !holding.held; });
}

cudaError_t fail(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

int device_of(cudaStream_t stream) {
  const LaunchLock lock;
  if (!stream) return current_device();
  return context().streams.has(stream) ? stream->device : -1;
}

void fail_later(cudaStream_t stream, cudaError_t error) {
  CUstream_st* found = find(stream);
  (found ? *found : context().default_stream).failure = error;
}

cudaError_t capture(const Launch& launch, bool* kept) {
  const LaunchLock lock;
  CUstream_st* found = find(launch.stream);
  *kept = found != nullptr && found->capture == cudaStreamCaptureStatusActive;
  if (*kept) found->kept.emplace_back(launch);
  const bool failed = found != nullptr && found->capture == cudaStreamCaptureStatusInvalidated;
  return failed ? fail(cudaErrorStreamCaptureInvalidated) : cudaSuccess;
}

cudaError_t refuse_capture(cudaStream_t stream) {
  const LaunchLock lock;
  CUstream_st* found = find(stream);
  if (found == nullptr || found->capture == cudaStreamCaptureStatusNone) return cudaSuccess;
  found->capture = cudaStreamCaptureStatusInvalidated;
  return fail(cudaErrorStreamCaptureUnsupported);
}

cudaError_t take_failure(cudaStream_t stream) {
  const LaunchLock lock;
  if (const cudaError_t error = refuse_capture(stream)) return error;
  CUstream_st* found = find(stream);
  return found ? take(*found) : fail(cudaErrorInvalidResourceHandle);
}

cudaError_t take_any_failure() {
  const LaunchLock lock;
  return first_failure(true);
}

}  // namespace emulator

using emulator::context;
using emulator::fail;
using emulator::LaunchLock;

cudaError_t cudaGetLastError() {
  const cudaError_t error = emulator::last_error;
  emulator::last_error = cudaSuccess;
  return error != cudaSuccess ? error : emulator::take_any_failure();
}

cudaError_t cudaPeekAtLastError() {
  const LaunchLock lock;
  return emulator::last_error != cudaSuccess ? emulator::last_error : emulator::first_failure(false);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int flags) {
  const LaunchLock lock;
  if (!stream || flags > cudaStreamNonBlocking) return fail(cudaErrorInvalidValue);
  emulator::need_context();
  *stream = context().streams.add({emulator::current_device()});
  return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const LaunchLock lock;
  return context().streams.remove(stream) ? cudaSuccess : fail(cudaErrorInvalidResourceHandle);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const cudaError_t error = emulator::take_failure(stream);
  emulator::shrink_pools();
  return error;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) { return emulator::take_failure(stream); }

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int) {
  const LaunchLock lock;
  if (!context().events.has(event)) return fail(cudaErrorInvalidResourceHandle);
  return emulator::take_failure(stream);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const LaunchLock lock;
  if (stream && !context().streams.has(stream)) return fail(cudaErrorInvalidResourceHandle);
  *status = stream ? stream->capture : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const LaunchLock lock;
  if (!stream) return fail(cudaErrorStreamCaptureUnsupported);
  if (!context().streams.has(stream)) return fail(cudaErrorInvalidResourceHandle);
  if (stream->capture != cudaStreamCaptureStatusNone) return fail(cudaErrorIllegalState);
  stream->capture = cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const LaunchLock lock;
  if (!context().streams.has(stream)) return fail(cudaErrorInvalidResourceHandle);
  const cudaStreamCaptureStatus status = std::exchange(stream->capture, cudaStreamCaptureStatusNone);
  auto kept = std::exchange(stream->kept, {});
  *graph = nullptr;
  if (status == cudaStreamCaptureStatusNone) return fail(cudaErrorIllegalState);
  if (status == cudaStreamCaptureStatusInvalidated) return fail(cudaErrorStreamCaptureInvalidated);
  *graph = emulator::make_graph(stream->device, std::move(kept));
  return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  const cudaError_t error = emulator::take_failure(stream);
  if (error == cudaSuccess) function(data);
  return error;
}

cudaError_t cudaDeviceSynchronize() {
  const cudaError_t error = emulator::take_any_failure();
  emulator::shrink_pools();
  return error;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int flags) {
  const LaunchLock lock;
  if (!event) return fail(cudaErrorInvalidValue);
  emulator::need_context();
  *event = context().events.add({.device = emulator::current_device(),
                                 .timed = !(flags & cudaEventDisableTiming),
                                 .recorded = false,
                                 .time = {}});
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const LaunchLock lock;
  return context().events.remove(event) ? cudaSuccess : fail(cudaErrorInvalidResourceHandle);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const LaunchLock lock;
  if (!context().events.has(event)) return fail(cudaErrorInvalidResourceHandle);
  if (event->device != emulator::device_of(stream)) return fail(cudaErrorInvalidResourceHandle);
  event->recorded = true;
  event->time = Clock::now();
  return emulator::take_failure(stream);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  emulator::wait_while_held();
  const LaunchLock lock;
  emulator::shrink_pools();
  return context().events.has(event) ? cudaSuccess : fail(cudaErrorInvalidResourceHandle);
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  const LaunchLock lock;
  return context().events.has(event) ? cudaSuccess : fail(cudaErrorInvalidResourceHandle);
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  const LaunchLock lock;
  if (!context().events.has(start) || !context().events.has(end)) return fail(cudaErrorInvalidResourceHandle);
  if (!start->timed || !end->timed || !start->recorded || !end->recorded) return fail(cudaErrorInvalidResourceHandle);
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
  return cudaSuccess;
}
