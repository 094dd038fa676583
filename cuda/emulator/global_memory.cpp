#include "global_memory.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>
#include <vector>

#include "emulator.h"
#include "report.h"
#include "schedule.h"
#include "stamp.h"

namespace emulator {

namespace {

constexpr int kPoison = 0xff;

using BlockSet = std::vector<bool>;  // by number

// Blocks are ordered by flags: a block that has seen what another published comes after it, and after all that came
// before that one.
struct BlockOrder {
  std::vector<uint64_t> starts;                         // clock at the start of each block so far
  BlockSet earlier;                                     // blocks that the running one comes after
  std::unordered_map<const void*, BlockSet> published;  // by flag
};

BlockOrder& order = *new BlockOrder;

void add_all(BlockSet& to, const BlockSet& from) {
  if (to.size() < from.size()) to.resize(from.size());
  for (size_t i = 0; i < from.size(); ++i)
    if (from[i]) to[i] = true;
}

void publish(const void* flag) {
  BlockSet& set = order.published[flag];
  add_all(set, order.earlier);
  if (set.size() <= machine.block_number) set.resize(machine.block_number + 1);
  set[machine.block_number] = true;
}

void observe(const void* flag) {
  const auto found = order.published.find(flag);
  if (found != order.published.end()) add_all(order.earlier, found->second);
}

size_t block_at(uint64_t clock) {
  const std::vector<uint64_t>& starts = order.starts;
  return static_cast<size_t>(std::upper_bound(starts.begin(), starts.end(), clock) - starts.begin()) - 1;
}

/** Whether an access of this launch is known to come before one that `thread` makes now. */
bool ordered_before(Stamp stamp, const Thread& thread) {
  if (!stamp.before(machine.block_start)) return stamp.ordered_before(thread);
  const size_t block = block_at(stamp.clock());
  return block < order.earlier.size() && order.earlier[block];
}

std::string describe_race(const StoreRecord& record, const void* address) {
  const Stamp stamp(record.stamp);
  const uint64_t n = block_at(stamp.clock());
  const dim3 g = machine.launch->grid;
  const bool known = record.site.line() != 0;  // not of a plain store
  return describe_address(address) + " is not ordered after the " +
         (stamp.has(Stamp::kAtomic) ? "atomic operation" : "store") + " by thread " + std::to_string(stamp.thread()) +
         " of block (" + std::to_string(n % g.x) + ", " + std::to_string(n / g.x % g.y) + ", " +
         std::to_string(n / g.x / g.y) + ")" + (known ? " at " + place_of(record.site) : "");
}

/** The first piece of some bytes whose last store may happen at any time; atomic operations do not race. */
const StoreRecord* find_race(const StoreRecord* records, size_t count, uint64_t flags) {
  for (size_t i = 0; i < count; ++i) {
    const Stamp stamp(records[i].stamp);
    if (stamp.before(machine.launch_start) || (flags && stamp.has(flags))) continue;
    if (!ordered_before(stamp, *machine.current)) return &records[i];
  }
  return nullptr;
}

size_t granules(size_t bytes) { return (bytes + DeviceMemory::kGranule - 1) / DeviceMemory::kGranule; }

std::string race_of_access(const void* address, size_t bytes, uint64_t flags) {
  const StoreRecord* race = find_race(device_memory().shadow(address), granules(bytes), flags);
  return race ? describe_race(*race, address) : "";
}

/** Whether another thread has added to the same number, before or after by chance. */
bool follows_unordered_add(const float* to) {
  if (!machine.config.global_races) return false;
  const StoreRecord* last = find_race(device_memory().shadow(to), granules(sizeof *to), 0);
  return last && Stamp(last->stamp).has(Stamp::kAtomic);
}

std::string record_store(Allocation& allocation, const void* to, size_t bytes, uint64_t flags, Site site) {
  if (!machine.config.global_races) return "";
  const std::string race = race_of_access(to, bytes, flags);
  allocation.stored = machine.clock;
  StoreRecord* records = device_memory().shadow(to);
  std::fill(records, records + granules(bytes), StoreRecord{Stamp::of(*machine.current, flags).word(), site});
  return race;
}

void report_race(const std::string& race, const char* what, Site site) {
  if (!race.empty()) report(site, "global-race", [&] { return std::string(what) + " of " + race; });
}

void note_store(Allocation& allocation, const void* to, size_t bytes, const char* what, Site site) {
  report_race(record_store(allocation, to, bytes, 0, site), what, site);
}

void note_atomic(Allocation& allocation, const void* to, size_t bytes, const char* what, Site site) {
  report_race(record_store(allocation, to, bytes, Stamp::kAtomic, site), what, site);
}

}  // namespace

void begin_global_memory() {
  order.starts.clear();
  order.published.clear();
}

void begin_block_order() {
  order.starts.push_back(machine.block_start);
  order.earlier.clear();
}

std::string race_of_load(const Allocation& allocation, const void* from, size_t bytes) {
  if (!machine.config.global_races || allocation.stored < machine.launch_start) return "";
  return race_of_access(from, bytes, 0);
}

std::string race_of_store(Allocation& allocation, const void* to, size_t bytes, Site site) {
  return record_store(allocation, to, bytes, 0, site);
}

void note_load(const Allocation& allocation, const void* from, size_t bytes, const char* what, Site site) {
  report_race(race_of_load(allocation, from, bytes), what, site);
}

void load_global(const void* from, void* value, size_t bytes, size_t alignment, Site site) {
  const Allocation* allocation = check_global(from, bytes, alignment, "load_global", site);
  if (!allocation) {
    std::memset(value, kPoison, bytes);
    return;
  }
  note_load(*allocation, from, bytes, "load_global", site);
  std::memcpy(value, from, bytes);
}

void store_global(void* to, const void* value, size_t bytes, size_t alignment, Site site) {
  Allocation* allocation = check_global(to, bytes, alignment, "store_global", site);
  if (!allocation) return;
  note_store(*allocation, to, bytes, "store_global", site);
  machine.current->fenced = false;
  std::memcpy(to, value, bytes);
}

void add_global(float* to, float value, Site site) {
  Allocation* allocation = check_global(to, sizeof *to, alignof(float), "add_global", site);
  if (!allocation) return;
  if (follows_unordered_add(to)) ++machine.statistics.unordered_adds;
  note_atomic(*allocation, to, sizeof *to, "add_global", site);
  machine.current->fenced = false;
  *to += value;
}

int32_t fetch_add(int32_t* counter, int32_t value, Site site) {
  Allocation* allocation = check_global(counter, sizeof *counter, alignof(int32_t), "fetch_add", site);
  if (!allocation) return -1;
  note_atomic(*allocation, counter, sizeof *counter, "fetch_add", site);
  observe(counter);
  if (machine.current->fenced) publish(counter);
  const int32_t before = *counter;
  *counter += value;
  return before;
}

void fence() { machine.current->fenced = true; }

void signal(int32_t* flag, int32_t value, Site site) {
  Allocation* allocation = check_global(flag, sizeof *flag, alignof(int32_t), "signal", site);
  if (!allocation) return;
  note_atomic(*allocation, flag, sizeof *flag, "signal", site);
  publish(flag);
  *flag = value;
}

void wait_for(const int32_t* flag, int32_t value, Site site) {
  if (!check_global(flag, sizeof *flag, alignof(int32_t), "wait_for", site)) return;
  if (*flag != value) {
    machine.current->flag = flag;
    machine.current->flag_value = value;
    wait_in("wait_for", site);
    machine.current->flag = nullptr;
  }
  observe(flag);
}

}  // namespace emulator
