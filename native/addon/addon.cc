// The addon's exports, one set for each environment (main thread or worker) that loads it:
// { kind: 'cuda' | 'emulator', structSizes, devices(), Context, emulator? }.
#include <napi.h>

#include "context.h"
#include "devices.h"
#include "faults.h"
#include "params.h"

namespace flashattn {

namespace {

/** JavaScript writes these structs by hand; it compares sizes when it loads the addon. */
Napi::Object struct_sizes(Napi::Env env) {
  Napi::Object sizes = Napi::Object::New(env);
  const auto add = [&](const char* name, size_t size) { sizes.Set(name, static_cast<double>(size)); };
  add("AttentionParams", sizeof(AttentionParams));
  add("MergePart", sizeof(MergePart));
  add("MergeParams", sizeof(MergeParams));
  add("GatherParams", sizeof(GatherParams));
  add("ConvertParams", sizeof(ConvertParams));
  add("FillParams", sizeof(FillParams));
  return sizes;
}

}  // namespace

class Addon : public Napi::Addon<Addon> {
 public:
  Addon(Napi::Env env, Napi::Object exports) {
    DefineAddon(exports, {
                             InstanceValue("kind", Napi::String::New(env, kKind)),
                             InstanceValue("structSizes", struct_sizes(env)),
                             InstanceValue("Context", Context::define(env)),
                             InstanceValue("emulator", emulator_controls(env)),
                             InstanceMethod("devices", &Addon::devices),
                         });
  }

 private:
  Napi::Value devices(const Napi::CallbackInfo& info) { return describe_devices(info.Env()); }
};

NODE_API_ADDON(Addon)

}  // namespace flashattn
