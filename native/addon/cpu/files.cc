#include "files.h"

#include <memory>

#include "mapping.h"

namespace cpu_host {

namespace {

void give_back(napi_env, void*, void* mapping) { delete static_cast<Mapping*>(mapping); }

void throw_type(Napi::Env env, const char* message) { Napi::TypeError::New(env, message).ThrowAsJavaScriptException(); }

}  // namespace

Napi::Value map_file(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!info[0].IsNumber() || !info[1].IsNumber()) {
    throw_type(env, "mapFile needs a file descriptor and a number of bytes");
    return env.Undefined();
  }
  const int64_t bytes = info[1].As<Napi::Number>().Int64Value();
  auto mapping = std::make_unique<Mapping>();
  if (bytes <= 0 || !mapping->open(info[0].As<Napi::Number>().Int32Value(), static_cast<uint64_t>(bytes)))
    return env.Undefined();
  napi_value buffer = nullptr;
  const napi_status status =
      napi_create_external_arraybuffer(env, mapping->begin(), mapping->bytes(), give_back, mapping.get(), &buffer);
  // Where memory must lie within V8's own (Electron, pointer compression) nothing was made of it. Otherwise whoever fails
  // has called `give_back`, or will.
  if (status != napi_no_external_buffers_allowed) mapping.release();
  if (status == napi_ok) return Napi::Value(env, buffer);
  if (env.IsExceptionPending()) env.GetAndClearPendingException();
  return env.Undefined();
}

void unmap_file(const Napi::CallbackInfo& info) {
  if (!info[0].IsArrayBuffer()) return throw_type(info.Env(), "unmapFile needs an ArrayBuffer");
  // Where it cannot be detached its memory goes with it, later.
  napi_detach_arraybuffer(info.Env(), info[0]);
}

}  // namespace cpu_host
