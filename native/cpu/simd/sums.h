// Sums of many vectors. A float32 sum of n terms loses up to n / 2 units of its last place; so a few vectors are added up
// apart, as a block, and blocks are added with what rounding cuts off kept.
#pragma once
#include "simd/simd.h"

namespace flashattn {

/** sum += x; returns what rounding cut off (Knuth's two-sum), 0 where the sum is not finite. */
FLASHATTN_INLINE Vec add_exactly(Vec& sum, Vec x) {
  const Vec before = sum;
  sum += x;
  const Vec added = sum - before;
  const Vec rest = (before - (sum - added)) + (x - added);
  return select(rest - rest == Vec{}, rest, Vec{});
}

/** Sums, one a lane, of blocks. */
struct LongSum {
  Vec total{}, rest{};

  void add(Vec block) { rest += add_exactly(total, block); }
  void scale(Vec factor) {
    total *= factor;
    rest *= factor;
  }
  Vec lanes() const { return total + rest; }
  float all() const { return sum_lanes(total) + sum_lanes(rest); }
};

// So many sums at a time hide what one addition has to wait for.
inline constexpr int kChains = 4;
inline constexpr int kBlockVectors = 64;

/** sum += f(i) for i = 0, kLanes, ... below n, a multiple of kLanes. */
template <class F>
FLASHATTN_INLINE void add_up(LongSum& sum, int n, F f) {
  for (int begin = 0; begin < n; begin += kBlockVectors * kLanes) {
    const int end = min(begin + kBlockVectors * kLanes, n);
    Vec part[kChains] = {};
    int i = begin;
    for (; i + kChains * kLanes <= end; i += kChains * kLanes) {
#pragma clang loop unroll(full)
      for (int c = 0; c < kChains; ++c) part[c] += f(i + c * kLanes);
    }
    for (; i < end; i += kLanes) part[0] += f(i);
    sum.add((part[0] + part[1]) + (part[2] + part[3]));
  }
}

}  // namespace flashattn
