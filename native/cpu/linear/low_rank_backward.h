// The way back through corrections of rank one: what was read of the state, p, gets its gradient from what it has been
// written to, also by later reads; then reads are queries like others, with that gradient as d_out.
#pragma once
#include "linear/channel_backward.h"

namespace flashattn {

namespace detail {

inline KeySet key_set(const float* updates, RecurrenceBackwardWorkspace& ws) {
  return {ws.key, updates, ws.decayed_key, ws.chunk_scores, ws.d_scores, ws.d_key, ws.d_key_end, ws.d_value};
}
inline KeySet write_set(RecurrenceBackwardWorkspace& ws) {
  return {ws.write,          ws.update,  ws.decayed_write, ws.chunk_write_scores,
          ws.d_write_scores, ws.d_write, ws.d_write_end,   ws.d_update};
}

/** ws.chunk_write_scores: those of ws.queries, which are reads, with writes. */
FLASHATTN_CALLED void score_reads(const RecurrenceParams& p, const LinearChunk& chunk,
                                  RecurrenceBackwardWorkspace& ws) {
  copy_rows(ws.decayed_write, ws.write, chunk.count, p.key_dim);
  float* const scores = ws.chunk_write_scores;
  for (int first = 0; first < chunk.count; first += kLinearBlock) {
    const LinearBlock block = chunk.block(first);
    const BlockDecay decay = block_decay(p, ws, block, true);
    const int rows = first * kRowStride;
    decay_forwards(ws.reaching_block + rows, ws.queries + rows, decay, 1, ws.block_decay);
    transpose_block(ws.reaching_columns, ws.reaching_block + rows, block.count, p.key_dim, 1);
    block_products(ws.ahead, scores, ws.decayed_write, ws.reaching_columns, first, first, p.key_dim);
    transpose_block(ws.query_columns, ws.queries + rows, block.count, p.key_dim, 1);
    block_scores(scores + first * kLinearChunk + first, kLinearChunk, ws.query_columns, ws.write + rows, decay);
    multiply_columns(ws.decayed_write, ws.block_decay, first, p.key_dim);
    decay_backwards(ws.decayed_write + rows, block_decay(p, ws, block, false));
  }
}

/** ws.d_update[s] += sum over reads t > s of scores[s][t] d_update[t], the last first. */
FLASHATTN_CALLED void solve_low_rank_backward(int count, int columns, RecurrenceBackwardWorkspace& ws) {
  const int vectors = divide_up(columns, kLanes);
  for (int s = count - 1; s-- > 0;)
    product<ScoresTimesQueries, Accumulate::Yes>(
        ws.ahead, 1, vectors, count - s - 1, ws.chunk_write_scores + s * kLinearChunk + s + 1,
        ws.d_update + (s + 1) * kRowStride, ws.d_update + s * kRowStride, kRowStride);
}

FLASHATTN_CALLED void low_rank_gradients(const StateItem& at, LinearChunk chunk, bool finite_keys,
                                         RecurrenceBackwardWorkspace& ws) {
  const RecurrenceParams& p = at.p;
  const int n = chunk.count, columns = p.state_columns();
  load_linear_rows(ws.queries, p.read, at, chunk.begin, n, at.head_of(p.read_heads), p.key_dim);
  score_reads(p, chunk, ws);
  solve_low_rank_backward(n, columns, ws);
  copy_rows(ws.d_out, ws.d_update, n, columns);
  chunk.finite = finite_keys && all_finite(ws.queries, n, p.key_dim) && all_finite(ws.d_out, n, columns);
  clear_rows(ws.d_key_end, n, p.key_dim);
  clear_rows(ws.d_write_end, n, p.key_dim);
  KeySet sets[] = {key_set(ws.value, ws), write_set(ws)};
  sets[1].d_values = nullptr;  // part of what has been solved
  channel_gradients(at, chunk, sets, 2, true, ws.read_gate, ws);
}

}  // namespace detail

}  // namespace flashattn
