// The exact merge of attention over disjoint key sets: the algebra behind split-KV, ring and tree attention.
//
//   lse = log sum_p e^lse_p      out = sum_p e^(lse_p - lse) out_p
#pragma once
#include "attention/sums.h"
#include "attention/tile.h"
#include "simd/math.h"
#include "simd/rows.h"
#include "structs/merge.h"

namespace flashattn {

namespace detail {

struct MergeRow {
  int b, h, i;
  size_t lse_row;
};

template <class F>
inline void for_merge_rows(const MergeParams& p, int item, F f) {
  const int chunks = divide_up(p.query_length, kRowsPerItem);
  const int begin = item % chunks * kRowsPerItem, h = item / chunks % p.heads, b = item / chunks / p.heads;
  for (int i = begin; i < min(begin + kRowsPerItem, p.query_length); ++i)
    f(MergeRow{b, h, i, (size_t(b) * p.heads + h) * p.query_length + i});
}

/**
 * The weights e^(lse_p - lse) of a row's parts. They are made from the parts alone: the lse of all of them may be so large
 * that the logarithm of their sum is lost in its rounding.
 */
struct PartWeights {
  float maximum = -kInfinity;
  double sum = 0;  // of e^(lse_p - maximum)

  PartWeights(const MergeParams& p, size_t lse_row) {
    for (int part = 0; part < p.part_count; ++part) {
      const float lse = p.parts[part].lse[lse_row];
      if (!(lse <= maximum)) maximum = lse;  // a NaN is kept
    }
    for (int part = 0; part < p.part_count; ++part) sum += exponential(p.parts[part].lse[lse_row]);
  }

  /** 0 for an empty part (also of an empty row). */
  float of(float lse_part) const {
    const float weight = exponential(lse_part);
    return weight == 0 ? 0.0f : static_cast<float>(weight / sum);
  }

  float lse() const {
    if (sum == 0) return -kInfinity;
    return sum > 0 ? static_cast<float>(maximum + ln(static_cast<float>(sum))) : static_cast<float>(sum);
  }

 private:
  float exponential(float lse_part) const {
    return lse_part == -kInfinity ? 0.0f : natural_exp(splat(lse_part - maximum))[0];
  }
};

}  // namespace detail

inline int merge_items(const MergeParams& p) { return p.batch * p.heads * divide_up(p.query_length, kRowsPerItem); }

FLASHATTN_CALLED void merge_item(const MergeParams& p, int item, RowWorkspace& ws) {
  detail::for_merge_rows(p, item, [&](const detail::MergeRow& row) {
    const detail::PartWeights weights(p, row.lse_row);
    float *sum = ws.row[0], *rest = ws.row[2];  // [value dim]
    fill(sum, 0.0f, p.value_dim);
    fill(rest, 0.0f, p.value_dim);
    for (int part = 0; part < p.part_count; ++part) {
      const float weight = weights.of(p.parts[part].lse[row.lse_row]);
      if (weight == 0) continue;
      const TensorRef& out = p.parts[part].out;
      load_row(ws.row[1], out.row(row.b, row.i, row.h), out.dtype, p.value_dim);
      for (int d = 0; d < p.value_dim; d += kLanes) {
        Vec total = load(sum + d);
        store(rest + d, load(rest + d) + add_exactly(total, splat(weight) * load(ws.row[1] + d)));
        store(sum + d, total);
      }
    }
    for (int d = 0; d < p.value_dim; d += kLanes) store(sum + d, load(sum + d) + load(rest + d));
    store_row(p.out.row(row.b, row.i, row.h), p.out.dtype, sum, p.value_dim);
    p.lse[row.lse_row] = weights.lse();
  });
}

/** With w = e^(lse_p - lse): d_out_p = w d_out, d_lse_p = w (d_out . (out_p - out) + d_lse). */
FLASHATTN_CALLED void merge_backward_item(const MergeParams& p, int item, RowWorkspace& ws) {
  detail::for_merge_rows(p, item, [&](const detail::MergeRow& row) {
    load_row(ws.row[0], p.d_out.row(row.b, row.i, row.h), p.d_out.dtype, p.value_dim);
    load_row(ws.row[2], p.out.row(row.b, row.i, row.h), p.out.dtype, p.value_dim);
    const float d_lse = p.d_lse ? p.d_lse[row.lse_row] : 0.0f;
    const detail::PartWeights weights(p, row.lse_row);
    for (int part = 0; part < p.part_count; ++part) {
      const MergePart& q = p.parts[part];
      const float weight = weights.of(q.lse[row.lse_row]);
      load_row(ws.row[1], q.out.row(row.b, row.i, row.h), q.out.dtype, p.value_dim);
      Vec dot{};
      for (int d = 0; d < p.value_dim; d += kLanes) {
        const Vec d_out = load(ws.row[0] + d);
        dot = multiply_add(d_out, load(ws.row[1] + d) - load(ws.row[2] + d), dot);
        store(ws.row[1] + d, weight == 0 ? Vec{} : d_out * splat(weight));
      }
      store_row(q.d_out.row(row.b, row.i, row.h), q.d_out.dtype, ws.row[1], p.value_dim);
      q.d_lse[row.lse_row] = weight == 0 ? 0.0f : weight * (sum_lanes(dot) + d_lse);
    }
  });
}

}  // namespace flashattn
