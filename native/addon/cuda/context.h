// What JavaScript holds of a device: memory, one stream that everything is queued on, and launches.
#pragma once
#include <napi.h>

#include <memory>
#include <string>
#include <vector>

#include "cublaslt/products.h"
#include "launch.h"
#include "memory.h"
#include "pending.h"
#include "runtime.h"
#include "staging.h"
#include "values.h"

namespace flashattn {

/** The names of all operations, then the fields of all structs: what a host has to agree with. */
std::string describe_operations();

class Context : public Napi::ObjectWrap<Context> {
 public:
  static Napi::Function define(Napi::Env);

  /** new Context(device) */
  explicit Context(const Napi::CallbackInfo&);
  ~Context() override;

  /** Called on the main thread when a read is over: `block` is free again. */
  void end_download(PinnedMemory block);

 private:
  // Memory: pointers are numbers.
  Napi::Value allocate(const Napi::CallbackInfo&);            // (bytes) -> pointer
  void free(const Napi::CallbackInfo&);                       // (pointer)
  void trim(const Napi::CallbackInfo&);                       // ()
  Napi::Value memory_info(const Napi::CallbackInfo&);         // () -> { free, total, reserved }
  Napi::Value pointer_attributes(const Napi::CallbackInfo&);  // (pointer) -> { kind, device }
  void write(const Napi::CallbackInfo&);                      // (pointer, Uint8Array)
  Napi::Value read(const Napi::CallbackInfo&);                // (pointer, Uint8Array) -> Promise<void>
  void read_sync(const Napi::CallbackInfo&);                  // (pointer, Uint8Array)

  // The stream.
  Napi::Value synchronize(const Napi::CallbackInfo&);   // () -> Promise<void>
  void set_stream(const Napi::CallbackInfo&);           // (stream | undefined)
  Napi::Value record_event(const Napi::CallbackInfo&);  // () -> event
  Napi::Value elapsed(const Napi::CallbackInfo&);       // (event, event) -> milliseconds; both are used up

  // Launches.
  void launch(const Napi::CallbackInfo&);         // (operation, its params: Uint8Array)
  Napi::Value record(const Napi::CallbackInfo&);  // (() => void) -> graph
  void replay(const Napi::CallbackInfo&);         // (graph)
  void forget(const Napi::CallbackInfo&);         // (graph)
  /** (names of libraries that may be loaded, files or names to load) -> { path, version } or { tried } */
  Napi::Value open_cublaslt(const Napi::CallbackInfo&);
  void partition(const Napi::CallbackInfo&);  // (AttentionShape: Uint8Array, into an AttentionPartition: Uint8Array)

  cudaError_t open();
  /** The handle of `library` on this device and its workspace. */
  bool adopt(const cublaslt::Library* library, std::string* why);
  /** Gives the library what it can do. */
  cublaslt::Outcome launch_by_library(const Operation&, const void* params, std::string* why);
  void throw_library(const std::string& why);
  /** Throws what a launch came to, unless all went well. */
  void check_launch(cudaError_t error, const std::string& fault, Launched);
  /** Whether work can be queued; throws where not. Frees what had to wait for that. */
  bool accepts_work();
  bool is_captured(cudaStream_t);
  cudaError_t copy_out(unsigned char* to, const unsigned char* from, size_t bytes);
  /** Throws where `error` is one; `what` was being done. */
  bool check(cudaError_t error, const char* what);
  /** Tells the collector how much memory hangs on this object. */
  void account();

  /** What belongs to the device, and has to be given back while it is current. What comes later is freed first. */
  struct Parts {
    Stream stream;
    DeviceMemory memory;
    UploadRing uploads;
    DownloadBlocks downloads;
    std::vector<Event> events;
    std::vector<Graph> graphs;
    std::vector<void*> freed_later;
    std::unique_ptr<cublaslt::Products> products;  // null: our own kernels alone
  };

  int device_ = 0;
  DeviceLimits limits_{};
  int64_t accounted_ = 0;
  Waiter waiter_;
  bool synchronous_ = false;  // FLASHATTN_SYNC=1: a launch waits for its end, so that its errors are told of it
  std::unique_ptr<Parts> parts_ = std::make_unique<Parts>();
  cudaStream_t stream_ = nullptr;  // in use: of `parts_`, or another's
  bool recording_ = false;         // launches are kept for a graph
};

}  // namespace flashattn
