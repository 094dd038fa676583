// How P and dS stay within the range of the element that they are rounded to before a product. A power of two goes in
// before the rounding and comes out of the sums after it, so it changes no bit of what was in range anyway.
//
//   P: of forward, relative to the row's maximum; of backward, a probability. At most 1, times dropout's factor.
//   dS = P (dP - delta): at most |dO| |V| + |delta|, by the largest rows of a key/value head, times the slope of score_mod.
//   Float16 alone needs it.
#pragma once
#include "band.cuh"

namespace flashattn {

/** floor(log2 x) of a positive number that is not subnormal; -127 of 0. */
FLASHATTN_DEVICE int exponent_of(float x) { return static_cast<int>(ptx::bits_of(x) >> 23 & 255) - 127; }

/** 2^exponent, -126 to 127. */
FLASHATTN_DEVICE float power_of_two(int exponent) { return ptx::float_of(static_cast<uint32_t>(exponent + 127) << 23); }

namespace detail {

/** What dropout adds to the exponent of P, rounded up. */
FLASHATTN_DEVICE int dropout_exponent(const AttentionParams& p) {
  return p.dropout.threshold ? exponent_of(p.dropout.keep_scale) + 1 : 0;
}

}  // namespace detail

/**
 * Forward keeps 2^this P. Float16: close to its largest number, so that the smallest P that counts is the smallest that
 * the sum of 2^28 keys could notice. The others: so small that a sum over all keys is at most half the largest value, at
 * the cost of what is smaller than the number of keys times the smallest normal number.
 */
template <class Element>
FLASHATTN_DEVICE int forward_exponent(const AttentionParams& p) {
  const int most = Element::kNarrow ? 15 : -2 - exponent_of(static_cast<float>(p.key_length));
  return most - detail::dropout_exponent(p);
}

/** Backward keeps 2^this P. P may come out as almost 2 where the lse of large logits is coarse. */
template <class Element>
FLASHATTN_DEVICE int backward_exponent(const AttentionParams& p) {
  return Element::kNarrow ? 14 - detail::dropout_exponent(p) : 0;
}

// The range of dS -----------------------------------------------------------------------------------------------------

/** The largest finite rows of d_out, of the values, and of delta, of a slice of a key/value head's queries and keys. */
struct HeadRange {
  float d_out, value, delta;
};

/** Slices of a key/value head: one warp makes a slice, and one reads them all. */
template <class Problem>
constexpr int range_slices(const Problem& p) {
  const int longest = p.query_length > p.key_length ? p.query_length : p.key_length;
  const int slices = divide_up(longest, 256);
  return slices < kWarpSize ? slices : kWarpSize;
}

/** [batch, kv_heads, range_slices], behind the rows of delta and of row weights. */
FLASHATTN_DEVICE HeadRange* head_ranges(const AttentionParams& p) {
  return reinterpret_cast<HeadRange*>(p.row_terms + 2 * p.lse_rows);
}

constexpr int64_t head_range_floats(const AttentionShape& p) {
  return static_cast<int64_t>(p.batch) * p.kv_heads * range_slices(p) * 3;
}

/** The largest x of a warp, in all lanes. */
FLASHATTN_DEVICE float warp_max(float x) {
  for (int step = 1; step < kWarpSize; step *= 2) x = fmaxf(x, ptx::shuffle_xor(x, step));
  return x;
}

/** The slopes of score_mod may be as large as 2^(2 + this): nobody knows them beforehand. */
inline constexpr int kSlopeRoom = 8;

/** dS of a key/value head is kept as 2^this (2^backward_exponent P) (dP - delta). A whole warp. */
template <class Element>
FLASHATTN_DEVICE int d_score_exponent(const AttentionParams& p, int b, int kv_head) {
  if constexpr (!Element::kNarrow) return 0;
  const int slices = range_slices(p), slice = ptx::thread() % kWarpSize;
  HeadRange range{};
  if (slice < slices) {
    const float* from = &head_ranges(p)[(static_cast<int64_t>(b) * p.kv_heads + kv_head) * slices + slice].d_out;
    range = {ptx::load_global(from), ptx::load_global(from + 1), ptx::load_global(from + 2)};
  }
  const float kept = p.dropout.threshold ? p.dropout.keep_scale : 1.0f;
  const float bound = warp_max(range.d_out) * warp_max(range.value) * kept + warp_max(range.delta);
  const int most = p.score_mod.program ? 13 - kSlopeRoom : 13;
  const int wanted = most - backward_exponent<Element>(p) - exponent_of(bound);
  return max_of(-100, min_of(wanted, 100));
}

}  // namespace flashattn
