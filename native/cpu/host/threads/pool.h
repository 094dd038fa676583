// Native threads on the launch queue of host/queue.h.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "host/queue.h"
#include "kernels.h"

namespace cpu_host {

/** What a thread keeps for itself. */
class WorkspaceMemory {
 public:
  explicit WorkspaceMemory(size_t bytes);
  ~WorkspaceMemory();
  WorkspaceMemory(const WorkspaceMemory&) = delete;
  WorkspaceMemory& operator=(const WorkspaceMemory&) = delete;

  void* get() const { return data_; }

 private:
  void* data_;
};

/**
 * Launches are numbered from 1 and run in order. All functions are for one thread, the host's; `on_awaited` is called on
 * threads of the pool.
 */
class Pool {
 public:
  Pool(const KernelTable&, int threads, std::function<void()> on_awaited);
  /** Threads end with the item that they are in; what is pending is lost. */
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  /**
   * Runs the phases from `first` on that have items: here and now where they are `small`, nothing is pending and all threads
   * sleep, or where no thread could be started; on the threads otherwise. Blocks only while the queue is full.
   *
   * @returns the number of the launch that has to be done for all of them to be
   */
  uint64_t launch(int first, const void* params, size_t params_bytes, bool small);

  uint64_t published() const { return published_; }
  uint64_t completed() const;
  /** on_awaited is called once a launch from `number` on is done; kNobody: never. Look at `completed` afterwards. */
  void await(uint64_t number);
  /** Blocks until launch `number` is done, working on it meanwhile. */
  void wait(uint64_t number);

  /** How many there are: 0 where none could be started, -1 before they were needed. */
  int threads() const { return started_ ? static_cast<int>(threads_.size()) : -1; }

  static constexpr uint64_t kNobody = UINT64_MAX;

 private:
  bool start();
  void work(void* workspace);
  void publish(int launch, int items, const void* params, size_t params_bytes);
  void sleep_for(uint64_t number);
  /** Calls on_awaited where that launch is done. */
  void tell();

  const KernelTable& kernels_;
  const int wanted_;
  const std::function<void()> on_awaited_;
  std::unique_ptr<flashattn::Queue> queue_;
  WorkspaceMemory workspace_;  // of the calling thread
  std::vector<std::unique_ptr<WorkspaceMemory>> workspaces_;
  std::vector<std::thread> threads_;
  bool started_ = false;
  uint64_t published_ = 0;
  std::atomic<uint64_t> awaited_ = kNobody;
};

}  // namespace cpu_host
