#include "pending.h"

#include <cstring>
#include <memory>

#include "context.h"
#include "values.h"

namespace flashattn {

Pending::Pending(Context& context, int device, Event reached)
    : context_(context),
      device_(device),
      reached_(std::move(reached)),
      keep_context_(Napi::Persistent(context.Value())) {}

Napi::Value Pending::start(Context& context, int device, Event reached) {
  return queue(new Pending(context, device, std::move(reached)));
}

Napi::Value Pending::start(Context& context, int device, Event reached, PinnedMemory block, Napi::Uint8Array target) {
  auto* pending = new Pending(context, device, std::move(reached));
  pending->block_ = std::move(block);
  pending->target_ = target.Data();
  pending->bytes_ = target.ByteLength();
  pending->keep_target_ = Napi::Persistent(target.As<Napi::Object>());
  return queue(pending);
}

Napi::Value Pending::queue(Pending* pending) {
  const Napi::Env env = pending->context_.Env();
  const Napi::String name = Napi::String::New(env, "flashattn");
  napi_value promise = nullptr;
  napi_status status = napi_create_promise(env, &pending->deferred_, &promise);
  if (status == napi_ok)
    status = napi_create_async_work(env, nullptr, name, execute, complete, pending, &pending->work_);
  if (status == napi_ok) status = napi_queue_async_work(env, pending->work_);
  if (status != napi_ok) {
    Napi::Error::New(env, "a read could not be queued").ThrowAsJavaScriptException();
    pending->finish(env);
    return env.Undefined();
  }
  return Napi::Value(env, promise);
}

void Pending::execute(napi_env, void* data) {
  auto* pending = static_cast<Pending*>(data);
  const CurrentDevice current(pending->device_);
  pending->error_ = pending->reached_.wait();
  if (pending->error_ == cudaSuccess && pending->bytes_ > 0)
    std::memcpy(pending->target_, pending->block_.data(), pending->bytes_);
}

/** Also called when the environment is being torn down and runs no JavaScript: then nobody awaits the promise. */
void Pending::complete(napi_env raw, napi_status, void* data) {
  const Napi::Env env(raw);
  const Napi::HandleScope scope(env);
  auto* pending = static_cast<Pending*>(data);
  if (pending->error_ == cudaSuccess) {
    napi_resolve_deferred(env, pending->deferred_, env.Undefined());
  } else {
    throw_cuda(env, pending->error_, "an operation failed on the device");
    napi_value error = nullptr;
    if (napi_get_and_clear_last_exception(env, &error) == napi_ok) napi_reject_deferred(env, pending->deferred_, error);
  }
  pending->finish(env);
}

void Pending::finish(Napi::Env env) {
  if (block_.data() != nullptr) context_.end_download(std::move(block_));
  if (work_ != nullptr) napi_delete_async_work(env, work_);
  delete this;
}

}  // namespace flashattn
