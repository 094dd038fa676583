#include "pending.h"

#include <cstring>
#include <system_error>

#include "context.h"
#include "values.h"

namespace flashattn {

Pending::Pending(Context& context, Event reached)
    : context_(context),
      reached_(std::move(reached)),
      keep_context_(Napi::Persistent(context.Value())) {}

Pending::Pending(Context& context, Event reached, PinnedMemory block, Napi::Uint8Array target)
    : Pending(context, std::move(reached)) {
  block_ = std::move(block);
  target_ = target.Data();
  bytes_ = target.ByteLength();
  keep_target_ = Napi::Persistent(target.As<Napi::Object>());
}

napi_value Pending::promise(Napi::Env env) {
  napi_value promise = nullptr;
  return napi_create_promise(env, &deferred_, &promise) == napi_ok ? promise : nullptr;
}

void Pending::wait() {
  error_ = reached_.wait();
  if (error_ == cudaSuccess && bytes_ > 0) std::memcpy(target_, block_.data(), bytes_);
}

void Pending::settle(Napi::Env env) {
  if (block_.data() != nullptr) context_.end_download(std::move(block_));
  if (error_ == cudaSuccess) {
    napi_resolve_deferred(env, deferred_, env.Undefined());
    return;
  }
  throw_cuda(env, error_, "an operation failed on the device");
  napi_value error = nullptr;
  if (napi_get_and_clear_last_exception(env, &error) == napi_ok) napi_reject_deferred(env, deferred_, error);
}

void Pending::abandon(std::unique_ptr<Pending> pending) {
  pending->keep_context_.SuppressDestruct();
  pending->keep_target_.SuppressDestruct();
}

Napi::Value Waiter::add(Napi::Env env, int device, std::unique_ptr<Pending> pending) {
  napi_value promise = pending->promise(env);
  if (promise == nullptr) return env.Undefined();
  if (!thread_.joinable() && !start(env, device)) {
    Napi::Error::New(env, "no thread could be started to wait for the device").ThrowAsJavaScriptException();
    return env.Undefined();
  }
  if (unsettled_++ == 0) napi_ref_threadsafe_function(env, to_env_);
  {
    const std::scoped_lock lock(mutex_);
    queue_.push_back(std::move(pending));
  }
  changed_.notify_one();
  return Napi::Value(env, promise);
}

bool Waiter::start(Napi::Env env, int device) {
  if (stopping_) return false;
  const Napi::String name = Napi::String::New(env, "flashattn");
  const napi_status status =
      napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, this, settle, &to_env_);
  if (status != napi_ok) return false;
  napi_unref_threadsafe_function(env, to_env_);
  try {
    thread_ = std::thread([this, device] { run(device); });
  } catch (const std::system_error&) {
    napi_release_threadsafe_function(to_env_, napi_tsfn_abort);
    return false;
  }
  // An environment that ends runs its hooks first: what promises refer to is still there.
  env_ = env;
  napi_add_env_cleanup_hook(env, on_end_of_environment, this);
  return true;
}

void Waiter::run(int device) {
  const CurrentDevice current(device);
  for (;;) {
    std::unique_ptr<Pending> pending;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
      if (stopping_) return;
      pending = std::move(queue_.front());
      queue_.pop_front();
    }
    pending->wait();
    const bool taken = napi_call_threadsafe_function(to_env_, pending.get(), napi_tsfn_nonblocking) == napi_ok;
    if (taken)
      pending.release();
    else
      Pending::abandon(std::move(pending));
  }
}

void Waiter::settle(napi_env raw, napi_value, void* data, void* settled) {
  std::unique_ptr<Pending> pending(static_cast<Pending*>(settled));
  if (raw == nullptr) return Pending::abandon(std::move(pending));
  const Napi::Env env(raw);
  const Napi::HandleScope scope(env);
  auto* waiter = static_cast<Waiter*>(data);
  if (--waiter->unsettled_ == 0) napi_unref_threadsafe_function(env, waiter->to_env_);
  pending->settle(env);
}

void Waiter::stop() {
  if (!thread_.joinable()) return;
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_one();
  thread_.join();
  queue_.clear();
  napi_release_threadsafe_function(to_env_, napi_tsfn_abort);
  napi_remove_env_cleanup_hook(env_, on_end_of_environment, this);
}

}  // namespace flashattn
