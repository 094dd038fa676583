// The launches among Context's methods.
#include "context.h"
#include "faults.h"
#include "values.h"

namespace flashattn {

namespace {

Napi::Object describe_tiling(Napi::Env env, const Tiling& tiling) {
  Napi::Object result = Napi::Object::New(env);
  result.Set("queryTile", tiling.query_tile);
  result.Set("keyTile", tiling.key_tile);
  result.Set("threads", tiling.threads);
  result.Set("sharedMemory", tiling.shared_memory);
  result.Set("blocks", static_cast<double>(tiling.blocks));
  return result;
}

}  // namespace

/** Queues a launch; throws when it was refused, or when the emulator saw it do something wrong. */
template <class Launch>
void Context::run_launch(Launch&& launch) {
  const CurrentDevice current(device_);
  const FaultWatch watch;
  const cudaError_t error = launch();
  const std::string fault = watch.first_fault();
  if (error == cudaSuccess && fault.empty()) return;
  cudaGetLastError();
  if (!fault.empty())
    throw_launch(Env(), nullptr, fault, nullptr);
  else
    throw_launch(Env(), last_kernel(), describe(error), cudaGetErrorName(error));
}

template <class Params>
void Context::launch(const Napi::CallbackInfo& info, cudaError_t (*launcher)(const Params&, cudaStream_t)) {
  Arguments arguments(info);
  const Params params = arguments.structure<Params>(0);
  if (!arguments.failed()) run_launch([&] { return launcher(params, stream_); });
}

template <class Params>
void Context::launch(const Napi::CallbackInfo& info,
                     cudaError_t (*launcher)(const Params&, const DeviceLimits&, cudaStream_t)) {
  Arguments arguments(info);
  const Params params = arguments.structure<Params>(0);
  if (!arguments.failed()) run_launch([&] { return launcher(params, limits_, stream_); });
}

void Context::forward(const Napi::CallbackInfo& info) { launch(info, launch_forward); }
void Context::backward(const Napi::CallbackInfo& info) { launch(info, launch_backward); }
void Context::merge(const Napi::CallbackInfo& info) { launch(info, launch_merge); }
void Context::merge_backward(const Napi::CallbackInfo& info) { launch(info, launch_merge_backward); }
void Context::gather(const Napi::CallbackInfo& info) { launch(info, launch_gather); }
void Context::convert(const Napi::CallbackInfo& info) { launch(info, launch_convert); }
void Context::fill(const Napi::CallbackInfo& info) { launch(info, launch_fill); }

void Context::peak(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const int blocks = static_cast<int>(arguments.size(0));
  const int iterations = static_cast<int>(arguments.size(1));
  auto* sink = static_cast<float*>(arguments.pointer(2));
  if (!arguments.failed()) run_launch([&] { return launch_peak(blocks, iterations, sink, stream_); });
}

Napi::Value Context::forward_tiling(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const auto params = arguments.structure<AttentionParams>(0);
  if (arguments.failed()) return info.Env().Undefined();
  return describe_tiling(info.Env(), flashattn::forward_tiling(params, limits_));
}

Napi::Value Context::backward_tiling(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const auto params = arguments.structure<AttentionParams>(0);
  if (arguments.failed()) return info.Env().Undefined();
  return describe_tiling(info.Env(), flashattn::backward_tiling(params, limits_));
}

Napi::Value Context::backward_scratch(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const auto params = arguments.structure<AttentionParams>(0);
  if (arguments.failed()) return info.Env().Undefined();
  const BackwardScratch scratch = flashattn::backward_scratch(params, limits_);
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("delta", static_cast<double>(scratch.delta));
  result.Set("dQuerySum", static_cast<double>(scratch.d_query_sum));
  result.Set("turns", static_cast<double>(scratch.turns));
  result.Set("dRelativePartial", static_cast<double>(scratch.d_relative_partial));
  result.Set("relativeSlices", scratch.relative_slices);
  return result;
}

}  // namespace flashattn
