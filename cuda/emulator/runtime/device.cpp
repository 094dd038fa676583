// The device as the runtime API shows it.
#include <cstdio>
#include <cstring>

#include "../device_memory.h"
#include "../launch_lock.h"
#include "../properties.h"
#include "contexts.h"
#include "pools.h"
#include "stream.h"

using emulator::device_properties;
using emulator::DriverFault;
using emulator::fail;

namespace {

constexpr int kRuntimeVersion = CUDART_VERSION, kOldDriverVersion = 12040;

/** What every call that needs a device returns when there is none. */
cudaError_t missing_device() {
  switch (device_properties().fault) {
    case DriverFault::None: return cudaSuccess;
    case DriverFault::NoDevice: return cudaErrorNoDevice;
    case DriverFault::NoDriver:
    case DriverFault::OldDriver: return cudaErrorInsufficientDriver;
  }
  return cudaErrorUnknown;
}

cudaError_t check_device(int device) {
  const cudaError_t missing = missing_device();
  if (missing != cudaSuccess) return fail(missing);
  return device >= 0 && device < device_properties().devices ? cudaSuccess : fail(cudaErrorInvalidDevice);
}

}  // namespace

cudaError_t cudaDriverGetVersion(int* version) {
  const DriverFault fault = device_properties().fault;
  *version = fault == DriverFault::NoDriver ? 0 : fault == DriverFault::OldDriver ? kOldDriverVersion : kRuntimeVersion;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = kRuntimeVersion;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  const cudaError_t missing = missing_device();
  if (missing != cudaSuccess) return fail(missing);  // like CUDA, without touching *count
  *count = device_properties().devices;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  const cudaError_t error = check_device(0);
  if (error == cudaSuccess) *device = emulator::current_device();
  return error;
}

cudaError_t cudaSetDevice(int device) {
  const cudaError_t error = check_device(device);
  if (error == cudaSuccess) emulator::set_current_device(device);
  return error;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  const cudaError_t error = check_device(device);
  if (error != cudaSuccess) return error;
  const emulator::DeviceProperties& emulated = device_properties();
  *properties = {};
  std::strcpy(properties->name, "Emulated device");
  properties->totalGlobalMem = emulated.memory;
  properties->sharedMemPerBlock = emulator::kDefaultSharedMemory;
  properties->sharedMemPerBlockOptin = static_cast<size_t>(emulated.shared_memory);
  properties->sharedMemPerMultiprocessor = static_cast<size_t>(emulated.shared_memory) + 1024;
  properties->regsPerBlock = properties->regsPerMultiprocessor = 1 << 16;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
  properties->maxThreadsDim[2] = 64;
  properties->maxGridSize[0] = 0x7fffffff;
  properties->maxGridSize[1] = properties->maxGridSize[2] = 0xffff;
  properties->totalConstMem = 64 << 10;
  properties->major = emulated.major;
  properties->minor = emulated.minor;
  properties->multiProcessorCount = emulator::kMultiprocessors;
  properties->unifiedAddressing = 1;
  properties->memoryPoolsSupported = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, device);
  if (error != cudaSuccess) return error;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = properties.maxThreadsPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = static_cast<int>(properties.sharedMemPerBlock); break;
    case cudaDevAttrWarpSize: *value = properties.warpSize; break;
    case cudaDevAttrMultiProcessorCount: *value = properties.multiProcessorCount; break;
    case cudaDevAttrComputeCapabilityMajor: *value = properties.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = properties.minor; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(properties.sharedMemPerMultiprocessor);
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(properties.sharedMemPerBlockOptin); break;
    case cudaDevAttrMemoryPoolsSupported: *value = properties.memoryPoolsSupported; break;
    default: return fail(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int device) {
  const cudaError_t error = check_device(device);
  if (error != cudaSuccess) return error;
  const int needed = std::snprintf(id, static_cast<size_t>(length), "0000:00:%02x.0", device);
  return needed < length ? cudaSuccess : fail(cudaErrorInvalidValue);
}

cudaError_t cudaDeviceReset() {
  emulator::take_any_failure();
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  const cudaError_t error = check_device(0);
  if (error != cudaSuccess) return error;
  emulator::need_context();
  const emulator::LaunchLock lock;
  *total = emulator::device_memory().capacity();
  *free = *total - emulator::device_memory().used() - emulator::idle_bytes();
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (!kernel || value < 0) return fail(cudaErrorInvalidValue);
  const bool too_much =
      attribute == cudaFuncAttributeMaxDynamicSharedMemorySize && value > device_properties().shared_memory;
  return too_much ? fail(cudaErrorInvalidValue) : cudaSuccess;
}
