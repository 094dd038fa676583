// A correction of rank one on top of decays by channel (RWKV-7, Peng et al. 2025): what the state has for one vector is added
// to it under another.
//
//   S_t = decay_t S_{t-1} + k_t v_t^T + write_t (S_{t-1}^T read_t)^T
//
// What position t reads of the chunk's own positions is a product with the keys and writes before it, so that
// p_t = S_{t-1}^T read_t is a triangular system; then writes with p are a second set of keys with values.
#pragma once
#include "linear/channel.h"

namespace flashattn {

namespace detail {

FLASHATTN_CALLED void load_keys_and_writes(const StateItem& at, int begin, int count, RecurrenceWorkspace& ws) {
  const RecurrenceParams& p = at.p;
  load_linear_rows(ws.key, p.key, at, begin, count, at.head_of(p.key_heads), p.key_dim);
  load_linear_rows(ws.write, p.write, at, begin, count, at.head_of(p.write_heads), p.key_dim);
  for (int r = count; r < round_up(count, kLinearBlock); ++r) {
    fill(ws.key + r * kRowStride, 0, p.key_dim);
    fill(ws.write + r * kRowStride, 0, p.key_dim);
  }
}

/** ws.update[t] += sum over s < t of scores[s][t] rows[s], for the queries of a block. */
FLASHATTN_CALLED void add_before(LinearAhead& ahead, const float* scores /* [keys][kLinearBlock] */, const float* rows,
                                 LinearBlock block, int columns, bool in_turn, float* to /* [keys][kRowStride] */) {
  const int vectors = divide_up(columns, kLanes);
  float* const own = to + block.first * kRowStride;
  product<BlockTimesValues, Accumulate::Yes>(ahead, block.count, vectors, block.first, scores, rows, own, kRowStride);
  const int step = in_turn ? 1 : block.count;
  for (int t = 0; t < block.count; t += step)
    product<BlockTimesValues, Accumulate::Yes>(ahead, min(step, block.count - t), vectors, in_turn ? t : block.count,
                                               scores + block.first * kLinearBlock + t, rows + block.first * kRowStride,
                                               own + t * kRowStride, kRowStride);
}

/** ws.update: what each position reads. Keys and writes, which have been loaded, are used up. */
FLASHATTN_CALLED void solve_low_rank(const StateItem& at, int begin, int count, RecurrenceWorkspace& ws) {
  const RecurrenceParams& p = at.p;
  const int columns = p.state_columns(), vectors = divide_up(columns, kLanes);
  const bool finite = all_finite(ws.value, count, columns);
  fill(ws.chunk_decay, 1, p.key_dim);
  for (int first = 0; first < count; first += kLinearBlock) {
    const LinearBlock block{first, min(kLinearBlock, count - first)};
    const BlockDecay decay = block_decay(p, ws, block, true);
    load_linear_rows(ws.query, p.read, at, begin + first, block.count, at.head_of(p.read_heads), p.key_dim);
    decay_forwards(ws.reaching, ws.query, decay, 1, ws.block_decay);
    transpose_block(ws.reaching_columns, ws.reaching, block.count, p.key_dim, 1);
    channel_scores(ws.scores, ws.query, ws.key, block, decay, 1, ws);
    channel_scores(ws.write_scores, ws.query, ws.write, block, decay, 1, ws);
    multiply_columns(ws.reaching, ws.chunk_decay, block.count, p.key_dim);
    product<RowsTimesState, Accumulate::No>(ws.ahead, block.count, vectors, p.key_dim, ws.reaching, ws.state,
                                            ws.update + first * kRowStride, kRowStride);
    add_before(ws.ahead, ws.scores, ws.value, block, columns, !finite, ws.update);
    add_before(ws.ahead, ws.write_scores, ws.update, block, columns, true, ws.update);
    pass_block(p, block, ws);
  }
}

}  // namespace detail

}  // namespace flashattn
