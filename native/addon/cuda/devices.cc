#include "devices.h"

#include "values.h"

namespace flashattn {

namespace {

cudaError_t read_attribute(int* value, cudaDeviceAttr attribute, int device) {
  return cudaDeviceGetAttribute(value, attribute, device);
}

Napi::Object describe_device(Napi::Env env, int index) {
  Napi::Object result = Napi::Object::New(env);
  DeviceLimits limits{};
  cudaDeviceProp properties{};
  char bus[32] = "";
  cudaError_t error = read_limits(index, &limits);
  if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, index);
  if (error == cudaSuccess) error = cudaDeviceGetPCIBusId(bus, sizeof(bus), index);
  if (error != cudaSuccess) {
    cudaGetLastError();
    result.Set("error", cudaGetErrorName(error));
    result.Set("message", cudaGetErrorString(error));
  }
  result.Set("index", index);
  result.Set("name", static_cast<const char*>(properties.name));
  result.Set("major", limits.major);
  result.Set("minor", limits.minor);
  result.Set("memory", static_cast<double>(properties.totalGlobalMem));
  result.Set("sharedMemory", limits.shared_memory);
  result.Set("multiprocessors", limits.multiprocessors);
  result.Set("pciBusId", static_cast<const char*>(bus));
  return result;
}

}  // namespace

cudaError_t read_limits(int device, DeviceLimits* limits) {
  cudaError_t error = read_attribute(&limits->major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = read_attribute(&limits->minor, cudaDevAttrComputeCapabilityMinor, device);
  if (error == cudaSuccess)
    error = read_attribute(&limits->shared_memory, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = read_attribute(&limits->multiprocessors, cudaDevAttrMultiProcessorCount, device);
  return error;
}

Napi::Object describe_devices(Napi::Env env) {
  Napi::Object result = Napi::Object::New(env);
  int driver = 0;
  int runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  result.Set("driverVersion", driver);
  result.Set("runtimeVersion", runtime);

  int count = 0;  // left alone when there is an error
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();
    count = 0;
    result.Set("error", cudaGetErrorName(error));
    result.Set("message", cudaGetErrorString(error));
  }
  Napi::Array devices = Napi::Array::New(env, static_cast<size_t>(count));
  for (int index = 0; index < count; ++index) devices[static_cast<uint32_t>(index)] = describe_device(env, index);
  result.Set("devices", devices);
  return result;
}

}  // namespace flashattn
