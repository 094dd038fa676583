// Promises for the moment when a device has got to an event. One thread of its own waits for all events of a context, in the
// order of its stream: neither the event loop nor a thread of libuv's pool, which files and DNS need, is ever held up.
#pragma once
#include <napi.h>

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

#include "runtime.h"

namespace flashattn {

class Context;

/** One promise. Made and settled on the thread of its environment, waited for on the other. */
class Pending {
 public:
  /** For events to wait for: the waiting thread sleeps. */
  static constexpr unsigned kEventFlags = cudaEventDisableTiming | cudaEventBlockingSync;

  /** The context lives until it is settled. */
  Pending(Context& context, Event reached);
  /** `block` is then copied into `target`. */
  Pending(Context& context, Event reached, PinnedMemory block, Napi::Uint8Array target);

  /** Null where the environment is ending and makes no more promises. */
  napi_value promise(Napi::Env);
  void wait();
  void settle(Napi::Env);
  /** Where nobody awaits it any more, since its environment is ending: what belongs to that is left to it. Any thread. */
  static void abandon(std::unique_ptr<Pending>);

 private:
  Context& context_;
  Event reached_;
  PinnedMemory block_;
  unsigned char* target_ = nullptr;
  size_t bytes_ = 0;
  cudaError_t error_ = cudaSuccess;

  Napi::ObjectReference keep_context_, keep_target_;
  napi_deferred deferred_ = nullptr;
};

/** The thread that waits. It starts with the first promise and ends with the context, or with its environment. */
class Waiter {
 public:
  Waiter() = default;
  ~Waiter() { stop(); }
  Waiter(const Waiter&) = delete;
  Waiter& operator=(const Waiter&) = delete;

  /** The promise of `pending`. */
  Napi::Value add(Napi::Env, int device, std::unique_ptr<Pending> pending);
  /** Once the event that is being waited for is reached; what else is pending is dropped. */
  void stop();

 private:
  bool start(Napi::Env, int device);
  static void on_end_of_environment(void* waiter) { static_cast<Waiter*>(waiter)->stop(); }
  void run(int device);
  static void settle(napi_env, napi_value, void* waiter, void* pending);

  napi_env env_ = nullptr;
  napi_threadsafe_function to_env_ = nullptr;
  size_t unsettled_ = 0;  // keep the event loop alive

  std::thread thread_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::unique_ptr<Pending>> queue_;
  bool stopping_ = false;
};

}  // namespace flashattn
