// The launches among Context's methods.
#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include "context.h"
#include "faults.h"
#include "values.h"

namespace flashattn {

namespace {

constexpr size_t kMaxParamsBytes = 1024;

constexpr size_t kOperationCount = sizeof(kOperations) / sizeof(kOperations[0]);

constexpr bool fit() {
  for (const Operation& operation : kOperations)
    if (operation.params_bytes > kMaxParamsBytes) return false;
  return true;
}
static_assert(fit());

constexpr size_t index_of(std::string_view name) {
  size_t index = 0;
  while (kOperations[index].name != name) ++index;
  return index;
}
constexpr const Operation* kMatmul = &kOperations[index_of("matmul")];

}  // namespace

/** A line with the names of all operations, then one for each struct, and one with the instructions of programs. */
std::string describe_operations() {
  char buffer[16384];
  {
    FieldText text(buffer);
    text.begin("operations");
    for (const Operation& operation : kOperations) text.word(operation.name);
    text.end();
    for (const Operation& operation : kOperations) operation.describe(text);
    text.begin("opcodes");
    for (const char* name : kOpcodeNames) text.word(name);
    text.end();
  }
  return buffer;
}

/** Queues a launch; throws when it was refused, or when the emulator saw it do something wrong. */
void Context::launch(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const size_t index = arguments.size(0);
  if (index >= kOperationCount) return arguments.fail(0, "the number of an operation");
  const Operation& operation = kOperations[index];
  alignas(8) unsigned char params[kMaxParamsBytes];
  arguments.copy_bytes(1, params, operation.params_bytes);
  if (arguments.failed()) return;

  const CurrentDevice current(device_);
  if (!recording_ && !accepts_work()) return;
  const FaultWatch watch;
  std::string why;
  const cublaslt::Outcome outcome = launch_by_library(operation, params, &why);
  if (outcome == cublaslt::Outcome::Failed && watch.first_fault().empty()) return throw_library(why);
  cudaError_t error = outcome == cublaslt::Outcome::NotTaken ? operation.launch(params, limits_, stream_) : cudaSuccess;
  const bool waits = synchronous_ && !recording_ && error == cudaSuccess;
  if (waits) error = cudaStreamSynchronize(stream_);
  check_launch(error, watch.first_fault(), {waits ? operation.name : last_kernel(), waits});
}

cublaslt::Outcome Context::launch_by_library(const Operation& operation, const void* params, std::string* why) {
  if (&operation != kMatmul || parts_->products == nullptr) return cublaslt::Outcome::NotTaken;
  return parts_->products->run(*static_cast<const MatmulParams*>(params), stream_, why);
}

void Context::throw_library(const std::string& why) {
  const cudaError_t error = cudaGetLastError();
  const Launched launched{kMatmul->name, false};
  if (error == cudaSuccess)
    throw_launch(Env(), launched, why, nullptr);
  else
    throw_launch(Env(), launched, why + ", " + describe(error), cudaGetErrorName(error));
}

void Context::check_launch(cudaError_t error, const std::string& fault, Launched launched) {
  if (error == cudaSuccess && fault.empty()) return;
  cudaGetLastError();
  if (!fault.empty())
    throw_launch(Env(), {}, fault, nullptr);
  else
    throw_launch(Env(), launched, describe(error), cudaGetErrorName(error));
}

/** Launches go to the context's own stream meanwhile: another's may be one that cannot be captured. */
Napi::Value Context::record(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!info[0].IsFunction()) {
    Arguments(info).fail(0, "a function");
    return env.Undefined();
  }
  const CurrentDevice current(device_);
  if (!accepts_work()) return env.Undefined();
  cudaStream_t own = parts_->stream.get();
  if (!check(Graph::begin(own), "launches cannot be recorded")) return env.Undefined();
  recording_ = true;
  cudaStream_t before = std::exchange(stream_, own);
  info[0].As<Napi::Function>().Call({});
  stream_ = before;
  recording_ = false;
  Graph graph;
  const cudaError_t error = graph.end(own);
  if (error != cudaSuccess) cudaGetLastError();
  if (env.IsExceptionPending()) return env.Undefined();
  if (!check(error, "launches could not be recorded")) return env.Undefined();
  auto& graphs = parts_->graphs;
  const auto unused = std::find_if(graphs.begin(), graphs.end(), [](const Graph& g) { return !g; });
  const auto place = unused == graphs.end() ? graphs.emplace(graphs.end()) : unused;
  *place = std::move(graph);
  return Napi::Number::New(env, static_cast<double>(place - graphs.begin()));
}

void Context::replay(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const size_t index = arguments.size(0);
  if (arguments.failed()) return;
  auto& graphs = parts_->graphs;
  if (index >= graphs.size() || !graphs[index]) return arguments.fail(0, "the number of a graph");
  const CurrentDevice current(device_);
  if (!accepts_work()) return;
  const FaultWatch watch;
  cudaError_t error = graphs[index].launch(stream_);
  const bool waits = synchronous_ && error == cudaSuccess;
  if (waits) error = cudaStreamSynchronize(stream_);
  check_launch(error, watch.first_fault(), {"a recorded plan", waits});
}

/** What has been queued of the graph runs to its end. */
void Context::forget(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const size_t index = arguments.size(0);
  if (arguments.failed() || index >= parts_->graphs.size()) return;
  const CurrentDevice current(device_);
  const Graph forgotten = std::move(parts_->graphs[index]);
}

void Context::partition(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  AttentionShape shape{};
  arguments.copy_bytes(0, &shape, sizeof(shape));
  Napi::Uint8Array result = arguments.bytes(1);
  if (!arguments.failed() && result.ByteLength() != sizeof(AttentionPartition))
    arguments.fail(1, "as large as an AttentionPartition");
  if (arguments.failed()) return;
  const AttentionPartition partition = attention_partition(shape, limits_);
  std::memcpy(result.Data(), &partition, sizeof(partition));
}

}  // namespace flashattn
