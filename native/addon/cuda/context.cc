#include "context.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "devices.h"
#include "pending.h"
#include "values.h"

namespace flashattn {

namespace {

constexpr size_t kReadChunk = size_t{8} << 20;
constexpr const char* kRecording = "launches are being recorded: nothing else can be done meanwhile";
constexpr const char* kCaptured =
    "the stream is being captured into a graph, which this library cannot be part of: end the capture first";

Napi::Number to_number(Napi::Env env, size_t value) { return Napi::Number::New(env, static_cast<double>(value)); }

const char* kind_of(cudaMemoryType type) {
  switch (type) {
    case cudaMemoryTypeDevice: return "device";
    case cudaMemoryTypeManaged: return "managed";
    case cudaMemoryTypeHost: return "host";
    default: return "unregistered";
  }
}

/**
 * FLASHATTN_MULTIPROCESSORS=<count>: kernels are chosen as on a device with so many. 1 makes every problem large enough
 * for large tiles, so that small problems check them; many, the contrary.
 */
void pretend(DeviceLimits* limits) {
  const char* wanted = std::getenv("FLASHATTN_MULTIPROCESSORS");
  const int count = wanted == nullptr ? 0 : std::atoi(wanted);
  if (count > 0) limits->multiprocessors = count;
}

}  // namespace

Napi::Function Context::define(Napi::Env env) {
  return DefineClass(env, "Context",
                     {
                         InstanceMethod("allocate", &Context::allocate),
                         InstanceMethod("free", &Context::free),
                         InstanceMethod("trim", &Context::trim),
                         InstanceMethod("memoryInfo", &Context::memory_info),
                         InstanceMethod("pointerAttributes", &Context::pointer_attributes),
                         InstanceMethod("write", &Context::write),
                         InstanceMethod("read", &Context::read),
                         InstanceMethod("readSync", &Context::read_sync),
                         InstanceMethod("synchronize", &Context::synchronize),
                         InstanceMethod("setStream", &Context::set_stream),
                         InstanceMethod("recordEvent", &Context::record_event),
                         InstanceMethod("elapsed", &Context::elapsed),
                         InstanceMethod("launch", &Context::launch),
                         InstanceMethod("record", &Context::record),
                         InstanceMethod("replay", &Context::replay),
                         InstanceMethod("forget", &Context::forget),
                         InstanceMethod("openCublasLt", &Context::open_cublaslt),
                         InstanceMethod("partition", &Context::partition),
                     });
}

Context::Context(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Context>(info) {
  Arguments arguments(info);
  device_ = static_cast<int>(arguments.size(0));
  if (arguments.failed()) return;
  check(open(), "the device could not be set up");
}

Context::~Context() {
  const CurrentDevice current(device_);
  cudaStream_t own = parts_->stream.get();
  // Another's stream may be gone by now: what was queued there is waited for with all that the device has to do.
  if (own != nullptr) stream_ == own ? cudaStreamSynchronize(own) : cudaDeviceSynchronize();
  waiter_.stop();
  parts_->memory.free_all(own);
  parts_.reset();
}

cudaError_t Context::open() {
  const CurrentDevice current(device_);
  cudaError_t error = current.error();
  if (error == cudaSuccess) error = read_limits(device_, &limits_);
  pretend(&limits_);
  const char* synchronous = std::getenv("FLASHATTN_SYNC");
  synchronous_ = synchronous != nullptr && std::strcmp(synchronous, "1") == 0;
  if (error == cudaSuccess) error = parts_->stream.create();
  if (error == cudaSuccess) error = parts_->memory.open(device_);
  stream_ = parts_->stream.get();
  return error;
}

/**
 * While a stream is captured into a graph nothing that is queued runs, and a graph would replay copies from pinned memory
 * that holds something else by then. Only a stream of another's can be.
 */
bool Context::is_captured(cudaStream_t stream) {
  if (stream == parts_->stream.get()) return false;
  cudaStreamCaptureStatus status{};
  const cudaError_t error = cudaStreamIsCapturing(stream, &status);
  if (error != cudaSuccess) cudaGetLastError();  // one that does not exist is told by what uses it
  return error == cudaSuccess && status != cudaStreamCaptureStatusNone;
}

bool Context::accepts_work() {
  if (recording_ || is_captured(stream_)) {
    throw_device(Env(), recording_ ? kRecording : kCaptured);
    return false;
  }
  for (void* pointer : std::exchange(parts_->freed_later, {})) parts_->memory.free(pointer, stream_);
  return true;
}

// Memory --------------------------------------------------------------------------------------------------------------

Napi::Value Context::allocate(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const size_t bytes = arguments.size(0);
  if (arguments.failed()) return info.Env().Undefined();
  const CurrentDevice current(device_);
  if (!accepts_work()) return info.Env().Undefined();
  void* pointer = nullptr;
  const cudaError_t error = parts_->memory.allocate(&pointer, bytes, stream_);
  if (error == cudaErrorMemoryAllocation) {
    size_t free = 0;
    size_t total = 0;
    cudaMemGetInfo(&free, &total);
    throw_out_of_memory(info.Env(), bytes, free, total);
    return info.Env().Undefined();
  }
  if (!check(error, "memory could not be allocated")) return info.Env().Undefined();
  account();
  return to_number(info.Env(), reinterpret_cast<uintptr_t>(pointer));
}

void Context::free(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  void* pointer = arguments.pointer(0);
  if (arguments.failed()) return;
  const CurrentDevice current(device_);
  if (recording_ || is_captured(stream_))
    return parts_->freed_later.push_back(pointer);  // what disposes of tensors cannot fail
  if (parts_->memory.free(pointer, stream_))
    account();
  else
    throw_cuda(info.Env(), cudaErrorInvalidValue, "memory that was not allocated here cannot be freed");
}

void Context::trim(const Napi::CallbackInfo&) {
  const CurrentDevice current(device_);
  if (!accepts_work()) return;
  parts_->memory.trim(stream_);
  parts_->downloads.clear();
  account();
}

Napi::Value Context::memory_info(const Napi::CallbackInfo& info) {
  const CurrentDevice current(device_);
  size_t free = 0;
  size_t total = 0;
  if (!check(cudaMemGetInfo(&free, &total), "the device's memory is not known")) return info.Env().Undefined();
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("free", to_number(info.Env(), free));
  result.Set("total", to_number(info.Env(), total));
  result.Set("reserved", to_number(info.Env(), parts_->memory.reserved()));
  return result;
}

Napi::Value Context::pointer_attributes(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const void* pointer = arguments.pointer(0);
  if (arguments.failed()) return info.Env().Undefined();
  const CurrentDevice current(device_);
  cudaPointerAttributes attributes{};
  if (!check(cudaPointerGetAttributes(&attributes, pointer), "the pointer is not known")) return info.Env().Undefined();
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("kind", kind_of(attributes.type));
  result.Set("device", attributes.device);
  return result;
}

void Context::write(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  void* target = arguments.pointer(0);
  const Napi::Uint8Array source = arguments.bytes(1);
  if (arguments.failed()) return;
  const CurrentDevice current(device_);
  if (!accepts_work()) return;
  check(parts_->uploads.upload(target, source.Data(), source.ByteLength(), stream_), "data could not be written");
  account();
}

Napi::Value Context::read(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const void* source = arguments.pointer(0);
  const Napi::Uint8Array target = arguments.bytes(1);
  if (arguments.failed()) return info.Env().Undefined();
  const CurrentDevice current(device_);
  if (!accepts_work()) return info.Env().Undefined();
  const size_t bytes = target.ByteLength();
  parts_->memory.before_wait();
  PinnedMemory block;
  cudaError_t error = parts_->downloads.acquire(bytes, &block);
  account();
  if (error == cudaSuccess) error = cudaMemcpyAsync(block.data(), source, bytes, cudaMemcpyDeviceToHost, stream_);
  Event copied;
  if (error == cudaSuccess) error = copied.record(stream_, Pending::kEventFlags);
  if (!check(error, "data could not be read")) {
    parts_->downloads.release(std::move(block));
    return info.Env().Undefined();
  }
  return waiter_.add(info.Env(), device_,
                     std::make_unique<Pending>(*this, std::move(copied), std::move(block), target));
}

void Context::end_download(PinnedMemory block) {
  parts_->downloads.release(std::move(block));
  account();
}

void Context::read_sync(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const auto* source = static_cast<const unsigned char*>(arguments.pointer(0));
  Napi::Uint8Array target = arguments.bytes(1);
  if (arguments.failed()) return;
  const CurrentDevice current(device_);
  if (!accepts_work()) return;
  parts_->memory.before_wait();
  check(copy_out(target.Data(), source, target.ByteLength()), "data could not be read");
  account();
}

/** Two blocks in turn: while the device fills one, the host empties the other. */
cudaError_t Context::copy_out(unsigned char* to, const unsigned char* from, size_t bytes) {
  struct Turn {
    PinnedMemory block;
    Event copied;
    size_t begin = 0, size = 0;
  };
  std::array<Turn, 2> turns;
  const size_t chunk = std::min(bytes, kReadChunk);
  cudaError_t error = cudaSuccess;
  const auto empty = [&](Turn& turn) {
    if (turn.size == 0) return;
    error = turn.copied.wait();
    if (error == cudaSuccess) std::memcpy(to + turn.begin, turn.block.data(), turn.size);
    turn.size = 0;
  };
  size_t at = 0;
  for (size_t begin = 0; begin < bytes && error == cudaSuccess; begin += chunk) {
    Turn& turn = turns[at++ % turns.size()];
    empty(turn);
    if (error == cudaSuccess && turn.block.data() == nullptr) error = parts_->downloads.acquire(chunk, &turn.block);
    if (error != cudaSuccess) break;
    turn.begin = begin;
    turn.size = std::min(chunk, bytes - begin);
    error = cudaMemcpyAsync(turn.block.data(), from + begin, turn.size, cudaMemcpyDeviceToHost, stream_);
    if (error == cudaSuccess) error = turn.copied.record(stream_);
  }
  for (size_t i = 0; i < turns.size() && error == cudaSuccess; ++i) empty(turns[at++ % turns.size()]);
  for (Turn& turn : turns)
    if (turn.block.data() != nullptr) parts_->downloads.release(std::move(turn.block));
  return error;
}

// The stream ----------------------------------------------------------------------------------------------------------

Napi::Value Context::synchronize(const Napi::CallbackInfo& info) {
  const CurrentDevice current(device_);
  if (!accepts_work()) return info.Env().Undefined();
  parts_->memory.before_wait();
  Event reached;
  if (!check(reached.record(stream_, Pending::kEventFlags), "the stream could not be marked"))
    return info.Env().Undefined();
  return waiter_.add(info.Env(), device_, std::make_unique<Pending>(*this, std::move(reached)));
}

void Context::set_stream(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const auto next = static_cast<cudaStream_t>(arguments.pointer_or(0, parts_->stream.get()));
  if (arguments.failed()) return;
  const CurrentDevice current(device_);
  // An event cannot order what a capture has begun with after what was queued before it.
  if (is_captured(next)) return throw_device(info.Env(), kCaptured);
  if (!accepts_work()) return;
  Event before;
  cudaError_t error = before.record(stream_);
  if (error == cudaSuccess) error = cudaStreamWaitEvent(next, before.get(), 0);
  if (check(error, "the stream cannot be used")) stream_ = next;
}

Napi::Value Context::record_event(const Napi::CallbackInfo& info) {
  const CurrentDevice current(device_);
  if (!accepts_work()) return info.Env().Undefined();
  Event event;
  if (!check(event.record(stream_, cudaEventDefault), "the stream could not be marked")) return info.Env().Undefined();
  const auto unused =
      std::find_if(parts_->events.begin(), parts_->events.end(), [](const Event& e) { return e.get() == nullptr; });
  const auto place = unused == parts_->events.end() ? parts_->events.emplace(parts_->events.end()) : unused;
  *place = std::move(event);
  return to_number(info.Env(), static_cast<size_t>(place - parts_->events.begin()));
}

Napi::Value Context::elapsed(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const size_t start = arguments.size(0);
  const size_t end = arguments.size(1);
  if (arguments.failed()) return info.Env().Undefined();
  const CurrentDevice current(device_);
  const auto take = [&](size_t index) {
    return index < parts_->events.size() ? std::move(parts_->events[index]) : Event();
  };
  const Event first = take(start);
  const Event last = take(end);
  float milliseconds = 0;
  cudaError_t error = first.get() == nullptr || last.get() == nullptr ? cudaErrorInvalidResourceHandle : last.wait();
  if (error == cudaSuccess) error = cudaEventElapsedTime(&milliseconds, first.get(), last.get());
  if (!check(error, "the time between two events is not known")) return info.Env().Undefined();
  return Napi::Number::New(info.Env(), milliseconds);
}

bool Context::check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return true;
  throw_cuda(Env(), error, what);
  return false;
}

void Context::account() {
  const auto now =
      static_cast<int64_t>(parts_->memory.in_use() + parts_->uploads.reserved() + parts_->downloads.reserved());
  if (now != accounted_) Napi::MemoryManagement::AdjustExternalMemory(Env(), now - accounted_);
  accounted_ = now;
}

}  // namespace flashattn
