// Gradients of queries, keys and values where decays are by channel.
#pragma once
#include "linear/backward_workspace.h"

namespace flashattn {

namespace detail {

/** to[t] += sum over the keys s of its block of scores[s][t] k_s, decayed on the way */
FLASHATTN_CALLED void add_diagonal_queries(float* to /* [count][kRowStride] */, const float* scores,
                                           const float* keys /* [count][kRowStride] */, const BlockDecay& decay) {
  for (int d = 0; d < decay.dim; d += kLanes) {
    Vec decayed[kLinearBlock];
    for (int t = 0; t < decay.count; ++t) {
      const int at = t * kRowStride + d;
      const Vec w = load(decay.rows + at);
      Vec sum = load(to + at);
      if (decay.exclusive) {
        for (int s = 0; s < t; ++s) {
          sum = multiply_add(load_splat(scores + s * kLinearChunk + t), decayed[s], sum);
          decayed[s] *= w;
        }
        decayed[t] = load(keys + at);
      } else {
        for (int s = 0; s < t; ++s) {
          decayed[s] *= w;
          sum = multiply_add(load_splat(scores + s * kLinearChunk + t), decayed[s], sum);
        }
        decayed[t] = load(keys + at);
        sum = multiply_add(load_splat(scores + t * kLinearChunk + t), decayed[t], sum);
      }
      store(to + at, sum);
    }
  }
}

/** to[s] += sum over the queries t of its block of scores[s][t] q_t, decayed on the way */
FLASHATTN_CALLED void add_diagonal_keys(float* to /* [count][kRowStride] */, const float* scores,
                                        const float* queries /* [count][kRowStride] */, const BlockDecay& decay) {
  for (int d = 0; d < decay.dim; d += kLanes) {
    Vec decayed[kLinearBlock];
    for (int s = decay.count; s-- > 0;) {
      const int at = s * kRowStride + d;
      const float* const row = scores + s * kLinearChunk;
      Vec sum = load(to + at);
      if (s + 1 < decay.count) {
        const Vec w = load(decay.rows + at + kRowStride);
        for (int t = s + 1 + decay.exclusive; t < decay.count; ++t) decayed[t] *= w;
        if (decay.exclusive) decayed[s + 1] = load(queries + at + kRowStride);
      }
      if (!decay.exclusive) decayed[s] = load(queries + at);
      for (int t = s + decay.exclusive; t < decay.count; ++t) sum = multiply_add(load_splat(row + t), decayed[t], sum);
      store(to + at, sum);
    }
  }
}

/** Keys that do not come before a query weigh nothing; d_out_t . u_t is kept apart. */
FLASHATTN_CALLED void hide_future(float* scores, LinearBlock block, bool exclusive, float* own) {
  for (int s = block.first; s < block.keys(); ++s) {
    float* const row = scores + s * kLinearChunk;
    own[s] = row[s];
    for (int v = block.first; v < block.first + kLinearBlock; v += kLanes)
      store(row + v, select(iota(v - exclusive) < s, Vec{}, load(row + v)));
  }
}

/** What a position's own key and value get and give by the bonus. */
FLASHATTN_CALLED void bonus_gradients(const StateItem& at, const LinearChunk& chunk, RecurrenceBackwardWorkspace& ws) {
  const RecurrenceParams& p = at.p;
  for (int t = 0; t < chunk.count; ++t) {
    const Vec own = splat(ws.own[t]);
    for (int d = 0; d < p.key_dim; d += kLanes) {
      const int i = t * kRowStride + d;
      const Vec q = load(ws.queries + i) * own, k = load(ws.key + i) * own, u = load(ws.bonus + d);
      store(ws.d_query + i, multiply_add(k, u, load(ws.d_query + i)));
      store(ws.d_key_bonus + i, multiply_add(q, u, load(ws.d_key_bonus + i)));
      store(ws.d_bonus + d, multiply_add(q, load(ws.key + i), load(ws.d_bonus + d)));
    }
  }
}

/** Keys with values, and what gradients by queries of them need. All have [count][kRowStride], scores [key][query]. */
struct KeySet {
  const float *keys, *values;
  float* decayed;  // keys decayed to where the walk has come
  float *scores, *d_scores;
  float* d_keys;
  float* d_end;     // gradients of keys that are decayed to the end of the chunk; used up
  float* d_values;  // or null: not wanted
};

/**
 * Gradients by ws.queries with ws.d_out where decays are by channel: ws.d_query is written, those of keys, values and the
 * state are added to.
 */
FLASHATTN_CALLED void channel_gradients(const StateItem& at, const LinearChunk& chunk, const KeySet* sets,
                                        int set_count, bool exclusive, float* query_gate,
                                        RecurrenceBackwardWorkspace& ws) {
  const RecurrenceParams& p = at.p;
  const int n = chunk.count, columns = p.state_columns();
  const int key_vectors = divide_up(p.key_dim, kLanes), value_vectors = divide_up(columns, kLanes);
  for (int i = 0; i < set_count; ++i) copy_rows(sets[i].decayed, sets[i].keys, n, p.key_dim);
  fill(ws.chunk_decay, 1, p.key_dim);
  for (int first = 0; first < n; first += kLinearBlock) {
    const LinearBlock block = chunk.block(first);
    const BlockDecay decay = block_decay(p, ws, block, exclusive);
    const int rows = first * kRowStride, diagonal = first * kLinearChunk + first;
    float* const block_total = ws.block_decays[first / kLinearBlock];
    decay_forwards(ws.reaching_block + rows, ws.queries + rows, decay, 1, block_total);
    transpose_block(ws.reaching_columns, ws.reaching_block + rows, block.count, p.key_dim, 1);
    transpose_block(ws.d_out_columns, ws.d_out + rows, block.count, columns, 1);
    float* const d_query = ws.d_query + rows;
    product<RowsTimesState, Accumulate::No>(ws.ahead, block.count, key_vectors, columns, ws.d_out + rows,
                                            ws.state_transposed, d_query, kRowStride);
    multiply_columns(d_query, ws.chunk_decay, block.count, p.key_dim);
    for (int i = 0; i < set_count; ++i) {
      const KeySet& set = sets[i];
      block_products(ws.ahead, set.scores, set.decayed, ws.reaching_columns, first, first, p.key_dim);
      transpose_block(ws.query_columns, ws.queries + rows, block.count, p.key_dim, 1);
      block_scores(set.scores + diagonal, kLinearChunk, ws.query_columns, set.keys + rows, decay);
      block_products(ws.ahead, set.d_scores, set.values, ws.d_out_columns, block.keys(), first, columns);
      hide_future(set.d_scores, block, exclusive, ws.own);
      product<ChunkTimesValues, Accumulate::Yes>(ws.ahead, block.count, key_vectors, first, set.d_scores + first,
                                                 set.decayed, d_query, kRowStride);
    }
    if (p.bonus)
      add_bonus(ws.chunk_scores + diagonal, kLinearChunk, ws.queries + rows, ws.key + rows, ws.bonus, block.count,
                p.key_dim, 1);
    decay_forwards(d_query, d_query, decay, 1, block_total);
    for (int i = 0; i < set_count; ++i) {
      const KeySet& set = sets[i];
      add_diagonal_queries(d_query, set.d_scores + diagonal, set.keys + rows, decay);
      multiply_columns(set.decayed, block_total, first, p.key_dim);
      decay_backwards(set.decayed + rows, block_decay(p, ws, block, false));
    }
    copy_rows(ws.reaching_chunk + rows, ws.reaching_block + rows, block.count, p.key_dim);
    multiply_columns(ws.reaching_chunk + rows, ws.chunk_decay, block.count, p.key_dim);
    for (int d = 0; d < p.key_dim; d += kLanes)
      store(ws.chunk_decay + d, without_dust(load(ws.chunk_decay + d) * load(block_total + d)));
  }
  add_products(query_gate, ws.queries, ws.d_query, n, p.key_dim);
  for (int i = 0; i < set_count; ++i)
    if (sets[i].d_values) add_future(ws.ahead, sets[i].d_values, sets[i].scores, ws.d_out, chunk, columns);
  product<KeysTransposedTimesValues, Accumulate::Yes>(ws.ahead, p.key_dim, value_vectors, n, ws.reaching_chunk,
                                                      ws.d_out, ws.d_state, kRowStride);
  if (p.bonus) bonus_gradients(at, chunk, ws);

  for (int first = (n - 1) / kLinearBlock * kLinearBlock; first >= 0; first -= kLinearBlock) {
    const LinearBlock block = chunk.block(first);
    const int rows = first * kRowStride;
    for (int i = 0; i < set_count; ++i) {
      const KeySet& set = sets[i];
      decay_backwards(set.d_end + rows, block_decay(p, ws, block, false));
      add_rows(set.d_keys + rows, set.d_end + rows, block.count, p.key_dim);
      add_diagonal_keys(set.d_keys + rows, set.d_scores + first * kLinearChunk + first, ws.queries + rows,
                        block_decay(p, ws, block, exclusive));
      multiply_columns(set.d_end, ws.block_decays[first / kLinearBlock], first, p.key_dim);
      product<ScoresTimesQueries, Accumulate::Yes>(ws.ahead, first, key_vectors, block.count, set.d_scores + first,
                                                   ws.reaching_block + rows, set.d_end, kRowStride);
    }
  }
}

}  // namespace detail

}  // namespace flashattn
