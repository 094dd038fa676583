// The CUDA runtime API of the emulated device.
#include <cuda_runtime.h>

#include <cstring>

#include "expect.h"
#include "ptx.cuh"

namespace {

constexpr int kThreads = 32;

struct Memory {
  float* data;  // [kThreads]
};

FLASHATTN_KERNEL(kThreads) fill(const Memory m) { ptx::store_global(m.data + ptx::thread(), 2.0f); }

cudaError_t launch_fill(float* data, cudaStream_t stream, dim3 grid = dim3(1), int threads = kThreads,
                        int shared_bytes = 0) {
  return ptx::launch(fill, "fill", grid, threads, shared_bytes, stream, Memory{data});
}

void check_memory() {
  float *data, host[kThreads] = {1};
  size_t free_before, free_after, total;
  EXPECT(cudaMemGetInfo(&free_before, &total) == cudaSuccess && total == 1 << 20 && free_before == total);
  EXPECT(cudaMalloc(&data, sizeof host) == cudaSuccess && data);
  EXPECT(cudaMemGetInfo(&free_after, &total) == cudaSuccess && free_before - free_after == sizeof host);
  EXPECT(cudaMemcpy(data, host, sizeof host, cudaMemcpyHostToDevice) == cudaSuccess);
  host[0] = 0;
  EXPECT(cudaMemcpy(host, data, sizeof host, cudaMemcpyDefault) == cudaSuccess && host[0] == 1);
  EXPECT(cudaMemset(data + 1, 0, 4) == cudaSuccess && data[1] == 0);

  EXPECT(cudaMemcpy(data + 1, host, sizeof host, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
  EXPECT(cudaGetLastError() == cudaErrorInvalidValue && cudaGetLastError() == cudaSuccess);
  EXPECT(cudaMemcpy(data, host, sizeof host, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
  EXPECT(cudaMemset(data, 0, sizeof host + 1) == cudaErrorInvalidValue);
  EXPECT(cudaFree(data + 1) == cudaErrorInvalidValue && cudaFree(host) == cudaErrorInvalidValue);

  cudaPointerAttributes attributes;
  EXPECT(cudaPointerGetAttributes(&attributes, data + 1) == cudaSuccess && attributes.type == cudaMemoryTypeDevice);
  EXPECT(cudaPointerGetAttributes(&attributes, host) == cudaSuccess && attributes.type == cudaMemoryTypeUnregistered);
  EXPECT(cudaFree(data) == cudaSuccess && cudaFree(data) == cudaErrorInvalidValue && cudaFree(nullptr) == cudaSuccess);
  EXPECT(cudaMemcpy(host, data, 4, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);

  void *all, *more;
  EXPECT(cudaMallocAsync(&all, 1 << 20, nullptr) == cudaSuccess);
  EXPECT(cudaMallocAsync(&more, 1, nullptr) == cudaErrorMemoryAllocation && !more);
  EXPECT(cudaFreeAsync(all, nullptr) == cudaSuccess);
  for (int i = 0; i < 100; ++i) EXPECT(cudaMalloc(&all, 1 << 20) == cudaSuccess && cudaFree(all) == cudaSuccess);

  float* pinned;
  EXPECT(cudaMallocHost(&pinned, 64) == cudaSuccess);
  EXPECT(cudaPointerGetAttributes(&attributes, pinned) == cudaSuccess && attributes.type == cudaMemoryTypeHost);
  EXPECT(cudaFreeHost(pinned) == cudaSuccess && cudaFreeHost(pinned) == cudaErrorInvalidValue);
  cudaGetLastError();
}

void check_streams() {
  cudaStream_t stream;
  cudaEvent_t start, end;
  float milliseconds = -1;
  int calls = 0;
  EXPECT(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  EXPECT(cudaEventCreate(&start) == cudaSuccess && cudaEventCreateWithFlags(&end, cudaEventDefault) == cudaSuccess);
  EXPECT(cudaEventElapsedTime(&milliseconds, start, end) == cudaErrorInvalidResourceHandle);
  EXPECT(cudaEventRecord(start, stream) == cudaSuccess);
  const auto count = [](void* data) { ++*static_cast<int*>(data); };
  EXPECT(cudaLaunchHostFunc(stream, count, &calls) == cudaSuccess && calls == 1);
  EXPECT(cudaEventRecord(end, stream) == cudaSuccess && cudaEventQuery(end) == cudaSuccess);
  EXPECT(cudaStreamWaitEvent(stream, end, 0) == cudaSuccess && cudaStreamQuery(stream) == cudaSuccess);
  EXPECT(cudaEventElapsedTime(&milliseconds, start, end) == cudaSuccess && milliseconds >= 0);
  EXPECT(cudaEventDestroy(start) == cudaSuccess && cudaEventDestroy(start) == cudaErrorInvalidResourceHandle);
  EXPECT(cudaEventDestroy(end) == cudaSuccess && cudaStreamDestroy(stream) == cudaSuccess);
  EXPECT(cudaStreamSynchronize(stream) == cudaErrorInvalidResourceHandle);
  cudaGetLastError();
}

void check_launches() {
  emulator::Buffer<float> data(kThreads, "data"), small(kThreads - 1, "small");
  cudaStream_t stream;
  cudaStreamCreate(&stream);
  EXPECT(launch_fill(data.data(), stream) == cudaSuccess && data[kThreads - 1] == 2);
  EXPECT(launch_fill(data.data(), stream, dim3(0)) == cudaErrorInvalidConfiguration);
  EXPECT(launch_fill(data.data(), stream, dim3(1), 1025) == cudaErrorInvalidConfiguration);
  EXPECT(launch_fill(data.data(), stream, dim3(1), 0) == cudaErrorInvalidConfiguration);
  EXPECT(launch_fill(data.data(), stream, dim3(1, 65536)) == cudaErrorInvalidConfiguration);
  EXPECT(launch_fill(data.data(), stream, dim3(1), kThreads, 101376) == cudaSuccess);
  EXPECT(launch_fill(data.data(), stream, dim3(1), kThreads, 101377) == cudaErrorInvalidValue);
  EXPECT(cudaFuncSetAttribute(fill, cudaFuncAttributeMaxDynamicSharedMemorySize, 101376) == cudaSuccess);
  EXPECT(cudaFuncSetAttribute(fill, cudaFuncAttributeMaxDynamicSharedMemorySize, 101377) == cudaErrorInvalidValue);
  EXPECT(cudaGetLastError() == cudaErrorInvalidValue);

  // A report shows up once, at the next call on the stream.
  EXPECT(launch_fill(small.data(), stream) == cudaSuccess && emulator::reports().size() == 1);
  EXPECT(cudaStreamSynchronize(nullptr) == cudaSuccess && cudaPeekAtLastError() == cudaErrorLaunchFailure);
  EXPECT(cudaStreamSynchronize(stream) == cudaErrorLaunchFailure && cudaStreamSynchronize(stream) == cudaSuccess);
  EXPECT(launch_fill(small.data(), stream) == cudaSuccess && cudaDeviceSynchronize() == cudaErrorLaunchFailure);
  EXPECT(launch_fill(small.data(), stream) == cudaSuccess && cudaGetLastError() == cudaErrorLaunchFailure);
  EXPECT(cudaGetLastError() == cudaSuccess && emulator::reports().size() == 1);
  emulator::clear_reports();
  cudaStreamDestroy(stream);
}

void check_device() {
  cudaDeviceProp properties;
  int value, count = 0;
  EXPECT(cudaGetDeviceCount(&count) == cudaSuccess && count == 1);
  EXPECT(cudaGetDeviceProperties(&properties, 0) == cudaSuccess && properties.major == 8 && properties.minor == 6);
  EXPECT(properties.sharedMemPerBlockOptin == 101376 && properties.totalGlobalMem == 1 << 20);
  EXPECT(cudaDeviceGetAttribute(&value, cudaDevAttrMemoryPoolsSupported, 0) == cudaSuccess && value == 1);
  EXPECT(cudaSetDevice(1) == cudaErrorInvalidDevice && cudaSetDevice(0) == cudaSuccess);
  EXPECT(cudaGetDevice(&value) == cudaSuccess && value == 0);
  EXPECT(std::strcmp(cudaGetErrorName(cudaErrorLaunchFailure), "cudaErrorLaunchFailure") == 0);
  EXPECT(std::strcmp(cudaGetErrorString(cudaErrorMemoryAllocation), "out of memory") == 0);
  cudaGetLastError();
}

}  // namespace

/** With an argument: only says what device there is. */
int main(int argc, char**) {
  if (argc > 1) {
    int count = -1, driver = -1;
    const cudaError_t error = cudaGetDeviceCount(&count);
    cudaDriverGetVersion(&driver);
    std::printf("%s %d %d\n", cudaGetErrorName(error), count, driver);
    return 0;
  }
  check_device();
  check_memory();
  check_streams();
  check_launches();
  return finish();
}
