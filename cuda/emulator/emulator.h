// The host side of the emulator: how launches run, what they reported, and device memory by name. For tests.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace emulator {

/** What a plain C++ load or store of device memory is, in kernels compiled with the hooks (hooks.cpp). */
enum class PlainAccesses {
  Check,   // allowed within an allocation
  Forbid,  // always a report: kernels go through ptx::load_global and ptx::store_global
};

struct Config {
  int schedule = 0;           // 0: lowest thread first, 1: highest first, 2 and up: random with this seed
  bool eager_copies = false;  // async copies land when issued, instead of as late as allowed
  bool cut_sums = false;      // mma adds as coarsely as tensor cores may (see README.md), instead of rounding
  bool races = true;          // shared memory: races, copies in flight, reads of what nobody wrote
  bool global_races = true;   // global memory: unordered writes, and reads of them, within one launch
  bool bank_conflicts = true;
  PlainAccesses plain_accesses = PlainAccesses::Check;
  int max_reports = 20;  // later ones are dropped
};

/** Starts from the environment, FLASHATTN_EMULATOR_* (see README.md). A launch takes a copy. */
Config& config();

/** One line a kind and place since the last clear_reports: "file:line: kind: what happened [kernel, block, thread]". */
std::vector<std::string> reports();
void clear_reports();

/** The next launch ends with an error of CUDA, which the next call that waits on its stream returns. */
void fail_next_launch(int error);

struct Statistics {
  uint64_t launches, blocks, switches, barriers, collectives, mma, ldmatrix, copies;
  uint64_t global_read, global_written;  // bytes that threads asked for, whatever caches would have made of them
  uint64_t bank_conflicts;               // passes over shared memory beyond the first, per warp access
  uint64_t unordered_adds;  // additions to global memory in an order that nothing fixes: no race, other bits each run
};
Statistics& statistics();

/** Bank conflicts by place, most first. */
struct ConflictSite {
  std::string place;  // file:line
  uint64_t conflicts;
};
std::vector<ConflictSite> conflict_sites();
void clear_statistics();

/** Device memory, 256-byte aligned and filled with 0xff; null where the device has none left. */
void* allocate(size_t bytes, const char* name = "");
void* allocate_on(int device, size_t bytes, const char* name = "");
/** False where `data` is not the start of a live allocation. */
bool release(void* data);
/** Whether [data, data + bytes) lies in one live allocation. */
bool is_device_memory(const void* data, size_t bytes);
/** -1: it is no live memory of a device. */
int device_of_memory(const void* data, size_t bytes);

/** Typed device memory that the host can read and write in place. */
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t count, const char* name = "")
      : data_(static_cast<T*>(allocate(count * sizeof(T), name))),
        count_(count) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { release(data_); }

  T* data() const { return data_; }
  size_t size() const { return count_; }
  T& operator[](size_t i) const { return data_[i]; }
  T* begin() const { return data_; }
  T* end() const { return data_ + count_; }

 private:
  T* data_;  // [count_]
  size_t count_;
};

}  // namespace emulator
