// How a context comes by the libraries of NVIDIA's that it can do without.
#include <vector>

#include "context.h"
#include "values.h"

namespace flashattn {

namespace {

struct Attempt {
  std::string path, result;
};

std::vector<std::string> strings_of(const Napi::Value& value) {
  std::vector<std::string> strings;
  if (!value.IsArray()) return strings;
  const Napi::Array array = value.As<Napi::Array>();
  for (uint32_t at = 0; at < array.Length(); ++at) {
    const Napi::Value item = array.Get(at);
    if (item.IsString()) strings.push_back(item.As<Napi::String>());
  }
  return strings;
}

Napi::Array to_array(Napi::Env env, const std::vector<Attempt>& attempts) {
  Napi::Array array = Napi::Array::New(env, attempts.size());
  for (uint32_t at = 0; at < attempts.size(); ++at) {
    Napi::Object attempt = Napi::Object::New(env);
    attempt.Set("path", attempts[at].path);
    attempt.Set("result", attempts[at].result);
    array[at] = attempt;
  }
  return array;
}

}  // namespace

bool Context::adopt(const cublaslt::Library* library, std::string* why) {
  if (library == nullptr) return false;
  std::unique_ptr<cublaslt::Products> products = cublaslt::Products::open(*library, why);
  if (products == nullptr) {
    cudaGetLastError();
    return false;
  }
  const size_t bytes = cublaslt::Products::workspace_bytes(limits_.major);
  void* workspace = nullptr;
  if (const cudaError_t error = parts_->memory.allocate(&workspace, bytes, stream_); error != cudaSuccess) {
    *why = "its workspace of " + std::to_string(bytes) + " bytes could not be allocated: " + describe(error);
    return false;
  }
  account();
  products->use_workspace(workspace, bytes);
  parts_->products = std::move(products);
  return true;
}

Napi::Value Context::open_cublaslt(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const std::vector<std::string> loaded = strings_of(info[0]);
  const std::vector<std::string> files = strings_of(info[1]);
  const CurrentDevice current(device_);
  if (!accepts_work()) return env.Undefined();
  std::vector<Attempt> tried;
  bool opened = parts_->products != nullptr;
  const auto attempt = [&](const std::string& path, const auto& find) {
    if (opened) return;
    std::string why;
    opened = adopt(find(path, &why), &why);
    if (!why.empty()) tried.push_back({path, why});
  };
  for (const std::string& name : loaded)
    attempt(name, [](const auto& n, std::string*) { return cublaslt::find_loaded(n); });
  for (const std::string& path : files) attempt(path, cublaslt::load);
  Napi::Object result = Napi::Object::New(env);
  if (opened) {
    const cublaslt::Library& library = parts_->products->library();
    result.Set("path", library.path);
    result.Set("version", static_cast<double>(library.version));
  }
  result.Set("tried", to_array(env, tried));
  return result;
}

}  // namespace flashattn
