// The exact merge of attention over disjoint key sets: the algebra behind split-KV, ring and tree attention.
//
//   lse = log sum_p e^lse_p      out = sum_p e^(lse_p - lse) out_p
#pragma once
#include "math.h"
#include "rows.h"
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

/** e^(lse_p - lse), 0 for an empty part (also of an empty row). */
inline float part_weight(float lse_part, float lse) {
  return lse_part == -kInfinity ? 0.0f : exp2(splat((lse_part - lse) * kLog2E))[0];
}

}  // namespace detail

inline int merge_items(const MergeParams& p) { return p.batch * p.heads * divide_up(p.query_length, kRowsPerItem); }

FLASHATTN_CALLED void merge_item(const MergeParams& p, int item, RowWorkspace& ws) {
  detail::for_merge_rows(p, item, [&](const detail::MergeRow& row) {
    float maximum = -kInfinity;
    for (int part = 0; part < p.part_count; ++part) {
      const float lse = p.parts[part].lse[row.lse_row];
      if (!(lse <= maximum)) maximum = lse;  // a NaN is kept
    }
    float sum = 0;
    fill(ws.row[0], 0.0f, p.value_dim);
    for (int part = 0; part < p.part_count; ++part) {
      const float weight = detail::part_weight(p.parts[part].lse[row.lse_row], maximum);
      if (weight == 0) continue;
      sum += weight;
      const TensorRef& out = p.parts[part].out;
      load_row(ws.row[1], out.row(row.b, row.i, row.h), out.dtype, p.value_dim);
      for (int d = 0; d < p.value_dim; d += kLanes)
        store(ws.row[0] + d, multiply_add(splat(weight), load(ws.row[1] + d), load(ws.row[0] + d)));
    }
    const Vec inverse = splat(sum == 0 ? 0.0f : 1 / sum);
    for (int d = 0; d < p.value_dim; d += kLanes) store(ws.row[0] + d, load(ws.row[0] + d) * inverse);
    store_row(p.out.row(row.b, row.i, row.h), p.out.dtype, ws.row[0], p.value_dim);
    p.lse[row.lse_row] = sum > 0 ? static_cast<float>(maximum + ln(sum)) : sum == 0 ? -kInfinity : sum;
  });
}

/** With w = e^(lse_p - lse): d_out_p = w d_out, d_lse_p = w (d_out . (out_p - out) + d_lse). */
FLASHATTN_CALLED void merge_backward_item(const MergeParams& p, int item, RowWorkspace& ws) {
  detail::for_merge_rows(p, item, [&](const detail::MergeRow& row) {
    load_row(ws.row[0], p.d_out.row(row.b, row.i, row.h), p.d_out.dtype, p.value_dim);
    load_row(ws.row[2], p.out.row(row.b, row.i, row.h), p.out.dtype, p.value_dim);
    const float d_lse = p.d_lse ? p.d_lse[row.lse_row] : 0.0f;
    for (int part = 0; part < p.part_count; ++part) {
      const MergePart& q = p.parts[part];
      const float weight = detail::part_weight(q.lse[row.lse_row], p.lse[row.lse_row]);
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
