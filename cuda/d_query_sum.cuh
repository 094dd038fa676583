// Where blocks of backward add up dQ: rows of float32, [lse rows, padded head dim].
//
// A lane holds columns 2 quad and 2 quad + 1 of an accumulator [16, 8]. Where a device adds four neighbouring floats at
// once (compute capability 9.0), the four that a lane holds of two accumulators side by side are neighbours here: of
// every 16 dims, those of the left and of the right half take turns, two by two. Half as many instructions wait for the
// memory pipeline, which bounds backward at large head dims.
#pragma once
#include "tile.cuh"

namespace flashattn {

/** Adds what a lane holds of 16 columns of a row, whose first is at `to`. */
FLASHATTN_DEVICE void add_d_query_columns(float* to, int quad, float2 left, float2 right) {
  if (ptx::adds_four()) {
    ptx::add_global(reinterpret_cast<float4*>(to + quad * 4), make_float4(left.x, left.y, right.x, right.y));
  } else {
    ptx::add_global(reinterpret_cast<float2*>(to + quad * 2), left);
    ptx::add_global(reinterpret_cast<float2*>(to + 8 + quad * 2), right);
  }
}

/** Eight dims of a row, from `first` on, a multiple of 8. */
FLASHATTN_DEVICE void load_d_query_dims(float (&x)[8], const float* row, int first) {
  const bool four = ptx::adds_four();
  const float* from = four ? row + (first & ~15) + (first & 8) / 4 : row + first;
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
    const float2 two = ptx::load_global(reinterpret_cast<const float2*>(from + pair * (four ? 4 : 2)));
    x[2 * pair] = two.x;
    x[2 * pair + 1] = two.y;
  }
}

}  // namespace flashattn
