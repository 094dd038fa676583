// What the merge of attention over disjoint key sets is told, forward and backward.
#pragma once
#include "types.h"

namespace flashattn {

/** One of the states that `merge` combines. */
struct MergePart {
  TensorRef out;             // [batch, query, heads, value_dim]
  TensorRef d_out;           // backward only
  Pointer<const float> lse;  // [batch, heads, query]
  Pointer<float> d_lse;      // backward only
};
FLASHATTN_FIELDS(MergePart, out, d_out, lse, d_lse);

struct MergeParams {
  Pointer<const MergePart> parts;  // [part_count], in device memory
  TensorRef out, d_out;            // [batch, query, heads, value_dim]; d_out: backward only
  Pointer<float> lse;              // [batch, heads, query]
  Pointer<const float> d_lse;      // backward only; null: zero
  int32_t part_count, batch, heads, query_length, value_dim, reserved;
};
FLASHATTN_FIELDS(MergeParams, parts, out, d_out, lse, d_lse, part_count, batch, heads, query_length, value_dim,
                 reserved);

}  // namespace flashattn
