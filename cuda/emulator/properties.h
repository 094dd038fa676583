// What the emulated device is: chosen by environment variables, read once.
#pragma once
#include <cstddef>

namespace emulator {

enum class DriverFault { None, NoDriver, OldDriver, NoDevice };

struct DeviceProperties {
  int major, minor;   // FLASHATTN_EMULATOR_ARCH, "8.0"
  int shared_memory;  // bytes a block may opt in to
  size_t memory;      // FLASHATTN_EMULATOR_MEMORY, bytes, of all devices
  int devices;        // FLASHATTN_EMULATOR_DEVICES
  DriverFault fault;  // FLASHATTN_EMULATOR_FAULT: no-driver, old-driver or no-device
};

inline constexpr int kDefaultSharedMemory = 48 << 10;
inline constexpr int kMultiprocessors = 4;
inline constexpr int kMaxDevices = 8;

const DeviceProperties& device_properties();

}  // namespace emulator
