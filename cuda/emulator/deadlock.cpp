#include "deadlock.h"

#include <cstring>
#include <string>
#include <vector>

#include "device_memory.h"
#include "machine.h"
#include "report.h"

namespace emulator {

namespace {

struct Group {
  const Thread* first;
  std::vector<int> threads;  // rising
};

bool wait_alike(const Thread& a, const Thread& b) {
  return std::strcmp(a.waits_in, b.waits_in) == 0 && a.site.line() == b.site.line() && a.flag == b.flag;
}

std::string ranges(const std::vector<int>& numbers) {
  std::string text = numbers.size() == 1 ? "thread " : "threads ";
  for (size_t i = 0; i < numbers.size();) {
    size_t end = i + 1;
    while (end < numbers.size() && numbers[end] == numbers[end - 1] + 1) ++end;
    if (i) text += ", ";
    text += std::to_string(numbers[i]);
    if (end - i > 1) text += "-" + std::to_string(numbers[end - 1]);
    i = end;
  }
  return text;
}

bool needs_all_threads(const Thread& thread) { return std::strcmp(thread.waits_in, "sync_threads") == 0; }

std::string describe(const Group& group) {
  const Thread& thread = *group.first;
  const char* wait = group.threads.size() == 1 ? " waits in " : " wait in ";
  std::string text = ranges(group.threads) + wait + thread.waits_in + " at " + place_of(thread.site);
  if (needs_all_threads(thread))
    text += ", which needs all " + std::to_string(machine.threads) + " threads";
  else if (!thread.flag)
    text += ", which needs all 32 lanes of the warp";
  else
    text += " for " + describe_address(thread.flag) + " to be " + std::to_string(thread.flag_value) + ", which is " +
            std::to_string(*thread.flag);
  return text;
}

}  // namespace

void report_deadlock(const Block& block) {
  std::vector<Group> groups;
  std::vector<int> finished;
  for (int i = 0; i < machine.threads; ++i) {
    const Thread& thread = block.threads[i];
    if (thread.done) {
      finished.push_back(i);
      continue;
    }
    Group* group = nullptr;
    for (Group& g : groups)
      if (wait_alike(*g.first, thread)) group = &g;
    if (!group) group = &groups.emplace_back(Group{&thread, {}});
    group->threads.push_back(i);
  }
  std::string text;
  for (const Group& group : groups) text += (text.empty() ? "" : "; ") + describe(group);
  if (!finished.empty()) text += "; " + ranges(finished) + " finished";
  const Site site = groups.front().first->site;
  if (is_news(site, "deadlock")) add_report(block, kNoThread, place_of(site), "deadlock", text);
}

}  // namespace emulator
