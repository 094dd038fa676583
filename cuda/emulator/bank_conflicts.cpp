#include "bank_conflicts.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "emulator.h"
#include "report.h"

namespace emulator {

namespace {

constexpr int kBanks = 32;
constexpr uint32_t kWordBytes = 4, kPassBytes = kBanks * kWordBytes;

std::map<std::string, uint64_t>& conflicts_by_place() {
  static std::map<std::string, uint64_t> conflicts;
  return conflicts;
}

/** Passes beyond the first for `count` accesses that the hardware would like to serve at once. */
int extra_passes(const uint32_t* addresses, int count, uint32_t bytes) {
  const uint32_t words = std::max(bytes / kWordBytes, 1u);
  uint32_t seen[kBanks][kWarpSize];  // words of each bank
  int depth[kBanks] = {};
  int deepest = 1;
  for (int i = 0; i < count; ++i) {
    for (uint32_t w = 0; w < words; ++w) {
      const uint32_t word = addresses[i] / kWordBytes + w, bank = word % kBanks;
      uint32_t* of_bank = seen[bank];
      if (std::find(of_bank, of_bank + depth[bank], word) != of_bank + depth[bank]) continue;
      of_bank[depth[bank]++] = word;
      deepest = std::max(deepest, depth[bank]);
    }
  }
  return deepest - 1;
}

/** 8-byte accesses are served by half warps, 16-byte ones by quarters. */
void count(const uint32_t* addresses, int lanes, uint32_t bytes, Site site) {
  const int at_once = bytes <= kWordBytes ? kWarpSize : static_cast<int>(kPassBytes / bytes);
  int extra = 0;
  for (int first = 0; first < lanes; first += at_once)
    extra += extra_passes(addresses + first, std::min(at_once, lanes - first), bytes);
  if (extra == 0) return;
  statistics().bank_conflicts += static_cast<uint64_t>(extra);
  conflicts_by_place()[place_of(site)] += static_cast<uint64_t>(extra);
}

bool same_instructions(const std::vector<SharedAccess>& a, const std::vector<SharedAccess>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const SharedAccess& x, const SharedAccess& y) {
    return x.bytes == y.bytes && x.site.line() == y.site.line();
  });
}

struct LaneAccesses {
  std::vector<SharedAccess>* lanes[kWarpSize];
};

void count_in_step(const LaneAccesses& all) {
  const std::vector<SharedAccess>& first = *all.lanes[0];
  for (size_t i = 0; i < first.size(); ++i) {
    uint32_t addresses[kWarpSize];
    for (int lane = 0; lane < kWarpSize; ++lane) addresses[lane] = (*all.lanes[lane])[i].address;
    count(addresses, kWarpSize, static_cast<uint32_t>(first[i].bytes), first[i].site);
  }
}

/** Where lanes took different ways: the n-th access of one lane at a place goes with the n-th of the others. */
void count_by_place(const LaneAccesses& all) {
  using Key = std::pair<uint32_t, size_t>;  // line, repetition
  std::map<Key, std::vector<SharedAccess>> together;
  for (const auto* accesses : all.lanes) {
    std::map<uint32_t, size_t> repetitions;
    if (!accesses) continue;
    for (const SharedAccess& access : *accesses)
      together[{access.site.line(), repetitions[access.site.line()]++}].push_back(access);
  }
  for (const auto& [key, accesses] : together) {
    uint32_t addresses[kWarpSize];
    int lanes = 0;
    for (const SharedAccess& access : accesses) addresses[lanes++] = access.address;
    count(addresses, lanes, static_cast<uint32_t>(accesses.front().bytes), accesses.front().site);
  }
}

}  // namespace

void note_bank_access(Thread& thread, uint32_t address, int bytes, Site site) {
  if (!machine.config.bank_conflicts) return;
  thread.accesses.push_back({site, address, bytes});
  thread.warp->has_accesses = true;
}

void count_bank_conflicts(Warp& warp) {
  LaneAccesses all{};
  bool in_step = true;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (warp.lanes >> lane & 1) all.lanes[lane] = &warp.threads[lane].accesses;
    in_step = in_step && all.lanes[lane] && same_instructions(*all.lanes[0], *all.lanes[lane]);
  }
  if (in_step)
    count_in_step(all);
  else
    count_by_place(all);
  for (auto* accesses : all.lanes)
    if (accesses) accesses->clear();
  warp.has_accesses = false;
}

void count_bank_conflicts(Block& block) {
  for (int w = 0; w < machine.warps; ++w)
    if (block.warps[w].has_accesses) count_bank_conflicts(block.warps[w]);
}

void count_ldmatrix_conflicts(const uint32_t (&rows)[kWarpSize], Site site) {
  constexpr uint32_t kRowBytes = 16, kGroups = kPassBytes / kRowBytes;
  if (!machine.config.bank_conflicts) return;
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint32_t groups = 0;  // of four banks
    for (int row = 0; row < 8; ++row) groups |= 1u << rows[8 * matrix + row] / kRowBytes % kGroups;
    if (groups != (1u << kGroups) - 1) count(rows + 8 * matrix, 8, kRowBytes, site);
  }
}

Statistics& statistics() { return machine.statistics; }

std::vector<ConflictSite> conflict_sites() {
  std::vector<ConflictSite> sites;
  for (const auto& [place, conflicts] : conflicts_by_place()) sites.push_back({place, conflicts});
  std::stable_sort(sites.begin(), sites.end(), [](const auto& a, const auto& b) { return a.conflicts > b.conflicts; });
  return sites;
}

void clear_statistics() {
  statistics() = {};
  conflicts_by_place().clear();
}

}  // namespace emulator
