// The online softmax of Milakov & Gimelshein, for the queries of one score tile, over any number of keys.
#pragma once
#include "attention/scores.h"
#include "attention/sums.h"

namespace flashattn {

struct RunningSoftmax {
  // Probabilities so far are e^(logit - reference); -Infinity: no key was seen.
  float reference[kQueryTile];
  float sum[kQueryTile], rest[kQueryTile];  // their sum, and what rounding cut off it
};

// A logit may exceed the reference by this much before the reference is raised to it. Older sums are then at least e^4
// times smaller than they were, so the rounding of many raises does not add up; and most tiles raise nothing.
inline constexpr float kSlack = 4;

/** A sink is one more key whose value is zero, so the state starts as if it had been seen. */
inline void start_softmax(const AttentionParams& p, int h, RunningSoftmax& state) {
  const float sink = p.sink ? p.sink[h] : -kInfinity;
  fill(state.reference, sink, kQueryTile);
  fill(state.sum, sink == -kInfinity ? 0.0f : 1.0f, kQueryTile);
  fill(state.rest, 0.0f, kQueryTile);
}

namespace detail {

/** Over `keys` rows of a column of vectors; `before` counts too. */
FLASHATTN_INLINE Vec largest(Vec before, int keys, const float* scores /* [key][query] */) {
  constexpr int kChains = kLanes > 4 ? 4 : 2;  // a maximum takes as long as several of them can begin in
  Vec top[kChains];
#pragma clang loop unroll(full)
  for (int c = 0; c < kChains; ++c) top[c] = before;
  int j = 0;
  for (; j + kChains <= keys; j += kChains) {
#pragma clang loop unroll(full)
    for (int c = 0; c < kChains; ++c) top[c] = max(top[c], load(scores + (j + c) * kQueryTile));
  }
  for (; j < keys; ++j) top[0] = max(top[0], load(scores + j * kQueryTile));
#pragma clang loop unroll(full)
  for (int c = 1; c < kChains; ++c) top[0] = max(top[0], top[c]);
  return top[0];
}

}  // namespace detail

/**
 * Logits become probabilities. `shrink` [query] is what older probabilities are to be multiplied by; returns whether
 * that changes any.
 */
FLASHATTN_CALLED bool online_softmax(int keys, int query_vectors, RunningSoftmax& state,
                                     float* scores /* [key][query] */, float* shrink) {
  const int paired = keys & ~1;
  IntVec raised{};
  for (int v = 0; v < query_vectors * kLanes; v += kLanes) {
    const Vec before = load(state.reference + v);
    const Vec maximum = detail::largest(before, keys, scores + v);
    const IntVec raise = maximum > before + splat(kSlack);
    const Vec reference = select(raise, maximum, before);
    // Where nothing was seen yet every logit is -Infinity: less 0 it stays so, less the reference it would be NaN.
    const Vec shift = select(reference == splat(-kInfinity), Vec{}, reference);
    const Vec older = select(raise, natural_exp(before - shift), splat(1.0f));
    Vec sum[2] = {};
    for (int j = 0; j < paired; j += 2) {
      const Vec p0 = natural_exp(load(scores + j * kQueryTile + v) - shift);
      const Vec p1 = natural_exp(load(scores + (j + 1) * kQueryTile + v) - shift);
      store(scores + j * kQueryTile + v, p0);
      store(scores + (j + 1) * kQueryTile + v, p1);
      sum[0] += p0;
      sum[1] += p1;
    }
    if (paired < keys) {
      const Vec p0 = natural_exp(load(scores + paired * kQueryTile + v) - shift);
      store(scores + paired * kQueryTile + v, p0);
      sum[0] += p0;
    }
    Vec total = load(state.sum + v) * older;
    const Vec rest = add_exactly(total, sum[0] + sum[1]);
    store(state.reference + v, reference);
    store(state.sum + v, total);
    store(state.rest + v, multiply_add(load(state.rest + v), older, rest));
    store(shrink + v, older);
    raised |= raise;
  }
  return any(raised);
}

/** The logarithm of a row's sum of e^logit, less the reference; `sum` is positive. */
inline double log_sum(const RunningSoftmax& state, int r) { return ln(state.sum[r] + state.rest[r]); }

}  // namespace flashattn
