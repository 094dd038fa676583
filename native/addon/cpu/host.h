// What JavaScript holds of native threads: memory for tensors, and the launch queue.
#pragma once
#include <napi.h>

#include <memory>

#include "host/threads/arena.h"
#include "host/threads/pool.h"

namespace cpu_host {

class Host : public Napi::ObjectWrap<Host> {
 public:
  static Napi::Function define(Napi::Env);

  /**
   * new Host(instruction set, threads, bytes of memory, onAwaited)
   *
   * Arguments are primitive and have their types: JavaScript that is being terminated cannot be asked for a property or
   * a conversion, and node-addon-api ends the process over what it then gets.
   */
  explicit Host(const Napi::CallbackInfo&);
  ~Host() override;

 private:
  // Memory: addresses are numbers.
  Napi::Value grow(const Napi::CallbackInfo&);    // (end: an address) -> whether what lies before it is usable
  Napi::Value usable(const Napi::CallbackInfo&);  // () -> the address where it ends
  void discard(const Napi::CallbackInfo&);        // (address, bytes)
  void copy_in(const Napi::CallbackInfo&);        // (address, Uint8Array)
  void copy_out(const Napi::CallbackInfo&);       // (address, Uint8Array)

  // Launches.
  void partition(const Napi::CallbackInfo&);  // (AttentionShape: Uint8Array, into an AttentionPartition: Uint8Array)
  Napi::Value launch(const Napi::CallbackInfo&);  // (first phase, params: Uint32Array, small) -> number of the launch
  Napi::Value completed(const Napi::CallbackInfo&);  // () -> number of the last launch that is done
  void wait(const Napi::CallbackInfo&);              // (number)
  void await(const Napi::CallbackInfo&);             // (number | undefined): when onAwaited is called, if at all
  Napi::Value threads(const Napi::CallbackInfo&);    // () -> how many there are; undefined before they are needed

  static void stop_threads(void* host);
  void stop();

  const KernelTable* kernels_ = nullptr;
  int thread_count_ = 1;
  Arena arena_;
  Napi::ThreadSafeFunction on_awaited_;
  bool waits_ = false;  // whether on_awaited_ keeps the process alive
  std::unique_ptr<Pool> pool_;
};

}  // namespace cpu_host
