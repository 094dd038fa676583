// to[kept...] = scale * the sum (or the extreme) of from[kept..., reduced...] over all reduced axes.
#pragma once
#include "types.h"

namespace flashattn {

inline constexpr int kReduceDims = 3;
/** Elements of a sum that are added up by one piece of work; what a sum is, bit by bit, depends on nothing else. */
inline constexpr int kReduceSplit = 4096;

/** Magnitude: the sum of |x|. */
enum class Reduction : int32_t { Sum, Maximum, Minimum, Magnitude };

struct ReduceParams {
  Pointer<const void> from;
  Pointer<void> to;                                      // [kept], contiguous
  Pointer<float> partial;                                // [splits, kept]; null: one split is all
  int64_t kept[kReduceDims], kept_strides[kReduceDims];  // dims that are not needed are 1 and come first
  int64_t reduced[kReduceDims], reduced_strides[kReduceDims];
  DType from_dtype, to_dtype;
  Reduction reduction;
  float scale;  // of sums
};
FLASHATTN_FIELDS(ReduceParams, from, to, partial, kept, kept_strides, reduced, reduced_strides, from_dtype, to_dtype,
                 reduction, scale);

}  // namespace flashattn
