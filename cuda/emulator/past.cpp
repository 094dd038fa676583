#include "past.h"

#include <algorithm>

#include "machine.h"

namespace emulator {

namespace {

constexpr auto kBelow = [](const auto& part, uint64_t key) { return part.key < key; };

}  // namespace

void Past::add(uint64_t key, uint64_t before) {
  const auto at = std::lower_bound(parts_.begin(), parts_.end(), key, kBelow);
  if (at == parts_.end() || at->key != key)
    parts_.insert(at, Part{key, before});
  else
    at->before = std::max(at->before, before);
}

void Past::add(const Past& other) {
  if (other.empty()) return;
  std::vector<Part> all;
  all.reserve(parts_.size() + other.parts_.size());
  auto a = parts_.begin();
  for (const Part& b : other.parts_) {
    while (a != parts_.end() && a->key < b.key) all.push_back(*a++);
    if (a != parts_.end() && a->key == b.key)
      all.push_back({b.key, std::max(b.before, a++->before)});
    else
      all.push_back(b);
  }
  all.insert(all.end(), a, parts_.end());
  parts_ = std::move(all);
}

bool Past::covers(uint64_t block, int thread, uint64_t clock) const {
  const auto has = [&](int part) {
    const uint64_t wanted = key(block, part);
    const auto at = std::lower_bound(parts_.begin(), parts_.end(), wanted, kBelow);
    return at != parts_.end() && at->key == wanted && clock < at->before;
  };
  return has(0) || has(kFirstWarp + thread / kWarpSize) || has(kFirstThread + thread);
}

}  // namespace emulator
