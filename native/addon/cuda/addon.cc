// The addon's exports, one set for each environment (main thread or worker) that loads it:
// { kind: 'cuda' | 'emulator', description, devices(), Context, emulator? }.
#include <napi.h>

#include "context.h"
#include "devices.h"
#include "faults.h"

namespace flashattn {

class Addon : public Napi::Addon<Addon> {
 public:
  Addon(Napi::Env env, Napi::Object exports) {
    DefineAddon(exports, {
                             InstanceValue("kind", Napi::String::New(env, kKind)),
                             InstanceValue("description", Napi::String::New(env, describe_operations())),
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
