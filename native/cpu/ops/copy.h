// Elements copied, cast or added up between any two strided arrays, and memory filled.
#pragma once
#include "simd/rows.h"
#include "structs/copy.h"

namespace flashattn {

inline constexpr int64_t kChunk = 1 << 14;  // elements an item handles

inline int chunks(int64_t count) { return static_cast<int>((count + kChunk - 1) / kChunk); }

/** How many elements item `item` of `count` handles. */
inline int64_t chunk_length(int64_t count, int item) {
  const int64_t left = count - item * kChunk;
  return left < kChunk ? left : kChunk;
}

inline int fill_items(const FillParams& p) { return chunks(p.count); }

FLASHATTN_CALLED void fill_item(const FillParams& p, int item) {
  uint32_t* data = p.data + static_cast<size_t>(item * kChunk);
  const int64_t n = chunk_length(p.count, item);
  for (int64_t i = 0; i < n; ++i) data[i] = p.bits;
}

namespace detail {

inline constexpr int kCopyDims = 6;

inline int64_t copy_count(const CopyParams& p) {
  int64_t count = 1;
  for (int axis = 0; axis < kCopyDims; ++axis) count *= p.sizes[axis];
  return count;
}

/** One array of a copy: up to kRowElements elements of its innermost dim at a time, as float32 or from it. */
struct CopySide {
  uint8_t* data;
  DType dtype;
  int64_t stride;  // of the innermost dim

  uint8_t* element(int64_t offset) const { return data + offset * element_size(dtype); }

  void load(float* to, int64_t offset, int n) const {
    if (stride == 1) return load_row(to, element(offset), dtype, n);
    float padded[kLanes];
    for (int i = 0; i < n; ++i) {
      load_row(padded, element(offset + i * stride), dtype, 1);
      to[i] = padded[0];
    }
  }
  void store(const float* from, int64_t offset, int n) const {
    if (stride == 1) return store_row(element(offset), dtype, from, n);
    float padded[kLanes] = {};
    for (int i = 0; i < n; ++i) {
      padded[0] = from[i];
      store_row(element(offset + i * stride), dtype, padded, 1);
    }
  }
};

/** Bits pass through where nothing has to be rounded or added: also those of a NaN. */
inline void copy_bits(const CopySide& from, int64_t from_offset, const CopySide& to, int64_t to_offset, int n) {
  const int size = element_size(to.dtype);
  if (from.stride == 1 && to.stride == 1) {
    __builtin_memcpy(to.element(to_offset), from.element(from_offset), static_cast<size_t>(n * size));
    return;
  }
  for (int i = 0; i < n; ++i) {
    const uint8_t* source = from.element(from_offset + i * from.stride);
    uint8_t* target = to.element(to_offset + i * to.stride);
    if (size == 4)
      __builtin_memcpy(target, source, 4);
    else if (size == 2)
      __builtin_memcpy(target, source, 2);
    else
      *target = *source;
  }
}

}  // namespace detail

inline int copy_items(const CopyParams& p) { return chunks(detail::copy_count(p)); }

FLASHATTN_CALLED void copy_item(const CopyParams& p, int item, RowWorkspace& ws) {
  using namespace detail;
  constexpr int kInner = kCopyDims - 1;
  const CopySide from{const_cast<uint8_t*>(bytes_of(p.from)), p.from_dtype, p.from_strides[kInner]};
  const CopySide to{bytes_of(p.to), p.to_dtype, p.to_strides[kInner]};
  const int64_t begin = item * kChunk, end = begin + chunk_length(copy_count(p), item);
  for (int64_t at = begin; at < end;) {
    const int64_t inner = at % p.sizes[kInner];
    int64_t from_offset = inner * from.stride, to_offset = inner * to.stride;
    int64_t outer = at / p.sizes[kInner];
    for (int axis = kInner - 1; axis >= 0; --axis) {
      const int64_t index = outer % p.sizes[axis];
      outer /= p.sizes[axis];
      from_offset += index * p.from_strides[axis];
      to_offset += index * p.to_strides[axis];
    }
    int64_t n = p.sizes[kInner] - inner;
    if (n > end - at) n = end - at;
    if (n > kRowElements) n = kRowElements;
    const int count = static_cast<int>(n);
    if (!p.accumulate && p.from_dtype == p.to_dtype) {
      copy_bits(from, from_offset, to, to_offset, count);
    } else {
      from.load(ws.row[0], from_offset, count);
      if (p.accumulate) {
        to.load(ws.row[1], to_offset, count);
        for (int i = 0; i < count; i += kLanes)
          flashattn::store(ws.row[0] + i, flashattn::load(ws.row[0] + i) + flashattn::load(ws.row[1] + i));
      }
      to.store(ws.row[0], to_offset, count);
    }
    at += n;
  }
}

}  // namespace flashattn
