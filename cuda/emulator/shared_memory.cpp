#include "shared_memory.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <string>
#include <vector>

#include "bank_conflicts.h"
#include "emulator.h"
#include "report.h"
#include "stamp.h"

namespace emulator {

/** What is known about some bytes: the last write, and the reads since then. */
struct Cell {
  Stamp write, read;
  Site write_site, read_site;
};

inline constexpr uint32_t kMaxShared = 256 << 10, kMargin = 64 << 10;
inline constexpr uint32_t kLine = 16, kGranule = 2, kGranules = kLine / kGranule;

// Most accesses cover a line of 16 bytes (copies, ldmatrix): a line has one cell until a smaller access splits it into
// eight, and again after it has been written as a whole.
struct SharedMemory {
  std::vector<uint8_t> arena = std::vector<uint8_t>(kMaxShared + 2 * kMargin);
  std::vector<Cell> lines = std::vector<Cell>(kMaxShared / kLine);
  std::vector<Cell> granules = std::vector<Cell>(kMaxShared / kGranule);
  std::vector<uint8_t> is_split = std::vector<uint8_t>(kMaxShared / kLine);
  int size = 0;
};

namespace {

constexpr int kPoison = 0xff;

SharedMemory& shared_of(const Thread& thread) { return *thread.warp->block->shared; }

struct Access {
  const Thread& thread;
  const char* what;
  Site site;
};

std::string who(Stamp stamp) {
  if (stamp.has(Stamp::kSeveralWarps)) return "threads of several warps";
  if (stamp.has(Stamp::kSeveralLanes)) return "threads of warp " + std::to_string(stamp.warp());
  return "thread " + std::to_string(stamp.thread());
}

void report_race(const Access& a, const char* other, Stamp stamp, Site site) {
  report_of(a.thread, a.site, "race", [=] {
    return std::string(a.what) + " is not ordered after the " + other + " by " + who(stamp) + " at " + place_of(site);
  });
}

void report_in_flight(const Access& a, const char* kind, const char* does, const Cell& cell) {
  report_of(a.thread, a.site, kind, [&] {
    return std::string(a.what) + does + "the async copy that thread " + std::to_string(cell.write.thread()) +
           " issued at " + place_of(cell.write_site) + " and has not waited for";
  });
}

void check_read(const Cell& cell, const Access& a) {
  if (cell.write.before(a.thread.warp->block->start))
    report_of(a.thread, a.site, "uninitialised-shared",
              [=] { return std::string(a.what) + " of bytes that nobody has written"; });
  else if (cell.write.has(Stamp::kInFlight))
    report_in_flight(a, "read-of-copy-in-flight", " reads what is still being written by ", cell);
  else if (!cell.write.ordered_before(a.thread))
    report_race(a, "write", cell.write, cell.write_site);
}

void read_cell(Cell& cell, const Access& a) {
  check_read(cell, a);
  const Stamp mine = Stamp::of(a.thread);
  if (cell.read.word() == mine.word()) return;
  uint64_t flags = 0;
  if (!cell.read.ordered_before(a.thread)) {
    const bool same_warp = !cell.read.has(Stamp::kSeveralWarps) && cell.read.warp() == a.thread.warp->index;
    flags = same_warp ? Stamp::kSeveralLanes : Stamp::kSeveralWarps;
  }
  cell.read = Stamp::of(a.thread, flags);
  cell.read_site = a.site;
}

void write_cell(Cell& cell, const Access& a, uint64_t flags) {
  if (!cell.write.before(a.thread.warp->block->start)) {
    if (cell.write.has(Stamp::kInFlight))
      report_in_flight(a, "write-over-copy-in-flight", " overwrites ", cell);
    else if (!cell.write.ordered_before(a.thread))
      report_race(a, "write", cell.write, cell.write_site);
  }
  if (!cell.read.ordered_before(a.thread)) report_race(a, "read", cell.read, cell.read_site);
  cell = {Stamp::of(a.thread, flags), Stamp(), a.site, Site()};
}

Cell* split(SharedMemory& memory, uint32_t line) {
  Cell* cells = &memory.granules[line * kGranules];
  if (!memory.is_split[line]) {
    for (uint32_t i = 0; i < kGranules; ++i) cells[i] = memory.lines[line];
    memory.is_split[line] = 1;
  }
  return cells;
}

template <class Visit>
void visit_granules(SharedMemory& memory, uint32_t offset, int bytes, Visit visit) {
  Cell* cells = split(memory, offset / kLine);
  const uint32_t first = offset % kLine / kGranule, count = static_cast<uint32_t>(bytes) / kGranule;
  for (uint32_t i = first; i < first + count; ++i) visit(cells[i]);
}

void write_line(SharedMemory& memory, uint32_t offset, const Access& a, uint64_t flags) {
  const uint32_t line = offset / kLine;
  if (memory.is_split[line]) {
    visit_granules(memory, offset, kLine, [&](Cell& cell) { write_cell(cell, a, flags); });
    memory.lines[line] = memory.granules[line * kGranules];
    memory.is_split[line] = 0;
  } else {
    write_cell(memory.lines[line], a, flags);
  }
}

}  // namespace

void begin_shared_memory(Block& block, int bytes) {
  if (!block.shared) block.shared = new SharedMemory;
  SharedMemory& memory = *block.shared;
  memory.size = bytes;
  std::memset(memory.arena.data() + kMargin, kPoison, static_cast<size_t>(bytes));
}

bool check_shared(const Thread& thread, uint32_t address, int bytes, const char* what, Site site) {
  const int64_t offset = static_cast<int64_t>(address) - kSharedBase;
  if (offset < 0 || offset + bytes > shared_of(thread).size) {
    report_of(thread, site, "shared-out-of-bounds", [=, &thread] {
      return std::string(what) + " of " + std::to_string(bytes) + " bytes at offset " + std::to_string(offset) +
             " of " + std::to_string(shared_of(thread).size);
    });
    return false;
  }
  if (address % static_cast<uint32_t>(bytes) != 0) {
    report_of(thread, site, "shared-misaligned", [=] {
      return std::string(what) + " at offset " + std::to_string(offset) + " is not aligned to " +
             std::to_string(bytes) + " bytes";
    });
    return false;
  }
  return true;
}

uint8_t* shared_bytes(const Thread& thread, uint32_t address) {
  return shared_of(thread).arena.data() + kMargin + (address - kSharedBase);
}

bool in_shared_arena(const void* p) {
  return std::any_of(std::begin(machine.blocks), std::end(machine.blocks), [p](const Block& block) {
    if (!block.shared) return false;
    const std::vector<uint8_t>& arena = block.shared->arena;
    return p >= arena.data() && p < arena.data() + arena.size();
  });
}

void note_shared_read(const Thread& thread, uint32_t address, int bytes, const char* what, Site site) {
  if (!machine.config.races) return;
  SharedMemory& memory = shared_of(thread);
  const uint32_t offset = address - kSharedBase;
  const Access access{thread, what, site};
  if (bytes == kLine && !memory.is_split[offset / kLine])
    read_cell(memory.lines[offset / kLine], access);
  else
    visit_granules(memory, offset, bytes, [&](Cell& cell) { read_cell(cell, access); });
}

void note_shared_write(const Thread& thread, uint32_t address, int bytes, const char* what, Site site) {
  if (!machine.config.races) return;
  SharedMemory& memory = shared_of(thread);
  const uint32_t offset = address - kSharedBase;
  const Access access{thread, what, site};
  if (bytes == kLine)
    write_line(memory, offset, access, 0);
  else
    visit_granules(memory, offset, bytes, [&](Cell& cell) { write_cell(cell, access, 0); });
}

void note_copy_issued(const Thread& thread, uint32_t address, int bytes, Site site) {
  if (!machine.config.races) return;
  SharedMemory& memory = shared_of(thread);
  const uint32_t offset = address - kSharedBase;
  const Access access{thread, "cp_async", site};
  if (bytes == kLine)
    write_line(memory, offset, access, Stamp::kInFlight);
  else
    visit_granules(memory, offset, bytes, [&](Cell& cell) { write_cell(cell, access, Stamp::kInFlight); });
}

void note_copy_landed(const Thread& thread, uint32_t address, int bytes) {
  if (!machine.config.races) return;
  SharedMemory& memory = shared_of(thread);
  const uint32_t line = (address - kSharedBase) / kLine;
  const auto land = [&](Cell& cell) {
    if (cell.write.has(Stamp::kInFlight) && cell.write.thread() == thread.index) cell.write = Stamp::of(thread);
  };
  if (bytes != kLine || memory.is_split[line])
    visit_granules(memory, address - kSharedBase, bytes, land);
  else
    land(memory.lines[line]);
}

void load_shared(uint32_t from, void* value, int bytes, Site site) {
  Thread& self = *machine.current;
  if (!check_shared(self, from, bytes, "load_shared", site)) {
    std::memset(value, kPoison, static_cast<size_t>(bytes));
    return;
  }
  note_shared_read(self, from, bytes, "load_shared", site);
  note_bank_access(self, from, bytes, site);
  std::memcpy(value, shared_bytes(self, from), static_cast<size_t>(bytes));
}

void store_shared(uint32_t to, const void* value, int bytes, Site site) {
  Thread& self = *machine.current;
  if (!check_shared(self, to, bytes, "store_shared", site)) return;
  note_shared_write(self, to, bytes, "store_shared", site);
  note_bank_access(self, to, bytes, site);
  std::memcpy(shared_bytes(self, to), value, static_cast<size_t>(bytes));
}

}  // namespace emulator
