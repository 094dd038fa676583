#include "global_memory.h"

#include <algorithm>
#include <cstring>

#include "block_order.h"
#include "emulator.h"
#include "report.h"
#include "stamp.h"

namespace emulator {

namespace {

constexpr int kPoison = 0xff;

/** The first piece of some bytes whose last store may happen at any time. */
const StoreRecord* find_race(const StoreRecord* records, size_t count) {
  uint64_t ordered = 0;
  for (size_t i = 0; i < count; ++i) {
    const Stamp stamp(records[i].stamp);
    if (stamp.word() == ordered || stamp.before(machine.launch_start)) continue;
    if (!ordered_before(stamp, *machine.current)) return &records[i];
    ordered = stamp.word();
  }
  return nullptr;
}

size_t granules(size_t bytes) { return (bytes + DeviceMemory::kGranule - 1) / DeviceMemory::kGranule; }

void record_store(Allocation& allocation, const void* to, size_t bytes, uint64_t flags, Site site) {
  allocation.stored = machine.clock;
  StoreRecord* records = device_memory().shadow(to);
  std::fill(records, records + granules(bytes), StoreRecord{Stamp::of(*machine.current, flags).word(), site});
}

void report_race(const StoreRecord* race, const void* address, const char* what, Site site) {
  if (race) report(site, "global-race", [&] { return std::string(what) + " of " + describe_race(*race, address); });
}

}  // namespace

std::string describe_race(const StoreRecord& record, const void* address) {
  const Stamp stamp(record.stamp);
  const uint64_t n = block_of(stamp);
  const dim3 g = machine.launch->grid;
  const bool known = record.site.line() != 0;  // not of a plain store
  return describe_address(address) + " is not ordered after the " +
         (stamp.has(Stamp::kAtomic) ? "atomic operation" : "store") + " by thread " + std::to_string(stamp.thread()) +
         " of block (" + std::to_string(n % g.x) + ", " + std::to_string(n / g.x % g.y) + ", " +
         std::to_string(n / g.x / g.y) + ")" + (known ? " at " + place_of(record.site) : "");
}

const StoreRecord* race_of_load(const Allocation& allocation, const void* from, size_t bytes) {
  if (!machine.config.global_races || allocation.stored < machine.launch_start) return nullptr;
  return find_race(device_memory().shadow(from), granules(bytes));
}

std::optional<StoreRecord> race_of_store(Allocation& allocation, const void* to, size_t bytes, Site site) {
  if (!machine.config.global_races) return std::nullopt;
  const StoreRecord* race = find_race(device_memory().shadow(to), granules(bytes));
  const auto found = race ? std::optional(*race) : std::nullopt;
  record_store(allocation, to, bytes, 0, site);
  return found;
}

bool note_atomic(Allocation& allocation, const void* to, size_t bytes, const char* what, Site site) {
  if (!machine.config.global_races) return true;
  const StoreRecord* last = find_race(device_memory().shadow(to), granules(bytes));
  const bool follows_atomic = last && Stamp(last->stamp).has(Stamp::kAtomic);
  if (!follows_atomic) report_race(last, to, what, site);
  record_store(allocation, to, bytes, Stamp::kAtomic, site);
  return !follows_atomic;
}

void note_load(const Allocation& allocation, const void* from, size_t bytes, const char* what, Site site) {
  report_race(race_of_load(allocation, from, bytes), from, what, site);
}

void load_global(const void* from, void* value, size_t bytes, size_t alignment, Site site) {
  const Allocation* allocation = check_global(from, bytes, alignment, "load_global", site);
  if (!allocation) {
    std::memset(value, kPoison, bytes);
    return;
  }
  note_load(*allocation, from, bytes, "load_global", site);
  machine.statistics.global_read += bytes;
  std::memcpy(value, from, bytes);
}

void store_global(void* to, const void* value, size_t bytes, size_t alignment, Site site) {
  Allocation* allocation = check_global(to, bytes, alignment, "store_global", site);
  if (!allocation) return;
  const auto race = race_of_store(*allocation, to, bytes, site);
  if (race) report_race(&*race, to, "store_global", site);
  machine.statistics.global_written += bytes;
  std::memcpy(to, value, bytes);
}

void add_global(float* to, float value, Site site) {
  Allocation* allocation = check_global(to, sizeof *to, alignof(float), "add_global", site);
  if (!allocation) return;
  if (!note_atomic(*allocation, to, sizeof *to, "add_global", site)) ++machine.statistics.unordered_adds;
  machine.statistics.global_read += sizeof *to;
  machine.statistics.global_written += sizeof *to;
  *to += value;
}

}  // namespace emulator
