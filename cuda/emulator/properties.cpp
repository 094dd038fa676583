#include "properties.h"

#include <cstdio>
#include <cstdlib>
#include <string>

#include "emulator.h"

namespace emulator {

namespace {

std::string variable(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value && *value ? value : otherwise;
}

[[noreturn]] void refuse(const char* name, const std::string& value, const char* expected) {
  std::fprintf(stderr, "emulator: %s is \"%s\", not %s\n", name, value.c_str(), expected);
  std::abort();
}

/** Bytes of shared memory that a block may opt in to, by compute capability. */
int shared_memory(int major, int minor) {
  switch (major * 10 + minor) {
    case 75: return 64 << 10;
    case 80:
    case 87: return 163 << 10;
    case 90:
    case 100: return 227 << 10;
    default: return 99 << 10;
  }
}

DriverFault driver_fault() {
  const char* name = "FLASHATTN_EMULATOR_FAULT";
  const std::string fault = variable(name, "none");
  if (fault == "none") return DriverFault::None;
  if (fault == "no-driver") return DriverFault::NoDriver;
  if (fault == "old-driver") return DriverFault::OldDriver;
  if (fault == "no-device") return DriverFault::NoDevice;
  refuse(name, fault, "none, no-driver, old-driver or no-device");
}

DeviceProperties read_properties() {
  DeviceProperties properties{};
  const std::string arch = variable("FLASHATTN_EMULATOR_ARCH", "8.0");
  if (std::sscanf(arch.c_str(), "%d.%d", &properties.major, &properties.minor) != 2)
    refuse("FLASHATTN_EMULATOR_ARCH", arch, "a compute capability such as 8.0");
  properties.shared_memory = shared_memory(properties.major, properties.minor);
  const std::string memory = variable("FLASHATTN_EMULATOR_MEMORY", "1073741824");
  properties.memory = std::strtoull(memory.c_str(), nullptr, 10);
  if (properties.memory == 0) refuse("FLASHATTN_EMULATOR_MEMORY", memory, "a number of bytes");
  const std::string devices = variable("FLASHATTN_EMULATOR_DEVICES", "1");
  properties.devices = std::atoi(devices.c_str());
  if (properties.devices < 1 || properties.devices > kMaxDevices)
    refuse("FLASHATTN_EMULATOR_DEVICES", devices, "a number of devices, 1 to 8");
  properties.fault = driver_fault();
  return properties;
}

Config read_config() {
  Config config;
  config.schedule = std::atoi(variable("FLASHATTN_EMULATOR_SCHEDULE", "0").c_str());
  const std::string copies = variable("FLASHATTN_EMULATOR_COPIES", "late");
  if (copies != "eager" && copies != "late") refuse("FLASHATTN_EMULATOR_COPIES", copies, "eager or late");
  config.eager_copies = copies == "eager";
  const std::string sums = variable("FLASHATTN_EMULATOR_SUMS", "rounded");
  if (sums != "rounded" && sums != "cut") refuse("FLASHATTN_EMULATOR_SUMS", sums, "rounded or cut");
  config.cut_sums = sums == "cut";
  config.races = config.global_races = variable("FLASHATTN_EMULATOR_RACES", "1") != "0";
  return config;
}

}  // namespace

const DeviceProperties& device_properties() {
  static const DeviceProperties properties = read_properties();
  return properties;
}

Config& config() {
  static Config config = read_config();
  return config;
}

}  // namespace emulator
