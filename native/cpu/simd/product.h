// The one matrix product of the library:  C[r, n] (+)= sum_k A[r, k] * B[k, n]
//
// n runs over vector lanes; A is read one float at a time and broadcast, so it needs no particular order, and a
// transposed A is a pair of strides. All six products of attention are instances (see tile.h for the layouts):
//
//   S^T = K Q^T     dP^T = V dO^T     O += P V     dV += P^T dO     dK += dS^T Q     dQ += dS K
//
// Strides of A and B are compile-time constants: the inner loop then advances two pointers and nothing else.
#pragma once
#include "simd/simd.h"

namespace flashattn {

enum class Accumulate { No, Yes, Scaled };

/** What is done between the blocks of a product: nothing. */
struct Nothing {
  FLASHATTN_INLINE void step(Nothing&) {}
};

struct Floats {
  FLASHATTN_INLINE Vec multiply_add(Vec a, Vec b, Vec c) { return flashattn::multiply_add(a, b, c); }
};

/**
 * Strides, in floats: A[r, k] = a[r * kRow + k * kInner], B[k, n] = b[k * kOuter + n]. Rows of B are asked for kAhead rows
 * before they are needed, where they come from farther away than the second cache.
 */
template <int kRow_, int kInner_, int kOuter_, int kAhead_ = 0>
struct Strides {
  static constexpr int kRow = kRow_, kInner = kInner_, kOuter = kOuter_, kAhead = kAhead_;
  using Arithmetic = Floats;
};

namespace detail {

/**
 * Rows of a block of so many vectors. Their product, the accumulators, stays in registers next to the operands. 8 hide the
 * latency of the additions, and are what V8 keeps of 16 registers; more of them leave room for what comes late. 12 is what
 * compilers keep of 16 registers, and of 32 the power of two that divides the tiles.
 */
constexpr int block_rows(int vecs) {
#if defined(__AVX512F__) || defined(__aarch64__)
  constexpr int kAccumulators = 16;
#elif defined(__AVX2__)
  constexpr int kAccumulators = 12;
#else
  constexpr int kAccumulators = 8;
#endif
  return kAccumulators / vecs;
}

// Vectors of a block at most. With 12 accumulators in 16 registers four of them leave no room for the operands.
#if defined(__AVX2__) && !defined(__AVX512F__)
inline constexpr int kWidestBlock = 2;
#else
inline constexpr int kWidestBlock = 4;
#endif

template <class S, Accumulate kMode, int kRows, int kVecs>
FLASHATTN_INLINE void product_block(int inner, const float* a, const float* b, float* c, size_t c_row,
                                    const float* row_scale) {
  Vec acc[kRows][kVecs];
#pragma clang loop unroll(full)
  for (int r = 0; r < kRows; ++r) {
#pragma clang loop unroll(full)
    for (int v = 0; v < kVecs; ++v) {
      acc[r][v] = Vec{};
    }
  }
#pragma clang loop unroll(disable)
  for (int k = 0; k < inner; ++k) {
    if constexpr (S::kAhead > 0) prefetch<kVecs * kLanes>(b + S::kAhead * S::kOuter);
    Vec columns[kVecs];
#pragma clang loop unroll(full)
    for (int v = 0; v < kVecs; ++v) columns[v] = load(b + v * kLanes);
#pragma clang loop unroll(full)
    for (int r = 0; r < kRows; ++r) {
      const Vec element = load_splat(a + r * S::kRow);
#pragma clang loop unroll(full)
      for (int v = 0; v < kVecs; ++v) acc[r][v] = S::Arithmetic::multiply_add(element, columns[v], acc[r][v]);
    }
    a += S::kInner;
    b += S::kOuter;
    keep_as_pointer(a);
    keep_as_pointer(b);
  }
#pragma clang loop unroll(full)
  for (int r = 0; r < kRows; ++r) {
#pragma clang loop unroll(full)
    for (int v = 0; v < kVecs; ++v) {
      // What was there is added last, so that a small term meets a large sum once a tile and not once an element.
      float* to = c + r * c_row + v * kLanes;
      if constexpr (kMode == Accumulate::No) store(to, acc[r][v]);
      if constexpr (kMode == Accumulate::Yes) store(to, load(to) + acc[r][v]);
      if constexpr (kMode == Accumulate::Scaled) store(to, load(to) * load_splat(row_scale + r) + acc[r][v]);
    }
  }
}

template <class S, Accumulate kMode, int kRows, int kVecs, class Between>
FLASHATTN_CALLED void product_strip(int rows, int inner, const float* a, const float* b, float* c, size_t c_row,
                                    const float* row_scale, Between& between) {
  int r = 0;
  for (; r + kRows <= rows; r += kRows) {
    product_block<S, kMode, kRows, kVecs>(inner, a + r * S::kRow, b, c + r * c_row, c_row, row_scale + r);
    Between::step(between);
  }
#if !defined(__wasm__)
  if constexpr (kRows > 4) {
    for (; r + 4 <= rows; r += 4)
      product_block<S, kMode, 4, kVecs>(inner, a + r * S::kRow, b, c + r * c_row, c_row, row_scale + r);
    for (; r + 2 <= rows; r += 2)
      product_block<S, kMode, 2, kVecs>(inner, a + r * S::kRow, b, c + r * c_row, c_row, row_scale + r);
  }
#endif
  for (; r < rows; ++r)
    product_block<S, kMode, 1, kVecs>(inner, a + r * S::kRow, b, c + r * c_row, c_row, row_scale + r);
}

}  // namespace detail

/**
 * C is [rows, vectors * kLanes] with row stride c_row; row_scale [rows] is read only when kMode is Scaled. `between` takes a
 * step after every block.
 */
template <class S, Accumulate kMode, class Between>
inline void product(int rows, int vectors, int inner, const float* a, const float* b, float* c, size_t c_row,
                    const float* row_scale, Between& between) {
  int v = 0;
  constexpr int kWidest = detail::kWidestBlock;
  for (; v + kWidest <= vectors; v += kWidest)
    detail::product_strip<S, kMode, detail::block_rows(kWidest), kWidest>(rows, inner, a, b + v * kLanes,
                                                                          c + v * kLanes, c_row, row_scale, between);
  if (v + 2 <= vectors) {
    detail::product_strip<S, kMode, detail::block_rows(2), 2>(rows, inner, a, b + v * kLanes, c + v * kLanes, c_row,
                                                              row_scale, between);
    v += 2;
  }
  if (v < vectors)
    detail::product_strip<S, kMode, detail::block_rows(1), 1>(rows, inner, a, b + v * kLanes, c + v * kLanes, c_row,
                                                              row_scale, between);
}

template <class S, Accumulate kMode>
inline void product(int rows, int vectors, int inner, const float* a, const float* b, float* c, size_t c_row,
                    const float* row_scale = nullptr) {
  Nothing nothing;
  product<S, kMode>(rows, vectors, inner, a, b, c, c_row, row_scale, nothing);
}

/**
 * The accumulating product, in the same order of additions, without the pairs that `hidden` marks (same layout as A):
 * zero times NaN is NaN, so a value that must not be seen has to be skipped, not weighted by zero. For the rare tile that needs it.
 */
template <class S>
inline void product_visible(int rows, int vectors, int inner, const float* a, const uint32_t* hidden, const float* b,
                            float* c, size_t c_row) {
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < vectors * kLanes; v += kLanes) {
      Vec sum{};
      for (int k = 0; k < inner; ++k) {
        const int at = r * S::kRow + k * S::kInner;
        if (!hidden[at]) sum = multiply_add(load_splat(a + at), load(b + k * S::kOuter + v), sum);
      }
      store(c + r * c_row + v, load(c + r * c_row + v) + sum);
    }
  }
}

}  // namespace flashattn
