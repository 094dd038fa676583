// Keys or values that are put where a cache wants them.
#pragma once
#include "attention.h"

namespace flashattn {

/** to[rows[i]] = from[i], of any float dtypes; keys turned by the angles of their positions on the way. */
struct StoreRowsParams {
  TensorRef from;                    // [count, heads, dim], its batch unused
  TensorRef to;                      // [rows, heads, dim], likewise
  Pointer<const int32_t> rows;       // [count]; below 0: nowhere
  Pointer<const int32_t> positions;  // [count], where pairs is not 0
  RotaryAngles angles;               // [positions, pairs]
  int32_t pairs, interleaved;
  int32_t count, heads, dim, reserved;
};
FLASHATTN_FIELDS(StoreRowsParams, from, to, rows, positions, angles, pairs, interleaved, count, heads, dim, reserved);

}  // namespace flashattn
