// What a worker keeps of a chunk on the way back through a recurrence, and the sums over its positions.
#pragma once
#include "linear/recurrence.h"

namespace flashattn {

using TransposedState = float[kRowStride * kRowStride];  // [state column][key dim]
using ChunkScores = float[kLinearChunk * kLinearChunk];  // [key][query]

struct alignas(kCacheLine) RecurrenceBackwardWorkspace : RecurrenceWorkspace {
  StateRows d_state;
  TransposedState state_transposed, d_state_transposed;
  ChunkRows queries, d_out;  // of one head; queries times scale
  ChunkRows reaching_block;  // queries decayed from the beginning of their block
  ChunkRows reaching_chunk;  // and of the chunk
  ChunkRows decayed_key;     // keys decayed to the end of the chunk, or to where a walk has come
  ChunkRows d_query, d_key, d_value;
  ChunkRows d_key_end;  // gradients of keys that are decayed to where a walk has come
  ChunkRows d_key_bonus;
  ChunkRows query_gate, key_gate;                           // q d_q and k d_k, of Decay::Channel
  ChunkRows read_gate;                                      // q d_q of what reads the state before its own position
  ChunkRows decayed_write, d_update, d_write, d_write_end;  // of Update::LowRank
  ChunkScores chunk_write_scores, d_write_scores;
  ChunkScores chunk_scores, d_scores;              // P and A
  float d_out_columns[kRowStride * kLinearBlock];  // [state column][query]
  float block_decays[kLinearChunk / kLinearBlock][kMaxDim + kLanes];
  float carry[kMaxDim + kLanes];  // the state at the end of a chunk times its gradient
  float d_bonus[kMaxDim + kLanes];
  float gate[kLinearChunk];  // of decays by position
  float own[kLinearChunk];   // d_out_t . u_t
  float d_beta[kLinearChunk];
  float d_head_decay;
};

namespace detail {

using ScoresTimesQueries = Strides<kLinearChunk, 1, kRowStride>;  // [key, query] x [query, column]

/** to[c][r] = from[r][c], padded with zeros to whole vectors */
FLASHATTN_CALLED void transpose_state(float* to /* [columns][kRowStride] */, const float* from /* [rows][kRowStride] */,
                                      int rows, int columns) {
  for (int r = 0; r < rows; r += kLanes) {
    for (int c = 0; c < columns; c += kLanes) {
      Vec m[kLanes];
      for (int i = 0; i < kLanes; ++i) m[i] = r + i < rows ? load(from + (r + i) * kRowStride + c) : Vec{};
      transpose_lanes(m);
      for (int i = 0; i < kLanes; ++i) store(to + (c + i) * kRowStride + r, m[i]);
    }
  }
}

/** to += a * b, all [count][kRowStride] */
FLASHATTN_CALLED void add_products(float* to, const float* a, const float* b, int count, int dim) {
  for (int r = 0; r < count; ++r)
    for (int d = r * kRowStride; d < r * kRowStride + dim; d += kLanes)
      store(to + d, multiply_add(load(a + d), load(b + d), load(to + d)));
}

/** to = from * factors [count] */
FLASHATTN_CALLED void multiply_rows_into(float* to, const float* from /* both [count][kRowStride] */,
                                         const float* factors, float factor, int count, int dim) {
  for (int r = 0; r < count; ++r) {
    const Vec f = splat(factors[r] * factor);
    for (int d = r * kRowStride; d < r * kRowStride + dim; d += kLanes) store(to + d, load(from + d) * f);
  }
}

FLASHATTN_CALLED void copy_rows(float* to, const float* from /* both [count][kRowStride] */, int count, int dim) {
  for (int r = 0; r < count; ++r) copy_floats(to + r * kRowStride, from + r * kRowStride, dim);
}

/** What backward knows of a chunk. */
struct LinearChunk {
  int begin, count;
  bool finite;  // keys, values, queries and d_out: products may weigh by zero

  LinearBlock block(int first) const { return {first, min(kLinearBlock, count - first)}; }
};

/** out[t] += sum over keys s <= t of scores[s][t] rows[s], for the queries of a block */
FLASHATTN_CALLED void add_past(LinearAhead& ahead, float* out /* [count][kRowStride] */, const float* scores,
                               const float* rows, LinearBlock block, int dim, bool finite) {
  const int vectors = divide_up(dim, kLanes);
  if (finite)
    return product<ChunkTimesValues, Accumulate::Yes>(ahead, block.count, vectors, block.keys(), scores + block.first,
                                                      rows, out, kRowStride);
  for (int t = 0; t < block.count; ++t)
    product<ChunkTimesValues, Accumulate::Yes>(ahead, 1, vectors, block.first + t + 1, scores + block.first + t, rows,
                                               out + t * kRowStride, kRowStride);
}

/** out[s] += sum over queries t >= s of scores[s][t] rows[t], for all keys of a chunk */
FLASHATTN_CALLED void add_future(LinearAhead& ahead, float* out /* [count][kRowStride] */, const float* scores,
                                 const float* rows, const LinearChunk& chunk, int dim) {
  const int vectors = divide_up(dim, kLanes), step = chunk.finite ? kLinearBlock : 1;
  for (int s = 0; s < chunk.count; s += step)
    product<ScoresTimesQueries, Accumulate::Yes>(ahead, min(step, chunk.count - s), vectors, chunk.count - s,
                                                 scores + s * kLinearChunk + s, rows + s * kRowStride,
                                                 out + s * kRowStride, kRowStride);
}

/** scores[s][t] = rows[s] . queries[t] for the queries of a block, whose columns are given, and the keys up to its last. */
FLASHATTN_CALLED void block_products(LinearAhead& ahead, float* scores, const float* rows /* [keys][kRowStride] */,
                                     const float* columns /* [dim][kLinearBlock] */, int keys, int first, int dim) {
  product<KeyRowsTimesBlock, Accumulate::No>(ahead, keys, kLinearBlock / kLanes, dim, rows, columns, scores + first,
                                             kLinearChunk);
}

}  // namespace detail

}  // namespace flashattn
