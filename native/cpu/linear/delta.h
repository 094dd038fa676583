// The delta rule (Yang et al. 2024): what a position adds depends on what the state has for its key.
#pragma once
#include "linear/workspace.h"

namespace flashattn {

namespace detail {

/** key_scores[s][t] = -(k_t . k_s) times the decays of s + 1 .. t; 0 where s >= t. */
FLASHATTN_CALLED void delta_scores(int count, int key_dim, RecurrenceWorkspace& ws) {
  for (int first = 0; first < count; first += kLinearBlock) {
    const LinearBlock block{first, min(kLinearBlock, count - first)};
    transpose_block(ws.query_columns, ws.key + first * kRowStride, block.count, key_dim, -1);
    product<KeyRowsTimesBlock, Accumulate::No>(ws.ahead, block.keys(), kLinearBlock / kLanes, key_dim, ws.key,
                                               ws.query_columns, ws.key_scores + first, kLinearChunk);
    decay_scores(ws.key_scores + first, kLinearChunk, block, ws.decay.position);
    for (int s = first; s < block.keys(); ++s) ws.key_scores[s * kLinearChunk + s] = 0;
  }
}

/**
 * What the delta rule adds: u_t = beta_t e_t, with the errors e_t = v_t - (decay_t S_{t-1})^T k_t, which take the place of
 * values. The chunk's own positions are in that state: a triangular system, solved block by block.
 */
FLASHATTN_CALLED void solve_delta(int count, int key_dim, int columns, RecurrenceWorkspace& ws) {
  const int vectors = divide_up(columns, kLanes);
  for (int first = 0; first < count; first += kLinearBlock) {
    const int rows = min(kLinearBlock, count - first);
    float *const errors = ws.value + first * kRowStride, *const updates = ws.update + first * kRowStride;
    // What the state before the chunk has for these keys.
    product<RowsTimesState, Accumulate::No>(ws.ahead, rows, vectors, key_dim, ws.key + first * kRowStride, ws.state,
                                            updates, kRowStride);
    for (int r = 0; r < rows; ++r) {
      const Vec reach = splat(ws.decay.before[first + r]);
      for (int d = r * kRowStride; d < r * kRowStride + columns; d += kLanes)
        store(errors + d, load(errors + d) - load(updates + d) * reach);
    }
    product<ChunkTimesValues, Accumulate::Yes>(ws.ahead, rows, vectors, first, ws.key_scores + first, ws.update, errors,
                                               kRowStride);
    for (int t = 0; t < rows; ++t) {
      float *const error = errors + t * kRowStride, *const update = updates + t * kRowStride;
      product<ChunkTimesValues, Accumulate::Yes>(
          ws.ahead, 1, vectors, t, ws.key_scores + first * kLinearChunk + first + t, updates, error, kRowStride);
      const Vec beta = splat(ws.beta[first + t]);
      for (int d = 0; d < columns; d += kLanes) store(update + d, load(error + d) * beta);
    }
  }
}

}  // namespace detail

}  // namespace flashattn
