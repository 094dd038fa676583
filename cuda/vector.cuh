// Eight neighbouring elements of any dtype as floats in registers: what one thread reads and writes at a time.
#pragma once
#include <type_traits>

#include "element.cuh"

namespace flashattn {

inline constexpr int kVector = 8;  // 16 bytes of a 16-bit type
inline constexpr int kAccessBytes = 16;

namespace detail {

template <class Element>
FLASHATTN_DEVICE void unpack(float* x, uint4 bits) {
  using Storage = typename Element::Storage;
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
  for (int w = 0; w < 4; ++w) {
    if constexpr (std::is_same_v<Storage, float>) {
      x[w] = ptx::float_of(words[w]);
    } else if constexpr (sizeof(Storage) == 4) {
      x[w] = Element::load(static_cast<Storage>(words[w]));
    } else {
      x[2 * w] = Element::load(static_cast<uint16_t>(words[w]));
      x[2 * w + 1] = Element::load(static_cast<uint16_t>(words[w] >> 16));
    }
  }
}

template <class Element>
FLASHATTN_DEVICE uint4 pack(const float* x) {
  using Storage = typename Element::Storage;
  uint32_t words[4];
  for (int w = 0; w < 4; ++w) {
    if constexpr (std::is_same_v<Storage, float>)
      words[w] = ptx::bits_of(x[w]);
    else if constexpr (sizeof(Storage) == 4)
      words[w] = static_cast<uint32_t>(Element::store(x[w]));
    else
      words[w] = Element::pack(x[2 * w], x[2 * w + 1]);
  }
  return {words[0], words[1], words[2], words[3]};
}

/** Eight elements of a byte. */
template <class Element>
FLASHATTN_DEVICE void unpack_bytes(float (&x)[kVector], uint2 bits) {
  for (int i = 0; i < kVector; ++i)
    x[i] = Element::load(static_cast<uint8_t>((i < 4 ? bits.x : bits.y) >> 8 * (i % 4)));
}

template <class Element>
FLASHATTN_DEVICE uint2 pack_bytes(const float (&x)[kVector]) {
  uint32_t words[2] = {};
  for (int i = 0; i < kVector; ++i) words[i / 4] |= uint32_t{Element::store(x[i])} << 8 * (i % 4);
  return {words[0], words[1]};
}

template <class Element>
inline constexpr int kPerAccess = kAccessBytes / static_cast<int>(sizeof(typename Element::Storage));

}  // namespace detail

/**
 * x = from[0, count), zero beyond; count may be more than kVector or negative. `aligned`: `from` is, to 16 bytes, or 8 where
 * an element is a byte.
 */
template <class Element>
FLASHATTN_DEVICE void load_vector(float (&x)[kVector], const typename Element::Storage* from, int64_t count,
                                  bool aligned) {
  if (aligned && count >= kVector) {
    if constexpr (sizeof(typename Element::Storage) == 1)
      detail::unpack_bytes<Element>(x, ptx::load_global(reinterpret_cast<const uint2*>(from)));
    else
      for (int i = 0; i < kVector; i += detail::kPerAccess<Element>)
        detail::unpack<Element>(x + i, ptx::load_global(reinterpret_cast<const uint4*>(from + i)));
  } else {
    for (int i = 0; i < kVector; ++i) x[i] = i < count ? Element::load(ptx::load_global(from + i)) : 0.0f;
  }
}

/** to[0, count) = x */
template <class Element>
FLASHATTN_DEVICE void store_vector(typename Element::Storage* to, const float (&x)[kVector], int64_t count,
                                   bool aligned) {
  if (aligned && count >= kVector) {
    if constexpr (sizeof(typename Element::Storage) == 1)
      ptx::store_global(reinterpret_cast<uint2*>(to), detail::pack_bytes<Element>(x));
    else
      for (int i = 0; i < kVector; i += detail::kPerAccess<Element>)
        ptx::store_global(reinterpret_cast<uint4*>(to + i), detail::pack<Element>(x + i));
  } else {
    for (int i = 0; i < kVector; ++i)
      if (i < count) ptx::store_global(to + i, Element::store(x[i]));
  }
}

// The same for a dtype known at run time; `offset` counts elements.

FLASHATTN_DEVICE void load_vector(float (&x)[kVector], DType dtype, const void* from, int64_t offset, int64_t count,
                                  bool aligned) {
  with_element(dtype, [&](auto element) {
    using Element = decltype(element);
    load_vector<Element>(x, static_cast<const typename Element::Storage*>(from) + offset, count, aligned);
  });
}

FLASHATTN_DEVICE void store_vector(DType dtype, void* to, int64_t offset, const float (&x)[kVector], int64_t count,
                                   bool aligned) {
  with_element(dtype, [&](auto element) {
    using Element = decltype(element);
    store_vector<Element>(static_cast<typename Element::Storage*>(to) + offset, x, count, aligned);
  });
}

/** The same of whole numbers too. */
FLASHATTN_DEVICE void load_any_vector(float (&x)[kVector], DType dtype, const void* from, int64_t offset, int64_t count,
                                      bool aligned) {
  with_any_element(dtype, [&](auto element) {
    using Element = decltype(element);
    load_vector<Element>(x, static_cast<const typename Element::Storage*>(from) + offset, count, aligned);
  });
}

FLASHATTN_DEVICE void store_any_vector(DType dtype, void* to, int64_t offset, const float (&x)[kVector], int64_t count,
                                       bool aligned) {
  with_any_element(dtype, [&](auto element) {
    using Element = decltype(element);
    store_vector<Element>(static_cast<typename Element::Storage*>(to) + offset, x, count, aligned);
  });
}

/** Puts `next` behind the others; the first is lost. So a loop that is not unrolled needs no index. */
template <int kCount>
FLASHATTN_DEVICE void shift(float (&x)[kCount], float next) {
#pragma unroll
  for (int e = 0; e + 1 < kCount; ++e) x[e] = x[e + 1];
  x[kCount - 1] = next;
}

/** The sum of a vector: pairs first. */
FLASHATTN_DEVICE float sum_part(const float (&x)[kVector]) {
  return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}

}  // namespace flashattn
