#include "pool.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <new>
#include <utility>

namespace cpu_host {

namespace {

using flashattn::Slot;

constexpr size_t kCacheLine = 64;
// How long an idle thread looks for work before it sleeps: as long as being woken takes. So it never spends more than twice
// what the best choice would.
constexpr std::chrono::microseconds kIdleTime{80};
// A launch number that no slot has, with no item left: whoever still looks at the slot takes nothing from it.
constexpr uint64_t kNoItems = 0xffffffff;

/** How many looks at the queue take kIdleTime: what one takes differs tenfold from one processor to the next. */
uint32_t idle_spins(const flashattn::Queue& queue) {
  using Clock = std::chrono::steady_clock;
  constexpr uint32_t kLooks = 200;
  Clock::duration least = Clock::duration::max();
  // Whoever is interrupted meanwhile takes longer, hardly three times.
  for (int time = 0; time < 3; ++time) {
    const Clock::time_point begin = Clock::now();
    flashattn::detail::look_for_event(queue, queue.header.event, kLooks);
    least = std::min(least, Clock::now() - begin);
  }
  const auto looks = kLooks * kIdleTime / std::max(least, Clock::duration(1));
  return static_cast<uint32_t>(std::clamp<int64_t>(looks, 100, 1'000'000));
}

}  // namespace

WorkspaceMemory::WorkspaceMemory(size_t bytes) : data_(::operator new(bytes, std::align_val_t{kCacheLine})) {}
WorkspaceMemory::~WorkspaceMemory() { ::operator delete(data_, std::align_val_t{kCacheLine}); }

Pool::Pool(const KernelTable& kernels, int threads, std::function<void()> on_awaited)
    : kernels_(kernels),
      wanted_(threads),
      on_awaited_(std::move(on_awaited)),
      queue_(new flashattn::Queue),  // slots are written before they are read
      workspace_(kernels.workspace_bytes()) {
  queue_->header = {};
  queue_->header.spins = idle_spins(*queue_);
}

Pool::~Pool() {
  flashattn::QueueHeader& header = queue_->header;
  __atomic_store_n(&header.fault, 1, __ATOMIC_SEQ_CST);
  flashattn::detail::raise_event(header);
  for (std::thread& thread : threads_) thread.join();
}

uint64_t Pool::completed() const {
  return published_ -
         static_cast<uint32_t>(static_cast<uint32_t>(published_) - flashattn::detail::read(queue_->header.completed));
}

uint64_t Pool::launch(int first, const void* params, size_t params_bytes, bool small) {
  // A thread that is awake has begun before the host could be done with half of it.
  const bool asleep = !started_ || flashattn::detail::read(queue_->header.sleepers) == threads_.size();
  const bool in_place = (small && asleep && completed() == published_) || !start();
  for (int launch = first; launch < first + kernels_.max_phases; ++launch) {
    const int items = kernels_.count(launch, params);
    if (items < 0) break;
    if (items == 0) continue;
    if (in_place) {
      for (int item = 0; item < items; ++item) kernels_.run(launch, params, item, workspace_.get());
    } else {
      publish(launch, items, params, params_bytes);
    }
  }
  if (!in_place) {
    flashattn::detail::raise_event(queue_->header);
  }
  return published_;
}

void Pool::publish(int launch, int items, const void* params, size_t params_bytes) {
  if (published_ - completed() >= flashattn::kSlots) wait(published_ - flashattn::kSlots + 1);
  Slot& slot = queue_->slots[published_ % flashattn::kSlots];
  __atomic_store_n(&slot.ticket, kNoItems, __ATOMIC_SEQ_CST);
  std::memcpy(slot.params, params, std::min(params_bytes, sizeof(slot.params)));
  slot.launch = static_cast<uint32_t>(launch);
  __atomic_store_n(&slot.items, static_cast<uint32_t>(items), __ATOMIC_SEQ_CST);
  __atomic_store_n(&slot.done, 0, __ATOMIC_SEQ_CST);
  __atomic_store_n(&slot.ticket, published_ << 32, __ATOMIC_SEQ_CST);
  ++published_;
  __atomic_store_n(&queue_->header.published, static_cast<uint32_t>(published_), __ATOMIC_SEQ_CST);
}

void Pool::sleep_for(uint64_t number) {
  const uint64_t first = std::min(number, awaited_.load());
  __atomic_store_n(&queue_->header.awaited, static_cast<uint32_t>(std::min(first, published_)), __ATOMIC_SEQ_CST);
}

void Pool::await(uint64_t number) {
  awaited_.store(number);
  sleep_for(number);
}

void Pool::wait(uint64_t number) {
  for (;;) {
    sleep_for(number);
    const uint32_t raw = flashattn::detail::read(queue_->header.completed);
    if (completed() >= number) return tell();  // of what this thread has done itself
    flashattn::run_available(*queue_, [&](uint32_t launch, const uint32_t* params, uint32_t item) {
      kernels_.run(static_cast<int>(launch), params, static_cast<int>(item), workspace_.get());
    });
    // Sleeps only when nothing was done meanwhile: other threads hold all items that are left.
    flashattn::detail::sleep(queue_->header.completed, raw);
  }
}

void Pool::tell() {
  const uint64_t awaited = awaited_.load();
  const uint32_t done = flashattn::detail::read(queue_->header.completed);
  if (awaited != kNobody && static_cast<int32_t>(done - static_cast<uint32_t>(awaited)) >= 0) on_awaited_();
}

/** Whether there are threads. */
bool Pool::start() {
  if (!started_) {
    started_ = true;
    for (int i = 0; i < wanted_; ++i) {
      try {
        workspaces_.push_back(std::make_unique<WorkspaceMemory>(kernels_.workspace_bytes()));
        threads_.emplace_back([this, workspace = workspaces_.back()->get()] { work(workspace); });
      } catch (const std::exception&) {
        break;  // no more memory or threads for this process: those that there are do the work
      }
    }
  }
  return !threads_.empty();
}

void Pool::work(void* workspace) {
  const auto run = [&](uint32_t launch, const uint32_t* params, uint32_t item) {
    kernels_.run(static_cast<int>(launch), params, static_cast<int>(item), workspace);
  };
  flashattn::worker_loop(*queue_, run, [&] { tell(); });
}

}  // namespace cpu_host
