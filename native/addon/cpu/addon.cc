// The entry point of the addon for native threads.
#include "files.h"
#include "host.h"
#include "host/threads/instruction_sets.h"

namespace {

template <class Names, class NameOf>
Napi::Array names_of(Napi::Env env, const Names& from, NameOf name_of) {
  Napi::Array names = Napi::Array::New(env);
  uint32_t at = 0;
  for (const auto& entry : from) names[at++] = Napi::String::New(env, name_of(entry));
  return names;
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  exports.Set("kind", "cpu");
  exports.Set("supported",
              names_of(env, cpu_host::supported_kernels(), [](const auto* kernels) { return kernels->name; }));
  exports.Set("unsupported",
              names_of(env, cpu_host::unsupported_names(), [](const std::string& name) { return name; }));
  exports.Set("Host", cpu_host::Host::define(env));
  exports.Set("mapFile", Napi::Function::New(env, cpu_host::map_file, "mapFile"));
  exports.Set("unmapFile", Napi::Function::New(env, cpu_host::unmap_file, "unmapFile"));
  return exports;
}

}  // namespace

NODE_API_MODULE(flashattn_cpu, init)
