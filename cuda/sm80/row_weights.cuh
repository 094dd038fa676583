// What the probabilities of a row add up to when they are taken from its saved lse: of large logits lse is coarse, and of
// those beyond 2^24 it has lost the logarithm of the sum altogether. Computed again from the same scores, to the last bit,
// for rows whose lse is coarse, and only there: other blocks are done as soon as they have seen that they have none.
#pragma once
#include "../launch_error.h"
#include "../sum.cuh"
#include "gradient_block.cuh"

namespace flashattn {

namespace detail {

/** Whether the lse of one of `count` queries is coarse. A whole warp, all lanes alike. */
FLASHATTN_DEVICE bool has_coarse_rows(const Head& head, int first, int count) {
  bool found = false;
  for (int i = first + ptx::thread() % kWarpSize; i < head.queries_at(first, count).end; i += kWarpSize)
    found = found || is_coarse_lse(ptx::load_global(head.p.lse + head.lse_row(i)));
  return ptx::ballot(found);
}

}  // namespace detail

/** `HasMod`: whether scores may go through score_mod, for whose registers a kernel reserves memory. */
template <class Element, int HeadDim, bool HasMod>
FLASHATTN_KERNEL((GradientTiles<Element, HeadDim>::kThreads), GradientTiles<Element, HeadDim>::kLeastBlocks)
row_weights_kernel(const FLASHATTN_CONSTANT AttentionParams p) {
  using Tiles = GradientTiles<Element, HeadDim>;
  const int index = static_cast<int>(ptx::block().x), tiles = divide_up(p.query_length, Tiles::kQueryTile);
  const Head head(p, index / tiles / p.heads, index / tiles % p.heads);
  const int first = index % tiles * Tiles::kQueryTile;
  if (!detail::has_coarse_rows(head, first, Tiles::kQueryTile)) return;

  GradientBlock<Element, HeadDim> block(p);
  block.load_queries(head, first);
  KeyWalk<Tiles::kKeyTile> walk(p, head.band, head.b, head.h, head.queries_at(first, Tiles::kQueryTile),
                                head.sequence.key_length);
  float sums[2] = {}, lost[2] = {};
  for (TileStep step = walk.take(); step.begin >= 0; step = walk.take()) {
    const auto score = block.template score<HasMod>(head, first, step.begin, bits_of(p.block_mask, step.block));
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      float tile = 0.0f;
#pragma unroll
      for (int n = 0; n < Tiles::kKeyTile / 8; ++n)
        tile += block.weight(score.s[0][n][lower * 2], lower) + block.weight(score.s[0][n][lower * 2 + 1], lower);
      add_compensated(sums[lower], lost[lower], tile);
    }
  }
  block.finish_queries();
#pragma unroll
  for (int lower = 0; lower < 2; ++lower) {
    float sum = sums[lower] - lost[lower];
    sum += ptx::shuffle_xor(sum, 1);
    sum += ptx::shuffle_xor(sum, 2);
    if (p.sink) sum += block.weight(ptx::load_global(p.sink + head.h), lower);
    const int i = first + block.warp_row() + lower * 8 + block.lane().group;
    if (block.lane().quad == 0 && i < head.sequence.query_length) ptx::store_global(head.row_weight(i), sum);
  }
}

template <class Element, int HeadDim>
cudaError_t launch_row_weights(const AttentionParams& p, cudaStream_t stream) {
  using Tiles = GradientTiles<Element, HeadDim>;
  const int64_t blocks = static_cast<int64_t>(divide_up(p.query_length, Tiles::kQueryTile)) * p.heads * p.batch;
  if (blocks == 0) return cudaSuccess;
  const auto kernel =
      p.score_mod.program ? row_weights_kernel<Element, HeadDim, true> : row_weights_kernel<Element, HeadDim, false>;
  return launched("row_weights", ptx::launch(kernel, "row_weights", dim3(static_cast<unsigned>(blocks)),
                                             Tiles::kThreads, Tiles::kSharedBytes, stream, p));
}

}  // namespace flashattn
