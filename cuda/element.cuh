// The element types of tensors: how each is stored, and its value in float32. Rounding is to nearest, ties to even;
// NaN stays NaN.
#pragma once
#include "ptx.cuh"
#include "structs/types.h"

namespace flashattn {

struct Float32 {
  using Storage = float;
  static constexpr DType kDType = DType::Float32;
  static constexpr bool kNarrow = false;  // whether its range is smaller than float32's
  static FLASHATTN_DEVICE float load(Storage x) { return x; }
  static FLASHATTN_DEVICE Storage store(float x) { return x; }
};

struct Float16 {
  using Storage = uint16_t;
  static constexpr DType kDType = DType::Float16;
  static constexpr bool kNarrow = true;
  static FLASHATTN_DEVICE float load(Storage bits) { return ptx::from_f16(bits); }
  static FLASHATTN_DEVICE Storage store(float x) { return static_cast<Storage>(pack(x, 0.0f)); }
  /** `low` in the low half. */
  static FLASHATTN_DEVICE uint32_t pack(float low, float high) { return ptx::pack_f16(low, high); }
};

struct BFloat16 {
  using Storage = uint16_t;
  static constexpr DType kDType = DType::BFloat16;
  static constexpr bool kNarrow = false;
  static FLASHATTN_DEVICE float load(Storage bits) { return ptx::from_bf16(bits); }
  static FLASHATTN_DEVICE Storage store(float x) { return static_cast<Storage>(pack(x, 0.0f)); }
  /** `low` in the low half. */
  static FLASHATTN_DEVICE uint32_t pack(float low, float high) { return ptx::pack_bf16(low, high); }
};

/** Whole numbers, seen as the nearest float; from one towards zero, 0 of NaN. */
struct Int32 {
  using Storage = int32_t;
  static constexpr DType kDType = DType::Int32;
  static FLASHATTN_DEVICE float load(Storage x) { return static_cast<float>(x); }
  static FLASHATTN_DEVICE Storage store(float x) {
    if (x >= 0x1p31f) return INT32_MAX;
    if (x >= -0x1p31f) return static_cast<Storage>(x);
    return x == x ? INT32_MIN : 0;
  }
};

/** 0 or 1; of a float, whether it is not zero. */
struct Bool {
  using Storage = uint8_t;
  static constexpr DType kDType = DType::Bool;
  static FLASHATTN_DEVICE float load(Storage x) { return x != 0 ? 1.0f : 0.0f; }
  static FLASHATTN_DEVICE Storage store(float x) { return x != 0 ? 1 : 0; }
};

/** f(Float16{}), f(BFloat16{}) or f(Float32{}), on the host. */
template <class F>
auto dispatch(DType dtype, F f) {
  switch (dtype) {
    case DType::Float16: return f(Float16{});
    case DType::BFloat16: return f(BFloat16{});
    default: return f(Float32{});
  }
}

/** The same on the device: a branch that a whole grid takes together. */
template <class F>
FLASHATTN_DEVICE void with_element(DType dtype, F f) {
  if (dtype == DType::Float16)
    f(Float16{});
  else if (dtype == DType::BFloat16)
    f(BFloat16{});
  else
    f(Float32{});
}

/** Those, and whole numbers: for what moves elements of any kind. */
template <class F>
FLASHATTN_DEVICE void with_any_element(DType dtype, F f) {
  if (dtype == DType::Int32)
    f(Int32{});
  else if (dtype == DType::Bool)
    f(Bool{});
  else
    with_element(dtype, f);
}

}  // namespace flashattn
