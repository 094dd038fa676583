// A promise that a thread of libuv's pool keeps once the device has got to an event: the event loop stays free.
#pragma once
#include <napi.h>

#include "runtime.h"

namespace flashattn {

class Context;

class Pending {
 public:
  /** For events to wait for: the waiting thread sleeps. */
  static constexpr unsigned kEventFlags = cudaEventDisableTiming | cudaEventBlockingSync;

  /** A promise for the moment when `reached` is. The context lives until then. */
  static Napi::Value start(Context& context, int device, Event reached);
  /** As above, and `block` has then been copied into `target`. */
  static Napi::Value start(Context& context, int device, Event reached, PinnedMemory block, Napi::Uint8Array target);

 private:
  explicit Pending(Context& context, int device, Event reached);

  static Napi::Value queue(Pending* pending);
  static void execute(napi_env, void* pending);
  static void complete(napi_env, napi_status, void* pending);
  void finish(Napi::Env);

  Context& context_;
  int device_;
  Event reached_;
  PinnedMemory block_;
  unsigned char* target_ = nullptr;
  size_t bytes_ = 0;
  cudaError_t error_ = cudaSuccess;

  Napi::ObjectReference keep_context_, keep_target_;
  napi_deferred deferred_ = nullptr;
  napi_async_work work_ = nullptr;
};

}  // namespace flashattn
