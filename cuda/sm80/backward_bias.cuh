// d_bias = dS summed over every (batch, head, query, key) that the bias was broadcast to. A block owns a tile of the bias
// itself and visits all that shares it, however many: the sums are compensated.
#pragma once
#include "../launch_error.h"
#include "../sum.cuh"
#include "gradient_block.cuh"

namespace flashattn {

namespace detail {

/** Positions [0, count) of a tensor dim that a bias dim of `size` (1: broadcast) covers from tile `tile` on. */
FLASHATTN_DEVICE Range covered(int size, int count, int tile, int tile_size) {
  return size == 1 ? Range{0, count} : Range{tile * tile_size, min_of((tile + 1) * tile_size, count)};
}

}  // namespace detail

template <class Element, int HeadDim>
class BiasBlock {
 public:
  using Block = GradientBlock<Element, HeadDim>;
  using Tiles = typename Block::Tiles;
  static constexpr int kColumnTiles = Tiles::kKeyTile / 8;

  FLASHATTN_DEVICE BiasBlock(const AttentionParams& p, int index)
      : p_(p),
        block_(p),
        key_tile_(index % divide_up(p.bias_key, Tiles::kKeyTile)) {
    index /= divide_up(p.bias_key, Tiles::kKeyTile);
    query_tile_ = index % divide_up(p.bias_query, Tiles::kQueryTile);
    index /= divide_up(p.bias_query, Tiles::kQueryTile);
    head_ = index % p.bias_heads;
    batch_ = index / p.bias_heads;
    sums_.clear();
    lost_.clear();
  }

  FLASHATTN_DEVICE void run() {
    const Range batches = detail::covered(p_.bias_batch, p_.batch, batch_, 1);
    const Range heads = detail::covered(p_.bias_heads, p_.heads, head_, 1);
    for (int b = batches.begin; b < batches.end; ++b)
      for (int h = heads.begin; h < heads.end; ++h) add_head(Head(p_, b, h));
    if (p_.bias_key == 1) sum_keys();
    if (p_.bias_query == 1) sum_queries();
    store();
  }

 private:
  FLASHATTN_DEVICE void add_head(const Head& head) {
    const Range queries = detail::covered(p_.bias_query, head.sequence.query_length, query_tile_, Tiles::kQueryTile);
    const Range keys = detail::covered(p_.bias_key, head.sequence.key_length, key_tile_, Tiles::kKeyTile);
    for (int i = queries.begin; i < queries.end; i += Tiles::kQueryTile) {
      block_.load_queries(head, i);
      for (int j = keys.begin; j < keys.end; j += Tiles::kKeyTile) {
        const BlockCover block_cover = block_cover_of(p_.block_mask, head.b, head.h, i, j);
        const Range tile_queries = head.queries_at(i, Tiles::kQueryTile);
        const Range tile_keys = head.keys_at(j, Tiles::kKeyTile);
        if (!block_cover.visible || head.band.cover(tile_queries, tile_keys) == Cover::Empty) continue;
        const auto d_score = block_.score_gradients(head, i, j, block_cover.bits);
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) add_compensated(sums_.s[0][n][e], lost_.s[0][n][e], d_score.s[0][n][e]);
      }
      block_.finish_queries();
    }
  }

  /** Of each row, into column 0. */
  FLASHATTN_DEVICE void sum_keys() {
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) sum += sums_.s[0][n][lower * 2] + sums_.s[0][n][lower * 2 + 1];
      sum += ptx::shuffle_xor(sum, 1);
      sum += ptx::shuffle_xor(sum, 2);
      sums_.s[0][0][lower * 2] = sum;
    }
  }

  /** Of each column, into row 0: within the warp, then over the warps through shared memory. */
  FLASHATTN_DEVICE void sum_queries() {
    const Lane lane = block_.lane();
    const int warp = block_.warp_row() / 16;
    const auto slot = [&](int w, int column) {
      return ptx::shared_base() + static_cast<uint32_t>((w * Tiles::kKeyTile + column) * 4);
    };
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float sum = sums_.s[0][n][e] + sums_.s[0][n][e + 2];
        for (int step = 4; step < kWarpSize; step *= 2) sum += ptx::shuffle_xor(sum, step);
        if (lane.group == 0) ptx::store_shared(slot(warp, n * 8 + lane.quad * 2 + e), sum);
      }
    ptx::sync_threads();
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float sum = 0.0f;
        for (int w = 0; w < Tiles::kWarps; ++w) sum += ptx::load_shared<float>(slot(w, n * 8 + lane.quad * 2 + e));
        sums_.s[0][n][e] = sum;
      }
  }

  FLASHATTN_DEVICE void store() const {
    float* d_bias = p_.d_bias + (static_cast<int64_t>(batch_) * p_.bias_heads + head_) * p_.bias_query * p_.bias_key;
    const auto at = block_.positions(query_tile_ * Tiles::kQueryTile, key_tile_ * Tiles::kKeyTile);
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = at.query(0, n, e), j = at.key(0, n, e);
        if (i < p_.bias_query && j < p_.bias_key)
          ptx::store_global(d_bias + static_cast<int64_t>(i) * p_.bias_key + j, sums_.s[0][n][e]);
      }
  }

  const AttentionParams& p_;
  Block block_;
  int batch_, head_, query_tile_, key_tile_;
  typename Block::ScoreTile sums_, lost_;  // 16 queries x the key tile, positions of the bias
};

template <class Element, int HeadDim>
FLASHATTN_KERNEL((GradientTiles<Element, HeadDim>::kThreads), GradientTiles<Element, HeadDim>::kLeastBlocks)
backward_bias_kernel(const FLASHATTN_CONSTANT AttentionParams p) {
  BiasBlock<Element, HeadDim>(p, static_cast<int>(ptx::block().x)).run();
}

template <class Element, int HeadDim>
cudaError_t launch_backward_bias(const AttentionParams& p, cudaStream_t stream) {
  using Tiles = GradientTiles<Element, HeadDim>;
  const int64_t blocks = static_cast<int64_t>(p.bias_batch) * p.bias_heads *
                         divide_up(p.bias_query, Tiles::kQueryTile) * divide_up(p.bias_key, Tiles::kKeyTile);
  if (blocks == 0) return cudaSuccess;
  return launched("backward_bias",
                  ptx::launch(backward_bias_kernel<Element, HeadDim>, "backward_bias",
                              dim3(static_cast<unsigned>(blocks)), Tiles::kThreads, Tiles::kSharedBytes, stream, p));
}

}  // namespace flashattn
