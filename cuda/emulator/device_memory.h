// Device memory: one range of addresses with unused bytes between allocations. Freed memory is not handed out again
// for a while, so that a use after free is seen as one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "calls.h"

namespace emulator {

/** The last store to a piece of memory: a Stamp and its place. */
struct StoreRecord {
  uint64_t stamp;
  Site site;
};

struct Allocation {
  uint8_t* begin;
  uint8_t* end;
  std::string name;
  int device;
  bool live = true;
  uint64_t stored = 0;  // clock of the last store
};

class DeviceMemory {
 public:
  static constexpr size_t kUnit = 256;   // allocations start at its multiples
  static constexpr size_t kGap = 4096;   // unused bytes behind an allocation
  static constexpr size_t kGranule = 1;  // bytes per record of the shadow

  explicit DeviceMemory(size_t capacity);

  void* allocate(size_t bytes, const char* name, int device);
  bool release(void* data);

  bool contains(const void* p) const { return offset_of(p) < range_; }
  /** The allocation that covers [p, p + bytes), live or freed; null: none. */
  Allocation* find(const void* p, size_t bytes) const {
    const size_t offset = offset_of(p);
    if (offset >= range_) return nullptr;
    Allocation* allocation = records_[units_[offset / kUnit]].get();
    return allocation && static_cast<const uint8_t*>(p) + bytes <= allocation->end ? allocation : nullptr;
  }
  /** What is known about accesses to each granule from `p` on; zero in the beginning. */
  StoreRecord* shadow(const void* p) const { return shadow_ + offset_of(p) / kGranule; }

  size_t capacity() const { return capacity_; }
  size_t used() const { return used_; }
  /** In words: where an address lies among the allocations. */
  std::string describe(const void* p) const;

 private:
  size_t offset_of(const void* p) const { return static_cast<size_t>(static_cast<const uint8_t*>(p) - base_); }
  bool take_range(size_t bytes, size_t& offset);
  void give_range(size_t offset, size_t bytes);
  uint32_t new_number();
  void set_units(size_t offset, size_t bytes, uint32_t number);
  void reuse_oldest();

  size_t capacity_, used_ = 0;
  size_t range_;         // bytes of addresses
  uint8_t* base_;        // [range_]
  uint32_t* units_;      // [range_ / kUnit] index into records_, 0: no allocation
  StoreRecord* shadow_;  // [range_ / kGranule]

  std::vector<std::unique_ptr<Allocation>> records_;
  std::vector<uint32_t> unused_numbers_;
  std::map<size_t, size_t> free_;  // bytes by offset
  std::deque<uint32_t> freed_;     // not to be handed out yet, oldest first
  size_t freed_bytes_ = 0;
};

DeviceMemory& device_memory();

/** The live allocation of these bytes where a kernel may access them; otherwise reports why not. */
Allocation* check_global(const void* p, size_t bytes, size_t alignment, const char* what, Site);

std::string describe_address(const void* p);

}  // namespace emulator
