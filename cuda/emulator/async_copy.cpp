#include "async_copy.h"

#include <cstring>
#include <string>

#include "device_memory.h"
#include "emulator.h"
#include "global_memory.h"
#include "machine.h"
#include "report.h"
#include "shared_memory.h"

namespace emulator {

namespace {

void write_destination(const Thread& thread, const AsyncCopy& copy) {
  uint8_t* to = shared_bytes(thread, copy.to);
  const size_t bytes = static_cast<size_t>(copy.bytes);
  std::memcpy(to, copy.from, bytes);
  std::memset(to + bytes, 0, static_cast<size_t>(copy.size) - bytes);
}

}  // namespace

void copy_async(uint32_t to, const void* from, int bytes, int size, Site site) {
  Thread& self = *machine.current;
  ++machine.statistics.copies;
  if (bytes < 0 || bytes > size) {
    report(site, "copy-size",
           [=] { return "cp_async of " + std::to_string(bytes) + " of " + std::to_string(size) + " bytes"; });
    return;
  }
  if (reinterpret_cast<uintptr_t>(from) % static_cast<uintptr_t>(size) != 0)
    report(site, "global-misaligned", [=] {
      return "cp_async from " + describe_address(from) + ", not aligned to " + std::to_string(size) + " bytes";
    });
  if (bytes > 0) {
    const Allocation* source = check_global(from, static_cast<size_t>(bytes), 1, "cp_async", site);
    if (source) note_load(*source, from, static_cast<size_t>(bytes), "cp_async", site);
    machine.statistics.global_read += static_cast<uint64_t>(bytes);
    if (!source) bytes = 0;
  }
  if (!check_shared(self, to, size, "cp_async", site)) return;
  note_copy_issued(self, to, size, site);
  const AsyncCopy copy{to, size, bytes, from, site};
  if (machine.config.eager_copies) write_destination(self, copy);
  self.copies.push(copy);
}

void commit_copies() { machine.current->copies.commit(); }

void wait_copies(int pending) {
  Thread& self = *machine.current;
  const bool late = !machine.config.eager_copies;
  self.copies.land_groups(static_cast<size_t>(pending), [&](const AsyncCopy& copy) {
    if (late) write_destination(self, copy);
    note_copy_landed(self, copy.to, copy.size);
  });
}

void finish_copies(Thread& thread) {
  if (thread.copies.in_flight() > 0) {
    report_of(thread, thread.copies.oldest().site, "exit-with-copies-in-flight",
              [&] { return std::to_string(thread.copies.in_flight()) + " async copies were never waited for"; });
  }
  thread.copies.clear();
}

}  // namespace emulator
