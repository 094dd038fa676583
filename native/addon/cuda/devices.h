// What the machine has.
#pragma once
#include <napi.h>

#include "launch.h"

namespace flashattn {

/**
 * { driverVersion, runtimeVersion, devices: [{ index, name, major, minor, memory, sharedMemory, multiprocessors,
 * pciBusId }] }, versions as CUDA numbers them (13020 is 13.2; driverVersion 0: no driver), and where devices cannot be
 * counted { error: its name, message }.
 */
Napi::Object describe_devices(Napi::Env);

cudaError_t read_limits(int device, DeviceLimits* limits);

}  // namespace flashattn
