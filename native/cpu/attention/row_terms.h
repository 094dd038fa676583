// What backward needs of each row of the softmax, and the launches that go over rows.
#pragma once
#include "attention/softmax.h"
#include "attention/tile.h"
#include "simd/rows.h"

namespace flashattn {

inline constexpr int kRowTerms = 3;

/**
 * Of the rows from one on: probabilities are e^(logit - reference - log_sum), and softmax's Jacobian subtracts delta from
 * every dP. The reference of an empty row is +Infinity, so that every probability is 0.
 */
struct RowTerms {
  float *delta, *reference, *log_sum;

  RowTerms(const AttentionParams& p, size_t lse_row)
      : delta(p.row_terms + lse_row),
        reference(delta + p.lse_rows),
        log_sum(reference + p.lse_rows) {}
};

inline int row_items(const AttentionParams& p) { return p.batch * p.heads * divide_up(p.query_length, kRowsPerItem); }

namespace detail {

/** The rows of one item of a row-wise launch, local to their sequence. */
struct RowItem {
  int b, h;
  Sequence s;
  Range rows;

  RowItem(const AttentionParams& p, int item) {
    const int chunks = divide_up(p.query_length, kRowsPerItem), begin = item % chunks * kRowsPerItem;
    h = item / chunks % p.heads;
    b = item / chunks / p.heads;
    s = p.sequence(b);
    rows = {begin, min(begin + kRowsPerItem, s.query_length)};
  }
};

/** Calls f(b, h, row of lse, row of the tensor) for the rows of an item. */
template <class F>
inline void for_rows(const AttentionParams& p, int item, F f) {
  const RowItem at(p, item);
  for (int i = at.rows.begin; i < at.rows.end; ++i)
    f(at.b, at.h, p.lse_row(at.b, at.h, at.s.query_begin + i), at.s.query_begin + i);
}

// From here on the float32 lse is too coarse for e^(logit - lse): its last place is 2^-14.
inline constexpr float kCoarse = 1024;

inline bool is_coarse(float lse) { return __builtin_fabsf(lse) >= kCoarse && __builtin_fabsf(lse) <= kLargest; }

/** Whether a reference and the log of a sum are what an lse was rounded from. */
inline bool agrees(double exact, float lse) { return __builtin_fabs(exact - lse) <= 0x1p-20 * __builtin_fabs(lse); }

}  // namespace detail
}  // namespace flashattn
