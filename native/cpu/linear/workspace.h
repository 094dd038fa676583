// What a worker keeps of a recurrence, and what its products read.
#pragma once
#include "linear/step.h"

namespace flashattn {

struct alignas(kCacheLine) RecurrenceWorkspace {
  StateRows state;
  ChunkRows key, value;
  ChunkRows update;  // of Update::Delta, what takes the place of values: they are errors then; of Update::LowRank, what
                     // has been read, which is added to the state by `write`
  ChunkRows write;   // of Update::LowRank
  float decay_rows[(kLinearChunk + 1) * kRowStride];  // of Decay::Channel: e^g
  BlockRows query, reaching, out;                     // reaching: queries decayed as far as their state reaches
  BlockColumns query_columns, reaching_columns;
  BlockScores scores, write_scores;
  float key_scores[kLinearChunk * kLinearChunk];                       // of Update::Delta, [s][t]
  float row_scale[kMaxDim + kLanes];                                   // the decay of a chunk for each row of the state
  float block_decay[kMaxDim + kLanes], chunk_decay[kMaxDim + kLanes];  // of Decay::Channel
  float bonus[kMaxDim + kLanes];                                       // padded with zeros
  float beta[kLinearChunk];
  ChunkDecay decay;
  detail::LinearAhead ahead;
  StepWorkspace step;
};

namespace detail {

using KeyRowsTimesBlock = Strides<kRowStride, 1, kLinearBlock>;  // [key, dim] x [dim, query]
using BlockTimesValues = Strides<1, kLinearBlock, kRowStride>;  // [query, key] x [key, column], scores are [key][query]
using RowsTimesState = Strides<kRowStride, 1, kRowStride>;      // [position, dim] x [dim, column]
using KeysTransposedTimesValues = Strides<1, kRowStride, kRowStride>;  // [dim, position] x [position, column]
using KeyRowsTimesChunk = Strides<kRowStride, 1, kLinearChunk>;        // [key, dim] x [dim, position]
using ChunkTimesValues = Strides<1, kLinearChunk, kRowStride>;         // [position, key] x [key, column]

/** Queries [first, first + count) of a chunk and the keys up to its last. */
struct LinearBlock {
  int first, count;

  int keys() const { return first + count; }
};

/** scores[s][t] times the decays of s + 1 .. t; 0 where s > t. The same of `others`, times a factor, where there are some. */
template <bool kOthers = false>
FLASHATTN_CALLED void decay_scores(float* scores /* [keys][row] */, int row, LinearBlock block,
                                   const float* decay /* [kLinearChunk] */, float* others = nullptr, float factor = 1) {
  for (int v = 0; v < kLinearBlock; v += kLanes) {
    const IntVec query = iota(block.first + v);
    Vec product = splat(1);
    for (int s = block.keys() - 1; s >= 0; --s) {
      const int i = s * row + v;
      if (s < block.first + v) {
        product = without_dust(product * splat(decay[s + 1]));
        store(scores + i, load(scores + i) * product);
        if constexpr (kOthers) store(others + i, load(others + i) * (product * splat(factor)));
      } else {
        if (s + 1 < block.keys()) product = without_dust(select(query > s, product * splat(decay[s + 1]), product));
        store(scores + i, select(query < s, Vec{}, load(scores + i) * product));
        if constexpr (kOthers)
          store(others + i, select(query < s, Vec{}, load(others + i) * (product * splat(factor))));
      }
    }
  }
}

/** out[t] += sum over keys s <= t of scores[s][t] values[s]. `finite`: all values are. */
FLASHATTN_CALLED void add_values(LinearAhead& ahead, float* out /* [count][kRowStride] */,
                                 const float* scores /* [keys][kLinearBlock] */,
                                 const float* values /* [keys][kRowStride] */, LinearBlock block, int columns,
                                 bool finite) {
  const int vectors = divide_up(columns, kLanes);
  if (finite)
    return product<BlockTimesValues, Accumulate::Yes>(ahead, block.count, vectors, block.keys(), scores, values, out,
                                                      kRowStride);
  // What comes later in the block is weighted by zero, which hides no NaN.
  for (int t = 0; t < block.count; ++t)
    product<BlockTimesValues, Accumulate::Yes>(ahead, 1, vectors, block.first + t + 1, scores + t, values,
                                               out + t * kRowStride, kRowStride);
}

}  // namespace detail

}  // namespace flashattn
