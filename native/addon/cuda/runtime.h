// Owners of CUDA runtime objects. They free quietly: at the end of a process the driver may be gone before them.
#pragma once
#include <cuda_runtime_api.h>

#include <utility>

#include "faults.h"

namespace flashattn {

/**
 * Makes a device current on this thread for a scope; other users of CUDA find the thread as they left it. A thread that has
 * never chosen a device has the first one; it is not given back, since making it current would make its context: some
 * 500 MiB, and an error where it is full or another's alone.
 */
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    int before = 0;
    if (cudaGetDevice(&before) == cudaSuccess && before != device && has_primary_context(before)) before_ = before;
    error_ = cudaSetDevice(device);
    if (error_ != cudaSuccess) cudaGetLastError();
  }
  ~CurrentDevice() {
    if (before_ != kUnchanged) cudaSetDevice(before_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

  cudaError_t error() const { return error_; }

 private:
  static constexpr int kUnchanged = -1;
  int before_ = kUnchanged;
  cudaError_t error_;
};

/** Something of CUDA's that is destroyed with its owner. */
template <class Handle, cudaError_t (*kDestroy)(Handle)>
class Owned {
 public:
  Owned() = default;
  ~Owned() {
    if (handle_ != nullptr) kDestroy(handle_);
  }
  Owned(Owned&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }

  Handle get() const { return handle_; }
  explicit operator bool() const { return handle_ != nullptr; }

 protected:
  Handle handle_ = nullptr;
};

class Event : public Owned<cudaEvent_t, cudaEventDestroy> {
 public:
  /** Marks the end of what is queued on `stream` now. */
  cudaError_t record(cudaStream_t stream, unsigned flags = cudaEventDisableTiming) {
    if (handle_ == nullptr) {
      const cudaError_t error = cudaEventCreateWithFlags(&handle_, flags);
      if (error != cudaSuccess) return error;
    }
    return cudaEventRecord(handle_, stream);
  }
  /** Blocks until the mark is reached. */
  cudaError_t wait() const { return cudaEventSynchronize(handle_); }
  bool reached() const { return cudaEventQuery(handle_) == cudaSuccess; }
};

/** A stream that does not wait for the legacy default stream, nor that for it. */
class Stream : public Owned<cudaStream_t, cudaStreamDestroy> {
 public:
  cudaError_t create() { return cudaStreamCreateWithFlags(&handle_, cudaStreamNonBlocking); }
};

/** Launches that a stream has kept, to be queued again as one. */
class Graph : public Owned<cudaGraphExec_t, cudaGraphExecDestroy> {
 public:
  /** From here on `stream` keeps what it is given. */
  static cudaError_t begin(cudaStream_t stream) {
    // Other threads of the process, which know nothing of this, may do meanwhile whatever they like.
    return cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed);
  }
  /** Takes what `stream` has kept since `begin`. */
  cudaError_t end(cudaStream_t stream) {
    cudaGraph_t graph = nullptr;
    cudaError_t error = cudaStreamEndCapture(stream, &graph);
    if (error == cudaSuccess) error = cudaGraphInstantiate(&handle_, graph, 0);
    if (graph != nullptr) cudaGraphDestroy(graph);
    return error;
  }
  cudaError_t launch(cudaStream_t stream) const { return cudaGraphLaunch(handle_, stream); }
};

/** Host memory that the device copies from and to by itself. */
class PinnedMemory {
 public:
  PinnedMemory() = default;
  ~PinnedMemory() {
    if (data_ != nullptr) cudaFreeHost(data_);
  }
  PinnedMemory(PinnedMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)) {}
  PinnedMemory& operator=(PinnedMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  cudaError_t allocate(size_t size) {
    void* data = nullptr;
    const cudaError_t error = cudaHostAlloc(&data, size, cudaHostAllocDefault);
    if (error != cudaSuccess) {
      cudaGetLastError();
      return error;
    }
    data_ = static_cast<unsigned char*>(data);
    size_ = size;
    return cudaSuccess;
  }
  unsigned char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  unsigned char* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace flashattn
