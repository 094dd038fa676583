#include "../faults.h"

#include <cuda_runtime_api.h>

#include "emulator/emulator.h"
#include "emulator/runtime/contexts.h"
#include "emulator/runtime/stream.h"
#include "stand_in_state.h"

namespace flashattn {

const char* const kKind = "emulator";

bool has_primary_context(int device) { return emulator::has_context(device); }

namespace {

bool is_true(const Napi::Value& value) { return value.IsBoolean() && value.As<Napi::Boolean>().Value(); }

void read_flag(const Napi::Object& from, const char* name, bool& to) {
  const Napi::Value value = from.Get(name);
  if (value.IsBoolean()) to = value.As<Napi::Boolean>().Value();
}

void read_integer(const Napi::Object& from, const char* name, int& to) {
  const Napi::Value value = from.Get(name);
  if (value.IsNumber()) to = value.As<Napi::Number>().Int32Value();
}

/** ({ schedule?, eagerCopies?, cutSums?, races?, globalRaces?, bankConflicts?, maxReports? }) */
void configure(const Napi::CallbackInfo& info) {
  if (!info[0].IsObject()) return;
  const Napi::Object wanted = info[0].As<Napi::Object>();
  emulator::Config& config = emulator::config();
  read_integer(wanted, "schedule", config.schedule);
  read_flag(wanted, "eagerCopies", config.eager_copies);
  read_flag(wanted, "cutSums", config.cut_sums);
  read_flag(wanted, "races", config.races);
  read_flag(wanted, "globalRaces", config.global_races);
  read_flag(wanted, "bankConflicts", config.bank_conflicts);
  read_integer(wanted, "maxReports", config.max_reports);
}

Napi::Value reports(const Napi::CallbackInfo& info) {
  Napi::Array result = Napi::Array::New(info.Env());
  uint32_t at = 0;
  for (const std::string& report : emulator::reports()) result[at++] = report;
  return result;
}

void clear_reports(const Napi::CallbackInfo&) { emulator::clear_reports(); }

/** (error) */
void fail_launch(const Napi::CallbackInfo& info) {
  if (info[0].IsNumber()) emulator::fail_next_launch(info[0].As<Napi::Number>().Int32Value());
}

/** (held) */
void hold_events(const Napi::CallbackInfo& info) { emulator::hold_events(is_true(info[0])); }

/** () -> a stream of another user of the device */
Napi::Value create_stream(const Napi::CallbackInfo& info) {
  cudaStream_t stream = nullptr;
  cudaStreamCreate(&stream);
  return Napi::Number::New(info.Env(), static_cast<double>(reinterpret_cast<uintptr_t>(stream)));
}

/** (stream, capturing): begins a capture, or ends it and forgets what it has kept */
void set_capturing(const Napi::CallbackInfo& info) {
  const auto stream = reinterpret_cast<cudaStream_t>(static_cast<uintptr_t>(info[0].As<Napi::Number>().DoubleValue()));
  cudaGraph_t graph = nullptr;
  if (is_true(info[1]))
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed);
  else if (cudaStreamEndCapture(stream, &graph) == cudaSuccess)
    cudaGraphDestroy(graph);
}

/** (device) -> boolean */
Napi::Value has_context(const Napi::CallbackInfo& info) {
  const int device = info[0].IsNumber() ? info[0].As<Napi::Number>().Int32Value() : 0;
  return Napi::Boolean::New(info.Env(), emulator::has_context(device));
}

/** (what libraries that stand in for NVIDIA's are to do; '': what they should) */
void set_stand_in(const Napi::CallbackInfo& info) {
  emulated::stand_in_state().behaviour = info[0].IsString() ? info[0].As<Napi::String>().Utf8Value() : "";
}

Napi::Value statistics(const Napi::CallbackInfo& info) {
  const emulator::Statistics& s = emulator::statistics();
  Napi::Object result = Napi::Object::New(info.Env());
  const auto add = [&](const char* name, uint64_t count) { result.Set(name, static_cast<double>(count)); };
  add("launches", s.launches);
  add("blocks", s.blocks);
  add("switches", s.switches);
  add("barriers", s.barriers);
  add("collectives", s.collectives);
  add("mma", s.mma);
  add("ldmatrix", s.ldmatrix);
  add("copies", s.copies);
  add("globalRead", s.global_read);
  add("globalWritten", s.global_written);
  add("bankConflicts", s.bank_conflicts);
  add("unorderedAdds", s.unordered_adds);
  const std::scoped_lock lock(emulated::stand_in_state().mutex);
  for (const auto& [name, number] : emulated::stand_in_state().counts) result.Set(name, static_cast<double>(number));
  return result;
}

}  // namespace

FaultWatch::FaultWatch() : before_(emulator::reports().size()) {
  const std::scoped_lock lock(emulated::stand_in_state().mutex);
  complaints_before_ = emulated::stand_in_state().complaints.size();
}

std::string FaultWatch::first_fault() const {
  {
    const std::scoped_lock lock(emulated::stand_in_state().mutex);
    const auto& complaints = emulated::stand_in_state().complaints;
    if (complaints.size() > complaints_before_) return complaints[complaints_before_];
  }
  const std::vector<std::string> now = emulator::reports();
  if (now.size() == before_) return {};
  // The stream would tell it once more.
  while (cudaGetLastError() != cudaSuccess) {
  }
  return now[before_];
}

Napi::Value emulator_controls(Napi::Env env) {
  Napi::Object controls = Napi::Object::New(env);
  controls.Set("configure", Napi::Function::New(env, configure, "configure"));
  controls.Set("reports", Napi::Function::New(env, reports, "reports"));
  controls.Set("clearReports", Napi::Function::New(env, clear_reports, "clearReports"));
  controls.Set("failLaunch", Napi::Function::New(env, fail_launch, "failLaunch"));
  controls.Set("holdEvents", Napi::Function::New(env, hold_events, "holdEvents"));
  controls.Set("createStream", Napi::Function::New(env, create_stream, "createStream"));
  controls.Set("setCapturing", Napi::Function::New(env, set_capturing, "setCapturing"));
  controls.Set("hasContext", Napi::Function::New(env, has_context, "hasContext"));
  controls.Set("setStandIn", Napi::Function::New(env, set_stand_in, "setStandIn"));
  controls.Set("statistics", Napi::Function::New(env, statistics, "statistics"));
  return controls;
}

}  // namespace flashattn
