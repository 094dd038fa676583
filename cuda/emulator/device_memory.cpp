#include "device_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "emulator.h"
#include "launch_lock.h"
#include "machine.h"
#include "properties.h"
#include "report.h"
#include "runtime/contexts.h"

namespace emulator {

namespace {

constexpr int kPoison = 0xff;  // a NaN in every format
constexpr size_t kPage = 4096;
constexpr size_t kQuarantine = 16 << 20;  // bytes freed before the first of them is handed out again
constexpr size_t kKept = 1 << 20;         // bytes of an allocation whose pages are not worth giving back

/** Zeros that cost memory only where they are touched. */
void* reserve(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    std::perror("emulator: no addresses for device memory");
    std::abort();
  }
  return memory;
}

/** Gives the memory of whole pages back to the system; they read as zeros afterwards. */
void drop_pages(void* begin, size_t bytes) {
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + kPage - 1) / kPage * kPage;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + bytes) / kPage * kPage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

constexpr size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace

DeviceMemory::DeviceMemory(size_t capacity)
    : capacity_(capacity),
      range_(round_up(2 * capacity, kUnit) + (size_t{64} << 20)),
      base_(static_cast<uint8_t*>(reserve(range_))),
      units_(static_cast<uint32_t*>(reserve(range_ / kUnit * sizeof(uint32_t)))),
      shadow_(static_cast<StoreRecord*>(reserve(range_ / kGranule * sizeof(StoreRecord)))) {
  records_.emplace_back();  // number 0: no allocation
  free_[kGap] = range_ - kGap;
}

bool DeviceMemory::take_range(size_t bytes, size_t& offset) {
  // The lowest that fits: pages that have been in use cost no fault.
  for (auto it = free_.begin(); it != free_.end(); ++it) {
    if (it->second < bytes) continue;
    offset = it->first;
    const size_t left = it->second - bytes;
    free_.erase(it);
    if (left) free_[offset + bytes] = left;
    return true;
  }
  return false;
}

void DeviceMemory::give_range(size_t offset, size_t bytes) {
  auto next = free_.lower_bound(offset);
  if (next != free_.end() && next->first == offset + bytes) {
    bytes += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    const auto previous = std::prev(next);
    if (previous->first + previous->second == offset) {
      previous->second += bytes;
      return;
    }
  }
  free_[offset] = bytes;
}

uint32_t DeviceMemory::new_number() {
  if (unused_numbers_.empty()) {
    records_.emplace_back();
    return static_cast<uint32_t>(records_.size() - 1);
  }
  const uint32_t number = unused_numbers_.back();
  unused_numbers_.pop_back();
  return number;
}

void DeviceMemory::set_units(size_t offset, size_t bytes, uint32_t number) {
  for (size_t unit = offset / kUnit; unit * kUnit < offset + bytes; ++unit) units_[unit] = number;
}

void* DeviceMemory::allocate(size_t bytes, const char* name, int device) {
  if (bytes == 0 || bytes > capacity_ - used_) return nullptr;
  const size_t range = round_up(bytes, kUnit) + kGap;
  size_t offset;
  while (!take_range(range, offset)) {
    if (freed_.empty()) return nullptr;
    reuse_oldest();
  }
  const uint32_t number = new_number();
  uint8_t* begin = base_ + offset;
  records_[number] = std::make_unique<Allocation>(Allocation{begin, begin + bytes, name, device});
  set_units(offset, bytes, number);
  std::memset(begin, kPoison, bytes);
  used_ += bytes;
  return begin;
}

bool DeviceMemory::release(void* data) {
  Allocation* allocation = find(data, 0);
  if (!allocation || !allocation->live || allocation->begin != data) return false;
  const size_t bytes = static_cast<size_t>(allocation->end - allocation->begin);
  std::memset(data, kPoison, bytes);
  allocation->live = false;
  used_ -= bytes;
  freed_.push_back(units_[offset_of(data) / kUnit]);
  freed_bytes_ += bytes;
  while (freed_bytes_ > std::min(kQuarantine, capacity_ / 4)) reuse_oldest();
  return true;
}

void DeviceMemory::reuse_oldest() {
  const uint32_t number = freed_.front();
  freed_.pop_front();
  const std::unique_ptr<Allocation> allocation = std::move(records_[number]);
  const size_t bytes = static_cast<size_t>(allocation->end - allocation->begin);
  const size_t offset = offset_of(allocation->begin);
  freed_bytes_ -= bytes;
  unused_numbers_.push_back(number);
  set_units(offset, bytes, 0);
  if (bytes > kKept) {
    drop_pages(allocation->begin, bytes);
    drop_pages(shadow(allocation->begin), bytes / kGranule * sizeof(StoreRecord));
  }
  give_range(offset, round_up(bytes, kUnit) + kGap);
}

std::string DeviceMemory::describe(const void* p) const {
  if (!contains(p)) return "in host memory";
  const uint8_t* address = static_cast<const uint8_t*>(p);
  const Allocation* nearest = nullptr;
  size_t distance = SIZE_MAX;
  for (const auto& record : records_) {
    if (!record) continue;
    const size_t d = address < record->begin  ? static_cast<size_t>(record->begin - address)
                     : address >= record->end ? static_cast<size_t>(address - record->end)
                                              : 0;
    if (nearest && d >= distance) continue;
    nearest = record.get();
    distance = d;
  }
  if (!nearest) return "device memory without allocations";
  const std::string allocation = (nearest->live ? "" : "freed ") +
                                 (nearest->name.empty() ? std::string("allocation") : "\"" + nearest->name + "\"") +
                                 " of " + std::to_string(nearest->end - nearest->begin) + " bytes";
  if (address < nearest->begin) return std::to_string(distance) + " bytes before " + allocation;
  if (address >= nearest->end) return std::to_string(distance) + " bytes past the end of " + allocation;
  return "byte " + std::to_string(address - nearest->begin) + " of " + allocation;
}

DeviceMemory& device_memory() {
  static DeviceMemory& memory = *new DeviceMemory(device_properties().memory);  // other threads may outlive main
  return memory;
}

Allocation* check_global(const void* p, size_t bytes, size_t alignment, const char* what, Site site) {
  Allocation* allocation = device_memory().find(p, bytes);
  if (!allocation) {
    report(site, "global-out-of-bounds",
           [=] { return std::string(what) + " of " + std::to_string(bytes) + " bytes, " + describe_address(p); });
    return nullptr;
  }
  if (!allocation->live) {
    report(site, "use-after-free", [=] { return std::string(what) + " of " + describe_address(p); });
    return nullptr;
  }
  if (allocation->device != machine.device) {
    report(site, "other-device", [=] {
      return std::string(what) + " of " + describe_address(p) + ", memory of device " +
             std::to_string(allocation->device) + ", on device " + std::to_string(machine.device);
    });
    return nullptr;
  }
  if (reinterpret_cast<uintptr_t>(p) % alignment != 0) {
    report(site, "global-misaligned", [=] {
      return std::string(what) + " of " + describe_address(p) + " is not aligned to " + std::to_string(alignment) +
             " bytes";
    });
    return nullptr;
  }
  return allocation;
}

std::string describe_address(const void* p) { return device_memory().describe(p); }

void* allocate(size_t bytes, const char* name) { return allocate_on(current_device(), bytes, name); }

void* allocate_on(int device, size_t bytes, const char* name) {
  const LaunchLock lock;
  return device_memory().allocate(bytes, name, device);
}

bool release(void* data) {
  const LaunchLock lock;
  return device_memory().release(data);
}

bool is_device_memory(const void* data, size_t bytes) { return device_of_memory(data, bytes) >= 0; }

int device_of_memory(const void* data, size_t bytes) {
  const LaunchLock lock;
  const Allocation* allocation = device_memory().find(data, bytes);
  return allocation && allocation->live ? allocation->device : -1;
}

}  // namespace emulator
