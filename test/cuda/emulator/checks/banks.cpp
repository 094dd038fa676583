// Bank conflicts: how often shared memory has to be asked again because lanes of a warp want the same bank.
#include "expect.h"
#include "ptx.cuh"

namespace {

constexpr int kThreads = 32, kBytes = 16 << 10;

struct Pattern {
  uint32_t lane;     // bytes between lanes
  uint32_t swizzle;  // of a row of 8 chunks of 16 bytes, 7 or 0
  int lanes;         // that take part
};

FLASHATTN_DEVICE bool takes_part(const Pattern& p) { return ptx::thread() < p.lanes; }
FLASHATTN_DEVICE uint32_t address(const Pattern& p) {
  return ptx::shared_base() + static_cast<uint32_t>(ptx::thread()) * p.lane;
}

template <class T>
FLASHATTN_KERNEL(kThreads)
stores(const Pattern p) {
  if (takes_part(p)) ptx::store_shared(address(p), T{});
}

template <class T>
FLASHATTN_KERNEL(kThreads)
loads(const Pattern p) {
  for (uint32_t i = static_cast<uint32_t>(ptx::thread()) * 16; i < kBytes; i += kThreads * 16)
    ptx::store_shared(ptx::shared_base() + i, uint4{});
  ptx::sync_warp();
  if (takes_part(p)) ptx::load_shared<T>(address(p));
}

/** The rows of a [32, 64] tile of 16-bit numbers, one chunk of each. */
FLASHATTN_KERNEL(kThreads) matrices(const Pattern p) {
  const uint32_t row = static_cast<uint32_t>(ptx::thread());
  for (uint32_t chunk = 0; chunk < 8; ++chunk)
    ptx::store_shared(ptx::shared_base() + row * 128 + (chunk ^ (row & 7)) * 16, uint4{});
  ptx::sync_warp();
  uint32_t r[4];
  ptx::ldmatrix_x4(r, ptx::shared_base() + row * 128 + (row & p.swizzle) * 16);  // the line of `matrices`
}

uint64_t conflicts(void (*kernel)(Pattern), const Pattern& pattern) {
  emulator::clear_statistics();
  ptx::launch(kernel, "banks", dim3(1), kThreads, kBytes, nullptr, pattern);
  return emulator::statistics().bank_conflicts;
}

uint64_t lanes_apart(void (*kernel)(Pattern), uint32_t bytes, int lanes = kThreads) {
  return conflicts(kernel, {bytes, 0, lanes});
}

}  // namespace

int main() {
  EXPECT(lanes_apart(stores<uint32_t>, 4) == 0);
  EXPECT(lanes_apart(stores<uint32_t>, 8) == 1);
  EXPECT(lanes_apart(stores<uint32_t>, 128) == 31);
  EXPECT(lanes_apart(stores<uint32_t>, 128, 3) == 2);
  EXPECT(lanes_apart(stores<uint32_t>, 132) == 0);
  EXPECT(lanes_apart(stores<uint16_t>, 2) == 0);
  EXPECT(lanes_apart(loads<uint32_t>, 0) == 0);  // one word for all
  EXPECT(lanes_apart(loads<uint16_t>, 2) == 0);
  EXPECT(lanes_apart(loads<uint2>, 8) == 0);
  EXPECT(lanes_apart(loads<uint2>, 16) == 2);
  EXPECT(lanes_apart(loads<uint4>, 16) == 0);
  EXPECT(lanes_apart(loads<uint4>, 32) == 4);
  EXPECT(lanes_apart(loads<uint4>, 128) == 28);

  EXPECT(conflicts(matrices, {0, 7, kThreads}) == 0);
  EXPECT(conflicts(matrices, {0, 0, kThreads}) == 4 * 7);
  const auto sites = emulator::conflict_sites();
  EXPECT(sites.size() == 1 && sites[0].conflicts == 4 * 7);
  if (!sites.empty()) std::printf("%s\n", sites[0].place.c_str());

  emulator::config().bank_conflicts = false;
  EXPECT(conflicts(matrices, {0, 0, kThreads}) == 0);
  return finish();
}
