// Gradients one pair at a time, for rows whose NaN may come from a hidden pair: the products of backward.cuh multiply
// hidden values by 0, these leave them out.
#pragma once
#include "repair_forward.cuh"

namespace flashattn {

namespace detail {

struct PairGradient {
  float probability;  // after dropout
  float d_score;      // with respect to scale * q.k
  bool visible;
};

/** Rows of one query head and of its keys. */
struct HeadRows {
  Rows query, d_out, key, value;

  template <class Element>
  FLASHATTN_DEVICE static HeadRows of(const Head& head) {
    const AttentionParams& p = head.p;
    const Sequence& s = head.sequence;
    return {Rows::of<Element>(p.query, head.b, s.query_begin, head.h, p.head_dim),
            Rows::of<Element>(p.d_out, head.b, s.query_begin, head.h, p.value_dim),
            Rows::of<Element>(p.key, head.b, s.key_begin, head.kv_head(), p.head_dim),
            Rows::of<Element>(p.value, head.b, s.key_begin, head.kv_head(), p.value_dim)};
  }
};

template <bool HasExtras>
FLASHATTN_DEVICE PairGradient pair_gradient(const Head& head, int i, int j, const LaneDims& query, const LaneDims& key,
                                            const LaneDims& d_out, const LaneDims& value) {
  const AttentionParams& p = head.p;
  const Capped capped = finish_score<HasExtras>(head, query.dot(key), i, j);
  const SavedRow row = SavedRow::load(head, i);
  if (capped.score == -kInfinity || row.is_empty()) return {0.0f, 0.0f, false};
  const float kept = p.dropout.threshold ? keep_factor(head, random_of(head, i, j), j) : 1.0f;
  const float probability = row.probability(capped.score);
  const float d_score = probability * (d_out.dot(value) * kept - row.delta);
  const bool has_slope = p.softcap > 0 || p.score_mod.program;
  return {probability * kept, has_slope ? d_score * capped.slope : d_score, true};
}

/** Nothing can change a sum whose dims are all NaN. A whole warp. */
FLASHATTN_DEVICE bool all_nan(const LaneDims& sum, int dim) {
  bool number = false;
  for (int i = 0; i < LaneDims::kCount; ++i)
    number = number || (i * kWarpSize + ptx::thread() % kWarpSize < dim && sum.x[i] == sum.x[i]);
  return !ptx::ballot(number);
}

/** Of each run of 16 * parts dims the 16 of `part`. */
template <class Element>
FLASHATTN_DEVICE void store_part(const LaneDims& sum, const TensorRef& to, const Head& head, int j, int dim,
                                 float factor, int part, int parts) {
  const Rows rows = Rows::of<Element>(to, head.b, head.sequence.key_begin, head.kv_head(), dim);
  typename Element::Storage* data = reinterpret_cast<typename Element::Storage*>(rows.data + j * rows.stride);
  for (int i = 0; i < LaneDims::kCount; ++i) {
    const int d = i * kWarpSize + ptx::thread() % kWarpSize;
    if (d < dim && d / 16 % parts == part) ptx::store_global(data + d, Element::store(sum.x[i] * factor));
  }
}

}  // namespace detail

/** Writes part of the dims of d_key and d_value of keys [first, first + count) again, with one warp. */
template <class Element, bool HasExtras>
FLASHATTN_CALLED void repair_d_keys(const AttentionParams& p, int b, int kv_head, int first, int count, int part,
                                    int parts) {
  constexpr int kTile = 32;
  const int lane = ptx::thread() % kWarpSize, group = p.heads / p.kv_heads;
  Head head(p, b, kv_head * group);
  const Sequence& s = head.sequence;
  for (int j = first; j < min_of(first + count, s.key_length); ++j) {
    const detail::HeadRows rows = detail::HeadRows::of<Element>(head);
    const LaneDims key = LaneDims::load<Element>(rows.key, j, lane);
    const LaneDims value = LaneDims::load<Element>(rows.value, j, lane);
    LaneDims d_key, d_value;
    d_key.clear();
    d_value.clear();
    bool done = false;
    for (int h = kv_head * group; h < (kv_head + 1) * group && !done; ++h) {
      head.h = h;
      const detail::HeadRows at = detail::HeadRows::of<Element>(head);
      QueryWalk<kTile> walk(p, head.band, b, h, {j, j + 1}, s.query_length);
      for (TileStep step = walk.take(); step.begin >= 0 && !done; step = walk.take()) {
        const uint32_t* bits = bits_of(p.block_mask, step.block);
        for (int i = step.begin; i < step.begin + kTile; ++i) {
          if (!is_visible(head, bits, i, j)) continue;
          const LaneDims query = LaneDims::load<Element>(at.query, i, lane);
          const LaneDims d_out = LaneDims::load<Element>(at.d_out, i, lane);
          const detail::PairGradient pair = detail::pair_gradient<HasExtras>(head, i, j, query, key, d_out, value);
          if (!pair.visible) continue;
          d_value.add(pair.probability, d_out);
          d_key.add(pair.d_score, query);
        }
        done = detail::all_nan(d_key, p.head_dim) && detail::all_nan(d_value, p.value_dim);
      }
    }
    head.h = kv_head * group;
    detail::store_part<Element>(d_key, p.d_key, head, j, p.head_dim, p.scale, part, parts);
    detail::store_part<Element>(d_value, p.d_value, head, j, p.value_dim, 1.0f, part, parts);
  }
}

/** Writes d_query of one query again, with one warp. */
template <class Element, bool HasExtras>
FLASHATTN_CALLED void repair_d_query(const AttentionParams& p, int b, int h, int query) {
  constexpr int kTile = 32;
  const Head head(p, b, h);
  const int lane = ptx::thread() % kWarpSize;
  const detail::HeadRows rows = detail::HeadRows::of<Element>(head);
  const LaneDims own = LaneDims::load<Element>(rows.query, query, lane);
  const LaneDims d_out = LaneDims::load<Element>(rows.d_out, query, lane);
  LaneDims d_query;
  d_query.clear();
  bool done = false;
  KeyWalk<kTile> walk(p, head.band, b, h, {query, query + 1}, head.sequence.key_length);
  for (TileStep step = walk.take(); step.begin >= 0 && !done; step = walk.take()) {
    const uint32_t* bits = bits_of(p.block_mask, step.block);
    for (int j = step.begin; j < step.begin + kTile; ++j) {
      if (!is_visible(head, bits, query, j)) continue;
      const LaneDims key = LaneDims::load<Element>(rows.key, j, lane);
      const detail::PairGradient pair = detail::pair_gradient<HasExtras>(head, query, j, own, key, d_out,
                                                                         LaneDims::load<Element>(rows.value, j, lane));
      if (pair.visible) d_query.add(pair.d_score, key);
    }
    done = detail::all_nan(d_query, p.head_dim);
  }
  d_query.store<Element>(Rows::of<Element>(p.d_query, b, head.sequence.query_begin, h, p.head_dim), query, p.scale,
                         lane);
}

}  // namespace flashattn
