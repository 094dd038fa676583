// The pool of native threads under a sanitizer of threads: launches whose items read, without any lock, what the launch
// before them wrote. Prints what went wrong, or "ok".
#include "host/threads/pool.h"

#include <stdio.h>
#include <string.h>

#include <condition_variable>
#include <mutex>
#include <vector>

namespace {

using cpu_host::KernelTable;
using cpu_host::Pool;

constexpr int kItems = 7;

/** A launch: every item of it writes its number behind those of the launch before. */
struct Step {
  int* cells;  // [kItems], plain
  int number, items;
  int* wrong;
};

int count(int launch, const void* params) { return launch == 0 ? static_cast<const Step*>(params)->items : -1; }

void run(int, const void* params, int item, void* workspace) {
  const Step& step = *static_cast<const Step*>(params);
  memset(workspace, item, 16);  // nobody else's
  // Any cell may be read: all of the launch before are written, and none of the next is.
  if (step.cells[item] != step.number - 1) __atomic_store_n(step.wrong, 1, __ATOMIC_RELAXED);
  step.cells[item] = step.number;
}

size_t workspace_bytes() { return 64; }

constexpr KernelTable kKernels = {"test", 4, workspace_bytes, 2, nullptr, nullptr, nullptr, count, run, nullptr};

/** The last thing that was told. */
class Bell {
 public:
  void ring() {
    {
      const std::scoped_lock lock(mutex_);
      ++rung_;
    }
    changed_.notify_all();
  }
  void wait_for_another(int before) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return rung_ != before; });
  }
  int rung() {
    const std::scoped_lock lock(mutex_);
    return rung_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int rung_ = 0;
};

/** As JavaScript does: says from when on it wants to be told, looks, and waits to be told where it is too early. */
void wait_as_host(Pool& pool, Bell& bell, uint64_t number) {
  for (;;) {
    const int before = bell.rung();
    pool.await(number);
    if (pool.completed() >= number) break;
    bell.wait_for_another(before);
  }
  pool.await(Pool::kNobody);
}

bool check(int threads, uint64_t seed, int launches) {
  Bell bell;
  int cells[kItems] = {}, wrong = 0;
  Pool pool(kKernels, threads, [&] { bell.ring(); });
  for (int number = 1; number <= launches; ++number) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    const auto random = static_cast<unsigned>(seed >> 33);
    const Step step{cells, number, kItems, &wrong};
    const uint64_t last = pool.launch(0, &step, sizeof(step), random % 3 == 0);
    if (random % 17 == 0) pool.wait(last);
    if (random % 19 == 0) wait_as_host(pool, bell, last);
    if (random % 4001 == 0) pool.wait(last > 5 ? last - 5 : last);
  }
  pool.wait(pool.published());
  bool right = wrong == 0 && pool.completed() == pool.published();
  for (const int cell : cells) right = right && cell == launches;
  return right;
}

/** A pool that goes while it has work, or when its threads are about to sleep. */
void leave(int threads, int launches) {
  int cells[kItems] = {}, wrong = 0;
  Pool pool(kKernels, threads, [] {});
  for (int number = 1; number <= launches; ++number) {
    const Step step{cells, number, kItems, &wrong};
    pool.launch(0, &step, sizeof(step), false);
  }
}

}  // namespace

int main() {
  for (int threads = 1; threads <= 5; ++threads) {
    if (!check(threads, static_cast<uint64_t>(threads), 6000)) {
      printf("wrong with %d threads\n", threads);
      return 1;
    }
    for (int launches = 1; launches <= 300; ++launches) leave(threads, launches);
  }
  // More launches at once than the queue has slots.
  int cells[kItems] = {}, wrong = 0;
  {
    Pool pool(kKernels, 2, [] {});
    for (int number = 1; number <= 10000; ++number) {
      const Step step{cells, number, kItems, &wrong};
      pool.launch(0, &step, sizeof(step), false);
    }
    pool.wait(pool.published());
  }
  puts(wrong == 0 && cells[0] == 10000 ? "ok" : "wrong with a full queue");
  return wrong;
}
