#include "values.h"

#include <cmath>
#include <cstring>

namespace flashattn {

namespace {

Napi::Error make_error(Napi::Env env, std::string_view message, const char* code) {
  Napi::Error error = Napi::Error::New(env, std::string(message));
  error.Set("code", Napi::String::New(env, code));
  return error;
}

}  // namespace

std::string describe(cudaError_t error) {
  return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
}

void throw_cuda(Napi::Env env, cudaError_t error, std::string_view what) {
  cudaGetLastError();
  Napi::Error thrown = make_error(env, std::string(what) + ": " + describe(error), "ERR_DEVICE");
  thrown.Set("cuda", Napi::String::New(env, cudaGetErrorName(error)));
  thrown.ThrowAsJavaScriptException();
}

void throw_device(Napi::Env env, std::string_view message) {
  make_error(env, message, "ERR_DEVICE").ThrowAsJavaScriptException();
}

void throw_out_of_memory(Napi::Env env, size_t requested, size_t free, size_t total) {
  Napi::Error thrown = make_error(env, "out of memory", "ERR_OUT_OF_MEMORY");
  thrown.Set("requested", Napi::Number::New(env, static_cast<double>(requested)));
  thrown.Set("free", Napi::Number::New(env, static_cast<double>(free)));
  thrown.Set("total", Napi::Number::New(env, static_cast<double>(total)));
  thrown.ThrowAsJavaScriptException();
}

void throw_launch(Napi::Env env, Launched launched, std::string_view message, const char* cuda) {
  Napi::Error thrown = make_error(env, message, "ERR_DEVICE");
  if (launched.name != nullptr) {
    thrown.Set("launch", Napi::String::New(env, launched.name));
    thrown.Set("ended", Napi::Boolean::New(env, launched.ended));
  }
  if (cuda != nullptr) thrown.Set("cuda", Napi::String::New(env, cuda));
  thrown.ThrowAsJavaScriptException();
}

size_t Arguments::size(size_t index) {
  const Napi::Value value = info_[index];
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : -1;
  if (number >= 0 && number < kAddressLimit && std::floor(number) == number) return static_cast<size_t>(number);
  fail(index, "a whole number from 0 to 2^53");
  return 0;
}

void* Arguments::pointer_or(size_t index, void* otherwise) {
  return info_[index].IsUndefined() ? otherwise : pointer(index);
}

Napi::Uint8Array Arguments::bytes(size_t index) {
  const Napi::Value value = info_[index];
  if (value.IsTypedArray() && value.As<Napi::TypedArray>().TypedArrayType() == napi_uint8_array)
    return value.As<Napi::Uint8Array>();
  fail(index, "a Uint8Array");
  return Napi::Uint8Array::New(info_.Env(), 0);
}

void Arguments::copy_bytes(size_t index, void* to, size_t size) {
  const Napi::Uint8Array given = bytes(index);
  if (failed_) return;
  if (given.ByteLength() == size)
    std::memcpy(to, given.Data(), size);
  else
    fail(index, "a Uint8Array of " + std::to_string(size) + " bytes");
}

void Arguments::fail(size_t index, const std::string& needed) {
  if (failed_) return;
  failed_ = true;
  Napi::TypeError::New(info_.Env(), "argument " + std::to_string(index) + " must be " + needed)
      .ThrowAsJavaScriptException();
}

}  // namespace flashattn
