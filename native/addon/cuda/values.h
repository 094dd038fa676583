// JavaScript values on their way in, and errors on their way out.
#pragma once
#include <cuda_runtime_api.h>
#include <napi.h>

#include <cstdint>
#include <string>
#include <string_view>

namespace flashattn {

/** Throws a JavaScript Error { message, code: 'ERR_DEVICE', cuda: the error's name }. */
void throw_cuda(Napi::Env, cudaError_t, std::string_view what);

/** Throws { code: 'ERR_DEVICE' }. */
void throw_device(Napi::Env, std::string_view message);

/** Throws { code: 'ERR_OUT_OF_MEMORY', requested, free, total }, all in bytes. */
void throw_out_of_memory(Napi::Env, size_t requested, size_t free, size_t total);

/** What was being launched. */
struct Launched {
  const char* name = nullptr;  // of a kernel, or of the operation that has been waited for
  bool ended = false;          // whether it has
};

/** Throws { code: 'ERR_DEVICE', launch, ended, cuda }. None of them is there for a fault that the emulator found. */
void throw_launch(Napi::Env, Launched, std::string_view message, const char* cuda);

/** "cudaErrorInvalidValue: invalid argument" */
std::string describe(cudaError_t);

/** Addresses cross the boundary as JavaScript numbers, which are exact below 2^53. */
inline constexpr double kAddressLimit = 9007199254740992.0;

/**
 * Reads a function's arguments. What does not fit throws a TypeError, after which `failed` is true and every value is
 * harmless: functions read all of their arguments, then ask once.
 */
class Arguments {
 public:
  explicit Arguments(const Napi::CallbackInfo& info) : info_(info) {}

  bool failed() const { return failed_; }
  /** A whole number from 0 to 2^53. */
  size_t size(size_t index);
  void* pointer(size_t index) { return reinterpret_cast<void*>(static_cast<uintptr_t>(size(index))); }
  /** `undefined` is `otherwise`. */
  void* pointer_or(size_t index, void* otherwise);
  Napi::Uint8Array bytes(size_t index);
  /** A struct that JavaScript has written into a Uint8Array of its size. */
  void copy_bytes(size_t index, void* to, size_t size);
  /** Throws that an argument is not what is needed. */
  void fail(size_t index, const std::string& needed);

 private:
  const Napi::CallbackInfo& info_;
  bool failed_ = false;
};

}  // namespace flashattn
