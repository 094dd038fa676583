// What the structs of this folder are made of. A host (TypeScript) writes them, device code reads them: CUDA kernels, native
// ones and WebAssembly with its 32-bit pointers. So every field has a fixed size and place on all of them: 8-byte fields
// first within a struct, 4-byte fields after them, no implicit padding. Strides and counts are in elements.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "fields.h"

namespace flashattn {

namespace detail {

template <class T, bool kNative = sizeof(void*) == sizeof(uint64_t)>
struct PointerTo {
  using Type = T*;
};

/** Where pointers have 32 bits: 64 in the struct, a T* for whoever uses it. */
template <class T>
struct PointerTo<T, false> {
  struct Type {
    uint64_t address;

    Type() = default;
    Type(T* pointer) : address(reinterpret_cast<uintptr_t>(pointer)) {}
    operator T*() const { return reinterpret_cast<T*>(static_cast<uintptr_t>(address)); }
    T* operator->() const { return *this; }
  };
};

}  // namespace detail

/** A T* of 64 bits. */
template <class T>
using Pointer = typename detail::PointerTo<T>::Type;

enum class DType : int32_t { Float32, Float16, BFloat16, Int32, Bool };

constexpr int element_size(DType dtype) {
  return dtype == DType::Float16 || dtype == DType::BFloat16 ? 2 : dtype == DType::Bool ? 1 : 4;
}

/** A tensor whose last dim is contiguous. */
struct TensorRef {
  Pointer<void> data;        // [batch, seq, heads, dim]
  int64_t batch, seq, head;  // strides
  DType dtype;
  int32_t reserved;

  uint8_t* row(int b, size_t i, int h) const {
    void* const start = data;
    return static_cast<uint8_t*>(start) +
           (static_cast<size_t>(b) * static_cast<size_t>(batch) + i * static_cast<size_t>(seq) +
            static_cast<size_t>(h) * static_cast<size_t>(head)) *
               static_cast<size_t>(element_size(dtype));
  }
};
FLASHATTN_FIELDS(TensorRef, data, batch, seq, head, dtype, reserved);

/** List r is indices[offsets[r]] to indices[offsets[r + 1] - 1], rising. */
struct BlockLists {
  Pointer<const int32_t> offsets;
  Pointer<const int32_t> indices;
};
FLASHATTN_FIELDS(BlockLists, offsets, indices);

}  // namespace flashattn
