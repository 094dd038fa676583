// Causal masks and sliding windows are one shape: a band around the diagonal.
#pragma once
#include "simd/element.h"
#include "structs/attention.h"

namespace flashattn {

enum class Cover { Empty, Partial, Full };

struct Range {
  int begin, end;
};

/** Query i sees key j iff low <= j - i <= high, positions local to the sequence. */
struct Band {
  int low, high;

  static Band of(const AttentionParams& p, int diagonal) {
    return {p.window_left == kUnbounded ? -kUnbounded : diagonal - p.window_left,
            p.window_right == kUnbounded ? kUnbounded : diagonal + p.window_right};
  }

  Cover cover(Range queries, Range keys) const {
    const int least = keys.begin - (queries.end - 1), most = keys.end - 1 - queries.begin;
    if (least > high || most < low) return Cover::Empty;
    return least >= low && most <= high ? Cover::Full : Cover::Partial;
  }

  Range visible_keys(Range queries, int key_length) const {
    return {max(0, queries.begin + low), min(key_length, queries.end + high)};
  }

  Range seeing_queries(Range keys, int query_length) const {
    return {max(0, keys.begin - high), min(query_length, keys.end - low)};
  }
};

/** Where the diagonal meets the first query: key i + diagonal is "the same position" as query i. */
inline int diagonal_of(const AttentionParams& p, const Sequence& s) {
  return (p.top_left ? 0 : s.key_length - s.query_length) + p.offset;
}

}  // namespace flashattn
