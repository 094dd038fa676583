// The way back through the delta rule.
#pragma once
#include "linear/backward_workspace.h"

namespace flashattn {

namespace detail {

/** ws.d_value, of what was added to the state, becomes the gradient of the errors, which is that of values. */
FLASHATTN_CALLED void solve_delta_backward(int count, int columns, RecurrenceBackwardWorkspace& ws) {
  const int vectors = divide_up(columns, kLanes);
  for (int first = (count - 1) / kLinearBlock * kLinearBlock; first >= 0; first -= kLinearBlock) {
    const int end = min(first + kLinearBlock, count);
    product<ScoresTimesQueries, Accumulate::Yes>(
        ws.ahead, end - first, vectors, count - end, ws.key_scores + first * kLinearChunk + end,
        ws.d_value + end * kRowStride, ws.d_value + first * kRowStride, kRowStride);
    for (int s = end; s-- > first;) {
      float* const row = ws.d_value + s * kRowStride;
      product<ScoresTimesQueries, Accumulate::Yes>(ws.ahead, 1, vectors, end - s - 1,
                                                   ws.key_scores + s * kLinearChunk + s + 1, row + kRowStride, row,
                                                   kRowStride);
      float* const d_update = ws.queries + s * kRowStride;  // not needed any more
      for (int d = 0; d < columns; d += kLanes) {
        store(d_update + d, load(row + d));
        store(row + d, load(row + d) * splat(ws.beta[s]));
      }
    }
  }
  for (int i = 0; i < kLinearChunk; i += kLanes) store(ws.d_beta + i, Vec{});
  add_row_dots(ws.d_beta, ws.value, ws.queries, count, columns, 1);
}

/** What errors owe to keys, decays and the state. ws.d_value: the gradient of errors. */
FLASHATTN_CALLED void delta_gradients(const StateItem& at, const LinearChunk& chunk, RecurrenceBackwardWorkspace& ws) {
  const RecurrenceParams& p = at.p;
  const int n = chunk.count, columns = p.state_columns();
  const int key_vectors = divide_up(p.key_dim, kLanes), value_vectors = divide_up(columns, kLanes);
  // -D_ts (u_s . d_error_t), s < t
  for (int first = 0; first < n; first += kLinearBlock) {
    const LinearBlock block = chunk.block(first);
    transpose_block(ws.d_out_columns, ws.d_value + first * kRowStride, block.count, columns, -1);
    block_products(ws.ahead, ws.d_scores, ws.update, ws.d_out_columns, block.keys(), first, columns);
    decay_scores(ws.d_scores + first, kLinearChunk, block, ws.decay.position);
    for (int s = first; s < block.keys(); ++s) ws.d_scores[s * kLinearChunk + s] = 0;
  }
  // As the later of two positions, and by the state before the chunk.
  float* const later = ws.d_query;
  product<RowsTimesState, Accumulate::No>(ws.ahead, n, key_vectors, columns, ws.d_value, ws.state_transposed, later,
                                          kRowStride);
  multiply_rows_into(later, later, ws.decay.before, -1, n, p.key_dim);
  for (int first = 0; first < n; first += kLinearBlock)
    add_past(ws.ahead, later + first * kRowStride, ws.d_scores, ws.key, chunk.block(first), p.key_dim, chunk.finite);
  // As the earlier one.
  float* const earlier = ws.d_key_end;
  for (int r = 0; r < n; ++r) fill(earlier + r * kRowStride, 0, p.key_dim);
  add_future(ws.ahead, earlier, ws.d_scores, ws.key, chunk, p.key_dim);
  add_row_dots(ws.gate, ws.key, later, n, p.key_dim, 1);
  add_row_dots(ws.gate, ws.key, earlier, n, p.key_dim, -1);
  add_rows(ws.d_key, later, n, p.key_dim);
  add_rows(ws.d_key, earlier, n, p.key_dim);
  multiply_rows_into(ws.reaching_chunk, ws.key, ws.decay.before, -1, n, p.key_dim);
  product<KeysTransposedTimesValues, Accumulate::Yes>(ws.ahead, p.key_dim, value_vectors, n, ws.reaching_chunk,
                                                      ws.d_value, ws.d_state, kRowStride);
}

}  // namespace detail

}  // namespace flashattn
