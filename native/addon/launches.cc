// The launches among Context's methods.
#include <cstring>

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

}  // namespace

/** A line with the names of all operations, then one for each struct. */
std::string describe_operations() {
  char buffer[8192];
  {
    FieldText text(buffer);
    text.begin("operations");
    for (const Operation& operation : kOperations) text.word(operation.name);
    text.end();
    for (const Operation& operation : kOperations) operation.describe(text);
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
  if (!accepts_work()) return;
  const FaultWatch watch;
  cudaError_t error = operation.launch(params, limits_, stream_);
  const bool waits = synchronous_ && error == cudaSuccess;
  if (waits) error = cudaStreamSynchronize(stream_);
  const std::string fault = watch.first_fault();
  if (error == cudaSuccess && fault.empty()) return;
  cudaGetLastError();
  if (!fault.empty())
    throw_launch(Env(), {}, fault, nullptr);
  else
    throw_launch(Env(), {waits ? operation.name : last_kernel(), waits}, describe(error), cudaGetErrorName(error));
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
