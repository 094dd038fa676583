// Which variant of a kernel a problem gets, on the host.
#pragma once
#include "../device_limits.h"
#include "structs/attention.h"
#include "tiles.cuh"

namespace flashattn {

/**
 * Whether scores need more than their scale and the mask. The plain kernels also rely on a positive scale, whose product
 * with log2 e and whose inverse are normal numbers.
 */
inline bool has_extras(const AttentionShape& p) { return p.options || !(p.scale > 1e-36f && p.scale < 1e36f); }

inline AttentionShape shape_of(const AttentionParams& p) {
  AttentionShape shape{};
  shape.lse_rows = p.lse_rows;
  shape.dtype = p.query.dtype;
  shape.batch = p.batch, shape.heads = p.heads, shape.kv_heads = p.kv_heads;
  shape.head_dim = p.head_dim, shape.value_dim = p.value_dim;
  shape.query_length = p.query_length, shape.key_length = p.key_length;
  shape.block_size = p.block_mask.block_size;
  shape.bucket_count = p.relative.table ? p.relative.bucket_count : 0;
  shape.options =
      p.softcap > 0 || p.bias.data || p.relative.table || p.alibi.slopes || p.score_mod.program || p.dropout.threshold;
  shape.scale = p.scale;
  shape.deterministic = p.deterministic;
  return shape;
}

/** Large tiles where they fit, lie within the blocks of the mask, and leave no multiprocessor without work. */
inline Variant forward_variant(const AttentionShape& p, const DeviceLimits& limits) {
  if (has_extras(p)) return Variant::Extras;
  const int bytes = element_size(p.dtype), bucket = head_dim_bucket(p);
  const ForwardShape shape = forward_shape(bytes, bucket, Variant::Large);
  const bool fits = forward_shared_bytes(bytes, bucket, Variant::Large) <= limits.shared_memory;
  const bool within = p.block_size % shape.query_tile == 0 && p.block_size % shape.key_tile == 0;
  const int64_t blocks = static_cast<int64_t>(divide_up(p.query_length, shape.query_tile)) * p.heads * p.batch;
  return bytes == 2 && fits && within && blocks >= limits.multiprocessors ? Variant::Large : Variant::Small;
}

/** The same for backward, whose blocks are tiles of keys of a key/value head. */
inline Variant backward_variant(const AttentionShape& p, const DeviceLimits& limits) {
  if (has_extras(p)) return Variant::Extras;
  const int bytes = element_size(p.dtype), bucket = head_dim_bucket(p);
  const BackwardShape shape = backward_shape(bytes, bucket, Variant::Large);
  const bool fits = backward_shared_bytes(bytes, bucket, Variant::Large) <= limits.shared_memory;
  const bool within = p.block_size % shape.key_tile == 0 && p.block_size % shape.query_tile == 0;
  const int64_t blocks = static_cast<int64_t>(divide_up(p.key_length, shape.key_tile)) * p.kv_heads * p.batch;
  return bytes == 2 && fits && within && blocks >= limits.multiprocessors ? Variant::Large : Variant::Small;
}

}  // namespace flashattn
