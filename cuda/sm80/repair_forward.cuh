// Attention one pair at a time, for rows whose NaN may come from a hidden pair: the products of forward.cuh multiply
// hidden values by 0, this leaves them out.
#pragma once
#include "../scores.cuh"
#include "../sum.cuh"
#include "../walk.cuh"

namespace flashattn {

/** The dims of one row that a lane looks after: lane, lane + 32, ... */
struct LaneDims {
  static constexpr int kCount = 256 / kWarpSize;
  float x[kCount];

  template <class Element>
  FLASHATTN_DEVICE static LaneDims load(const Rows& from, int row, int lane) {
    using Storage = typename Element::Storage;
    const Storage* data = reinterpret_cast<const Storage*>(from.data + row * from.stride);
    LaneDims dims;
    for (int i = 0; i < kCount; ++i) {
      const int d = i * kWarpSize + lane;
      dims.x[i] = d < from.dim ? Element::load(ptx::load_global(data + d)) : 0.0f;
    }
    return dims;
  }

  template <class Element>
  FLASHATTN_DEVICE void store(const Rows& to, int row, float factor, int lane) const {
    using Storage = typename Element::Storage;
    Storage* data = reinterpret_cast<Storage*>(to.data + row * to.stride);
    for (int i = 0; i < kCount; ++i) {
      const int d = i * kWarpSize + lane;
      if (d < to.dim) ptx::store_global(data + d, Element::store(x[i] * factor));
    }
  }

  FLASHATTN_DEVICE void clear() {
    for (float& value : x) value = 0.0f;
  }
  FLASHATTN_DEVICE void add(float factor, const LaneDims& other) {
    for (int i = 0; i < kCount; ++i) x[i] += factor * other.x[i];
  }
  FLASHATTN_DEVICE void scale(float factor) {
    for (float& value : x) value *= factor;
  }

  /** Over all lanes. */
  FLASHATTN_DEVICE float dot(const LaneDims& other) const {
    float sum = 0.0f;
    for (int i = 0; i < kCount; ++i) sum += x[i] * other.x[i];
    for (int step = 1; step < kWarpSize; step *= 2) sum += ptx::shuffle_xor(sum, step);
    return sum;
  }
};

/** Writes out of the queries [first, first + count) again, with one warp. lse holds no hidden NaN: it stays. */
template <class Element, bool HasExtras>
FLASHATTN_CALLED void repair_forward(const AttentionParams& p, int b, int h, int first, int count) {
  constexpr int kTile = 32;
  const Head head(p, b, h);
  const int lane = ptx::thread() % kWarpSize;
  ptx::sync_warp();  // the rows were just written by other lanes
  const Rows queries = Rows::of<Element>(p.query, b, head.sequence.query_begin, h, p.head_dim);
  const Rows keys = Rows::of<Element>(p.key, b, head.sequence.key_begin, head.kv_head(), p.head_dim);
  const Rows values = Rows::of<Element>(p.value, b, head.sequence.key_begin, head.kv_head(), p.value_dim);
  const Rows outs = Rows::of<Element>(p.out, b, head.sequence.query_begin, h, p.value_dim);
  for (int i = first; i < min_of(first + count, head.sequence.query_length); ++i) {
    const float lse = ptx::load_global(p.lse + head.lse_row(i));
    if (lse != lse) continue;  // every dim is NaN
    const LaneDims query = LaneDims::load<Element>(queries, i, lane);
    LaneDims out;
    out.clear();
    float sum = 0.0f, lost = 0.0f;  // 1, but for the rounding of lse
    KeyWalk<kTile> walk(p, head.band, b, h, {i, i + 1}, head.sequence.key_length);
    for (TileStep step = walk.take(); step.begin >= 0; step = walk.take()) {
      const uint32_t* bits = bits_of(p.block_mask, step.block);
      for (int j = step.begin; j < step.begin + kTile; ++j) {
        if (!is_visible(head, bits, i, j)) continue;
        const float score =
            finish_score<HasExtras>(head, query.dot(LaneDims::load<Element>(keys, j, lane)), i, j).score;
        if (score == -kInfinity) continue;
        const float kept = p.dropout.threshold ? keep_factor(head, random_of(head, i, j), j) : 1.0f;
        const float weight = ptx::exp2((score - lse) * kLog2E);
        add_compensated(sum, lost, weight);
        out.add(weight * kept, LaneDims::load<Element>(values, j, lane));
      }
    }
    if (p.sink) sum += ptx::exp2((ptx::load_global(p.sink + h) - lse) * kLog2E);
    out.store<Element>(outs, i, lse == -kInfinity ? 0.0f : 1.0f / (sum - lost), lane);
  }
}

}  // namespace flashattn
