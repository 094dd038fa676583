// Decays by channel: within the product of queries and keys.
#pragma once
#include "linear/workspace.h"

namespace flashattn {

namespace detail {

/** What decays by channel need of a block of queries: the products of the decays from its beginning on. */
struct BlockDecay {
  const float* rows;  // [count][kRowStride], e^g
  int count, dim;
  bool exclusive;  // queries read the state before their own position
};

/** to[t] = from[t] * factor * the decays of the block up to t; `total` [dim]: all of them. */
FLASHATTN_CALLED void decay_forwards(float* to, const float* from /* both [count][kRowStride] */,
                                     const BlockDecay& decay, float factor, float* total) {
  for (int d = 0; d < decay.dim; d += kLanes) {
    Vec product = splat(1);
    for (int r = 0; r < decay.count; ++r) {
      const int at = r * kRowStride + d;
      const Vec with_own = without_dust(product * load(decay.rows + at));
      store(to + at, load(from + at) * (splat(factor) * (decay.exclusive ? product : with_own)));
      product = with_own;
    }
    store(total + d, product);
  }
}

/** rows[s] *= the decays of the block that follow s */
FLASHATTN_CALLED void decay_backwards(float* rows /* [count][kRowStride] */, const BlockDecay& decay) {
  for (int d = 0; d < decay.dim; d += kLanes) {
    Vec product = splat(1);
    for (int r = decay.count; r-- > 0;) {
      const int at = r * kRowStride + d;
      store(rows + at, load(rows + at) * product);
      product = without_dust(product * load(decay.rows + at));
    }
  }
}

/**
 * scores[s][t] = sum_d q_t[d] k_s[d] decays[s + 1 .. t][d] for kCount keys from `key` on and a vector of queries from
 * `query` on. `decayed` [dim][kLinearBlock] holds queries decayed down to the last of the keys, and then to the first.
 * kMasked: some of the keys are not before all of the queries.
 */
template <int kCount, bool kMasked>
FLASHATTN_CALLED void diagonal_scores(float* scores /* [kLinearBlock][row] */, int row, int key, int query,
                                      const float* keys /* [kLinearBlock][kRowStride] */, const BlockDecay& decay,
                                      float* decayed) {
  Vec sums[kCount];
#pragma clang loop unroll(full)
  for (int i = 0; i < kCount; ++i) sums[i] = Vec{};
  const IntVec t = iota(query - decay.exclusive);
  for (int d = 0; d < decay.dim; ++d) {
    Vec q = load(decayed + d * kLinearBlock + query);
    const float* k = keys + key * kRowStride + d;
    const float* w = decay.rows + (key + 1) * kRowStride + d;
#pragma GCC unroll 16
    for (int i = kCount - 1; i >= 0; --i) {
      const Vec product = q * load_splat(w + i * kRowStride);
      q = kMasked ? select(t > key + i, product, q) : product;
      sums[i] = multiply_add(q, load_splat(k + i * kRowStride), sums[i]);
    }
    store(decayed + d * kLinearBlock + query, q);
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < kCount; ++i)
    store(scores + (key + i) * row + query, kMasked ? select(t < key + i, Vec{}, sums[i]) : sums[i]);
}

/** The square of scores of a block with itself. `queries` [dim][kLinearBlock] is used up. */
FLASHATTN_CALLED void block_scores(float* scores /* [kLinearBlock][row] */, int row, float* queries,
                                   const float* keys /* [kLinearBlock][kRowStride] */, const BlockDecay& decay) {
  for (int v = 0; v < kLinearBlock; v += kLanes) {
    diagonal_scores<kLanes, true>(scores, row, v, v, keys, decay, queries);
    for (int key = v - kLanes; key >= 0; key -= kLanes) {
      if (decay.exclusive)
        diagonal_scores<kLanes, true>(scores, row, key, v, keys, decay, queries);
      else
        diagonal_scores<kLanes, false>(scores, row, key, v, keys, decay, queries);
    }
    for (int key = v + kLanes; key < kLinearBlock; ++key) store(scores + key * row + v, Vec{});
  }
}

/** scores[t][t] += q_t . (bonus k_t) */
FLASHATTN_CALLED void add_bonus(float* scores /* [count][row] */, int row, const float* queries,
                                const float* keys /* both [count][kRowStride] */, const float* bonus /* [dim] */,
                                int count, int dim, float scale) {
  for (int t = 0; t < count; ++t) {
    Vec sum{};
    for (int d = 0; d < dim; d += kLanes)
      sum = multiply_add(load(queries + t * kRowStride + d) * load(keys + t * kRowStride + d), load(bonus + d), sum);
    scores[t * row + t] += scale * sum_lanes(sum);
  }
}

/** The product of the decays of a block. */
FLASHATTN_CALLED void multiply_decays(float* total /* [dim] */, const BlockDecay& decay) {
  for (int d = 0; d < decay.dim; d += kLanes) {
    Vec product = splat(1);
    for (int r = 0; r < decay.count; ++r) product = without_dust(product * load(decay.rows + r * kRowStride + d));
    store(total + d, product);
  }
}

inline BlockDecay block_decay(const RecurrenceParams& p, const RecurrenceWorkspace& ws, LinearBlock block,
                              bool exclusive) {
  return {ws.decay_rows + block.first * kRowStride, block.count, p.key_dim, exclusive};
}

/**
 * scores[s][t] of a block of queries with keys up to its last, those before the block decayed up to it. ws.reaching_columns
 * has the queries decayed from the beginning of the block.
 */
FLASHATTN_CALLED void channel_scores(float* scores /* [keys][kLinearBlock] */,
                                     const float* queries /* [count][kRowStride] */,
                                     const float* keys /* [keys][kRowStride] */, LinearBlock block,
                                     const BlockDecay& decay, float factor, RecurrenceWorkspace& ws) {
  product<KeyRowsTimesBlock, Accumulate::No>(ws.ahead, block.first, kLinearBlock / kLanes, decay.dim, keys,
                                             ws.reaching_columns, scores, kLinearBlock);
  transpose_block(ws.query_columns, queries, block.count, decay.dim, factor);
  block_scores(scores + block.first * kLinearBlock, kLinearBlock, ws.query_columns, keys + block.first * kRowStride,
               decay);
}

/** With decays by channel: keys are decayed to the end of the block that has been met. */
FLASHATTN_CALLED void pass_block(const RecurrenceParams& p, LinearBlock block, RecurrenceWorkspace& ws) {
  const BlockDecay decay = block_decay(p, ws, block, false);
  float* const sets[] = {ws.key, ws.write};
  for (int set = 0; set < (p.update == Update::LowRank ? 2 : 1); ++set) {
    multiply_columns(sets[set], ws.block_decay, block.first, p.key_dim);
    decay_backwards(sets[set] + block.first * kRowStride, decay);
  }
  for (int d = 0; d < p.key_dim; d += kLanes)
    store(ws.chunk_decay + d, without_dust(load(ws.chunk_decay + d) * load(ws.block_decay + d)));
}

}  // namespace detail

}  // namespace flashattn
