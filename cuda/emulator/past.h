// What a thread knows to have happened in other blocks: a vector clock. Its parts are a block as a whole, up to its last
// sync_threads before it said so; the warp of the thread that spoke, up to its last sync_warp; and that thread itself.
#pragma once
#include <cstdint>
#include <vector>

namespace emulator {

class Past {
 public:
  bool empty() const { return parts_.empty(); }
  void clear() { parts_.clear(); }

  /** All that a block, a warp, a thread did before a clock. */
  void add_block(uint64_t block, uint64_t before) { add(key(block, 0), before); }
  void add_warp(uint64_t block, int warp, uint64_t before) { add(key(block, kFirstWarp + warp), before); }
  void add_thread(uint64_t block, int thread, uint64_t before) { add(key(block, kFirstThread + thread), before); }
  /** All that another past has. */
  void add(const Past&);

  /** Whether it has what a thread did at a clock. */
  bool covers(uint64_t block, int thread, uint64_t clock) const;

 private:
  struct Part {
    uint64_t key;
    uint64_t before;
  };
  static constexpr int kKeyBits = 11, kFirstWarp = 1, kFirstThread = 33;
  static uint64_t key(uint64_t block, int part) { return block << kKeyBits | static_cast<uint64_t>(part); }

  void add(uint64_t key, uint64_t before);

  std::vector<Part> parts_;  // by rising keys
};

}  // namespace emulator
