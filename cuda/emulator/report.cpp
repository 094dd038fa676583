#include "report.h"

#include <mutex>
#include <set>
#include <tuple>
#include <vector>

#include "emulator.h"

namespace emulator {

namespace {

struct Reports {
  std::mutex mutex;
  std::vector<std::string> lines;
  std::set<std::string> seen;                                      // kind and place
  std::set<std::tuple<const char*, const char*, uint32_t>> sites;  // kind, file and line: quicker, but not exact
  uint64_t count = 0;
};

Reports& all = *new Reports;  // other threads may outlive main

std::string circumstances(const Block& block, int thread) {
  const dim3 b = block.index;
  std::string text = std::string(machine.launch->name) + ", block (" + std::to_string(b.x) + ", " +
                     std::to_string(b.y) + ", " + std::to_string(b.z) + ")";
  if (thread != kNoThread) text += ", thread " + std::to_string(thread);
  return " [" + text + "]";
}

}  // namespace

std::string shorten(const std::string& path) {
  const size_t name = path.rfind('/');
  const size_t folder = name == std::string::npos || name == 0 ? name : path.rfind('/', name - 1);
  return path.substr(folder == std::string::npos ? 0 : folder + 1);
}

std::string place_of(Site site) { return shorten(site.file_name()) + ":" + std::to_string(site.line()); }

bool is_news(Site site, const char* kind) {
  const std::lock_guard lock(all.mutex);
  ++all.count;
  return all.sites.emplace(kind, site.file_name(), site.line()).second;
}

void add_report(const Block& block, int thread, const std::string& place, const char* kind,
                const std::string& message) {
  const std::lock_guard lock(all.mutex);
  if (static_cast<int>(all.lines.size()) >= config().max_reports) return;
  if (!all.seen.insert(std::string(kind) + " " + place).second) return;
  all.lines.push_back(place + ": " + kind + ": " + message + circumstances(block, thread));
}

uint64_t report_count() {
  const std::lock_guard lock(all.mutex);
  return all.count;
}

void count_report() {
  const std::lock_guard lock(all.mutex);
  ++all.count;
}

std::vector<std::string> reports() {
  const std::lock_guard lock(all.mutex);
  return all.lines;
}

void clear_reports() {
  const std::lock_guard lock(all.mutex);
  all.lines.clear();
  all.seen.clear();
  all.sites.clear();
}

}  // namespace emulator
