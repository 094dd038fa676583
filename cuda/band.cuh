// Causal masks and sliding windows are one shape: a band around the diagonal.
#pragma once
#include "tile.cuh"

namespace flashattn {

enum class Cover { Empty, Partial, Full };

struct Range {
  int begin, end;
};

FLASHATTN_DEVICE Sequence sequence_of(const AttentionParams& p, int b) {
  if (!p.sequences) return {0, p.query_length, 0, p.key_length};
  const int32_t* fields = reinterpret_cast<const int32_t*>(p.sequences + b);
  return {ptx::load_global(fields), ptx::load_global(fields + 1), ptx::load_global(fields + 2),
          ptx::load_global(fields + 3)};
}

/** Where the diagonal meets the first query: key i + diagonal is "the same position" as query i. */
FLASHATTN_DEVICE int diagonal_of(const AttentionParams& p, const Sequence& s) {
  return (p.top_left ? 0 : s.key_length - s.query_length) + p.offset;
}

/** Query i sees key j iff low <= j - i <= high, positions local to the sequence. */
struct Band {
  int low, high;

  FLASHATTN_DEVICE Band(const AttentionParams& p, int diagonal)
      : low(p.window_left == kUnbounded ? -kUnbounded : diagonal - p.window_left),
        high(p.window_right == kUnbounded ? kUnbounded : diagonal + p.window_right) {}

  FLASHATTN_DEVICE bool sees(int query, int key) const { return key - query >= low && key - query <= high; }

  FLASHATTN_DEVICE Cover cover(Range queries, Range keys) const {
    const int least = keys.begin - (queries.end - 1), most = keys.end - 1 - queries.begin;
    if (least > high || most < low) return Cover::Empty;
    return least >= low && most <= high ? Cover::Full : Cover::Partial;
  }

  FLASHATTN_DEVICE Range visible_keys(Range queries, int key_length) const {
    return {max_of(0, queries.begin + low), min_of(key_length, queries.end + high)};
  }

  FLASHATTN_DEVICE Range seeing_queries(Range keys, int query_length) const {
    return {max_of(0, keys.begin - high), min_of(query_length, keys.end - low)};
  }
};

}  // namespace flashattn
