// A product of matrices in the terms of cuBLASLt, where that has it.
#pragma once
#include <compare>
#include <cstdint>
#include <optional>

#include "api.h"
#include "structs/matmul.h"

namespace flashattn::cublaslt {

/** Matrices of a batch as they lie in memory, one column behind another. */
struct Layout {
  DataType dtype;
  int64_t rows, columns;
  int64_t column_stride, batch_stride;  // in elements; batch 0: all entries share one
  uint32_t alignment;                   // bytes, at most 16, of every entry

  auto operator<=>(const Layout&) const = default;
};

/** All that an algorithm is chosen for: products of one shape have the same bits. */
struct Shape {
  Layout a, b, c, d;
  Transform transform_a, transform_b;
  int32_t batch;
  Epilogue epilogue;
  int64_t bias_batch_stride;
  uint32_t bias_alignment;

  auto operator<=>(const Shape&) const = default;
};

/** D = alpha * op(A) op(B) + beta * C + bias, of columns of D all the same. */
struct Product {
  Shape shape;
  const void *a, *b, *c;
  void* d;
  const void* bias;
  float alpha, beta;
  int64_t inner;
};

/**
 * Nothing where the library lacks a part of it, or has one of which nothing says that it is the same to the last places:
 * - activations. Ours are accurate to float32 in their tails and let NaN through; its GELU is one that its documentation
 *   does not define, its ReLU a max that may drop NaN, and it has no SiLU;
 * - a bias of another dtype than C, or one that is neither a vector along the contiguous dim of C nor a whole matrix;
 * - factors, C or a bias without a contiguous dim, or whose rows overlap; batches with more than one stride;
 * - alpha 0, which does not read the factors.
 */
std::optional<Product> product_of(const MatmulParams&);

/**
 * Into how many parts the inner dim is cut. Float32 sums are carried to memory after as many terms as in our own kernel
 * (kCarryRows of cuda/carry.cuh); 16-bit results have no room for it.
 */
int64_t parts_of(const Product&);

/** Part `index` of `parts` of the inner dim: what the parts before it have left in D is added to. */
Product part_of(const Product&, int64_t index, int64_t parts);

}  // namespace flashattn::cublaslt
