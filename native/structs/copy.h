// to[i...] = from[i...], rounded to the nearest even of its dtype, or added to what is there.
#pragma once
#include "types.h"

namespace flashattn {

/** Any two strided arrays of one shape; dims that are not needed are 1 and come first. */
struct CopyParams {
  Pointer<const void> from;
  Pointer<void> to;
  int64_t sizes[6], from_strides[6], to_strides[6];
  DType from_dtype, to_dtype;
  int32_t accumulate;  // 1: to += from, in float32
  int32_t reserved;
};
FLASHATTN_FIELDS(CopyParams, from, to, sizes, from_strides, to_strides, from_dtype, to_dtype, accumulate, reserved);

/** Writes `bits` into `count` words. */
struct FillParams {
  Pointer<uint32_t> data;  // [count]
  int64_t count;
  uint32_t bits;
  int32_t reserved;
};
FLASHATTN_FIELDS(FillParams, data, count, bits, reserved);

/** Multiply-adds on registers alone: the arithmetic peak that benchmarks compare with. */
struct PeakParams {
  Pointer<float> sink;  // [4]: two factors, and the sum that keeps the arithmetic from being optimised away
  int32_t items;        // pieces of work: blocks of CUDA
  int32_t iterations;
};
FLASHATTN_FIELDS(PeakParams, sink, items, iterations);

}  // namespace flashattn
