// Eight neighbouring elements of any dtype as floats in registers: what one thread reads and writes at a time.
#pragma once
#include "element.cuh"

namespace flashattn {

inline constexpr int kVector = 8;  // 16 bytes of a 16-bit type
inline constexpr int kAccessBytes = 16;

namespace detail {

template <class Element>
FLASHATTN_DEVICE void unpack(float* x, uint4 bits) {
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
  for (int w = 0; w < 4; ++w) {
    if constexpr (sizeof(typename Element::Storage) == 4) {
      x[w] = ptx::float_of(words[w]);
    } else {
      x[2 * w] = Element::load(static_cast<uint16_t>(words[w]));
      x[2 * w + 1] = Element::load(static_cast<uint16_t>(words[w] >> 16));
    }
  }
}

template <class Element>
FLASHATTN_DEVICE uint4 pack(const float* x) {
  uint32_t words[4];
  for (int w = 0; w < 4; ++w) {
    if constexpr (sizeof(typename Element::Storage) == 4)
      words[w] = ptx::bits_of(x[w]);
    else
      words[w] = Element::pack(x[2 * w], x[2 * w + 1]);
  }
  return {words[0], words[1], words[2], words[3]};
}

template <class Element>
inline constexpr int kPerAccess = kAccessBytes / static_cast<int>(sizeof(typename Element::Storage));

}  // namespace detail

/** x = from[0, count), zero beyond; count may be more than kVector or negative. `aligned`: `from` is, to 16 bytes. */
template <class Element>
FLASHATTN_DEVICE void load_vector(float (&x)[kVector], const typename Element::Storage* from, int64_t count,
                                  bool aligned) {
  if (aligned && count >= kVector) {
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

}  // namespace flashattn
