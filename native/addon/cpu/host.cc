#include "host.h"

#include <cstring>
#include <string>

#include "host/threads/instruction_sets.h"

namespace cpu_host {

namespace {

void throw_type(Napi::Env env, const char* message) { Napi::TypeError::New(env, message).ThrowAsJavaScriptException(); }

uint8_t* address_of(const Napi::Value& value) {
  return reinterpret_cast<uint8_t*>(static_cast<uintptr_t>(value.As<Napi::Number>().DoubleValue()));
}

Napi::Value number(Napi::Env env, size_t value) { return Napi::Number::New(env, static_cast<double>(value)); }

bool is_bytes(const Napi::Value& value) {
  return value.IsTypedArray() && value.As<Napi::TypedArray>().TypedArrayType() == napi_uint8_array;
}

}  // namespace

Napi::Function Host::define(Napi::Env env) {
  return DefineClass(env, "Host",
                     {
                         InstanceMethod("grow", &Host::grow),
                         InstanceMethod("usable", &Host::usable),
                         InstanceMethod("discard", &Host::discard),
                         InstanceMethod("copyIn", &Host::copy_in),
                         InstanceMethod("copyOut", &Host::copy_out),
                         InstanceMethod("partition", &Host::partition),
                         InstanceMethod("launch", &Host::launch),
                         InstanceMethod("completed", &Host::completed),
                         InstanceMethod("wait", &Host::wait),
                         InstanceMethod("await", &Host::await),
                         InstanceMethod("threads", &Host::threads),
                     });
}

Host::Host(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Host>(info) {
  const Napi::Env env = info.Env();
  if (!info[0].IsString() || !info[1].IsNumber() || !info[2].IsNumber() || !info[3].IsFunction()) {
    throw_type(env, "Host needs a string, two numbers and a function");
    return;
  }
  const std::string name = info[0].As<Napi::String>();
  for (const KernelTable* kernels : supported_kernels())
    if (name == kernels->name) kernels_ = kernels;
  if (kernels_ == nullptr) {
    throw_type(env, "instructionSet is none that this machine runs");
    return;
  }
  if (!prepare(*kernels_)) {
    Napi::Error::New(env, "the system does not let this process use the registers of " + name)
        .ThrowAsJavaScriptException();
    return;
  }
  thread_count_ = info[1].As<Napi::Number>().Int32Value();
  const auto memory = static_cast<size_t>(info[2].As<Napi::Number>().Int64Value());
  Napi::Object self = Value();
  self.Set("description", [&] {
    std::string text(kDescriptionBytes, '\0');
    kernels_->describe(text.data());
    text.resize(std::strlen(text.c_str()));
    return Napi::String::New(env, text);
  }());
  self.Set("lanes", Napi::Number::New(env, kernels_->lanes));
  self.Set("maxPhases", Napi::Number::New(env, kernels_->max_phases));
  self.Set("workspaceBytes", number(env, kernels_->workspace_bytes()));
  if (!arena_.reserve(memory)) {
    Napi::Error::New(env, "no addresses can be reserved for tensors").ThrowAsJavaScriptException();
    return;
  }
  self.Set("begin", number(env, reinterpret_cast<uintptr_t>(arena_.begin())));
  self.Set("limit", number(env, arena_.limit()));
  on_awaited_ = Napi::ThreadSafeFunction::New(env, info[3].As<Napi::Function>(), "flashattn", 0, 1);
  on_awaited_.Unref(env);
  pool_ = std::make_unique<Pool>(*kernels_, thread_count_, [this] { on_awaited_.NonBlockingCall(); });
  // Runs before the hooks of what was made before it: threads end while what they call is still there.
  napi_add_env_cleanup_hook(env, stop_threads, this);
}

Host::~Host() {
  if (pool_) napi_remove_env_cleanup_hook(Env(), stop_threads, this);
  stop();
}

void Host::stop_threads(void* host) { static_cast<Host*>(host)->stop(); }

void Host::stop() {
  if (!pool_) return;
  pool_.reset();
  on_awaited_.Release();
}

// Memory --------------------------------------------------------------------------------------------------------------

Napi::Value Host::grow(const Napi::CallbackInfo& info) {
  const uint8_t* end = address_of(info[0]);
  const bool grown = arena_.grow(static_cast<size_t>(end - arena_.begin()));
  return Napi::Boolean::New(info.Env(), grown);
}

Napi::Value Host::usable(const Napi::CallbackInfo& info) {
  return number(info.Env(), reinterpret_cast<uintptr_t>(arena_.begin()) + arena_.usable());
}

void Host::discard(const Napi::CallbackInfo& info) {
  const auto begin = static_cast<size_t>(address_of(info[0]) - arena_.begin());
  arena_.discard(begin, begin + static_cast<size_t>(info[1].As<Napi::Number>().Int64Value()));
}

void Host::copy_in(const Napi::CallbackInfo& info) {
  if (!is_bytes(info[1])) return throw_type(info.Env(), "copyIn needs bytes");
  const Napi::Uint8Array bytes = info[1].As<Napi::Uint8Array>();
  if (bytes.ByteLength() > 0) std::memcpy(address_of(info[0]), bytes.Data(), bytes.ByteLength());
}

void Host::copy_out(const Napi::CallbackInfo& info) {
  if (!is_bytes(info[1])) return throw_type(info.Env(), "copyOut needs bytes");
  Napi::Uint8Array bytes = info[1].As<Napi::Uint8Array>();
  if (bytes.ByteLength() > 0) std::memcpy(bytes.Data(), address_of(info[0]), bytes.ByteLength());
}

// Launches ------------------------------------------------------------------------------------------------------------

void Host::partition(const Napi::CallbackInfo& info) {
  if (!is_bytes(info[0]) || !is_bytes(info[1])) return throw_type(info.Env(), "partition needs bytes");
  kernels_->partition(info[0].As<Napi::Uint8Array>().Data(), info[1].As<Napi::Uint8Array>().Data(), thread_count_);
}

Napi::Value Host::launch(const Napi::CallbackInfo& info) {
  if (!pool_) return number(info.Env(), 0);
  const auto first = info[0].As<Napi::Number>().Int32Value();
  const auto params = info[1].As<Napi::Uint32Array>();
  const bool small = info[2].As<Napi::Boolean>();
  return number(info.Env(), pool_->launch(first, params.Data(), params.ByteLength(), small));
}

Napi::Value Host::completed(const Napi::CallbackInfo& info) {
  return number(info.Env(), pool_ ? pool_->completed() : 0);
}

void Host::wait(const Napi::CallbackInfo& info) {
  if (pool_) pool_->wait(static_cast<uint64_t>(info[0].As<Napi::Number>().Int64Value()));
}

void Host::await(const Napi::CallbackInfo& info) {
  if (!pool_) return;
  const bool waits = !info[0].IsUndefined();
  pool_->await(waits ? static_cast<uint64_t>(info[0].As<Napi::Number>().Int64Value()) : Pool::kNobody);
  if (waits != waits_) waits ? on_awaited_.Ref(info.Env()) : on_awaited_.Unref(info.Env());
  waits_ = waits;
}

Napi::Value Host::threads(const Napi::CallbackInfo& info) {
  const int count = pool_ ? pool_->threads() : 0;
  return count < 0 ? info.Env().Undefined() : number(info.Env(), static_cast<size_t>(count));
}

}  // namespace cpu_host
