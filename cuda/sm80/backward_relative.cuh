// The gradient of a relative-position table: dS summed over all pairs that share a bucket. Every warp has a table of its
// own, and lanes that meet in a bucket are summed before one of them adds: no atomics, so the order never changes. All
// pairs of a warp may share a bucket: the sums are compensated. The tables are summed by backward_tables.cu.
#pragma once
#include "../launch_error.h"
#include "../sum.cuh"
#include "gradient_block.cuh"

namespace flashattn {

namespace detail {

/** table[bucket] += value of every lane that has one (bucket >= 0). */
FLASHATTN_CALLED void add_to_table(float* table /* [bucket_count, 2] */, int bucket, float value, int lane) {
  for (uint32_t left = ptx::ballot(bucket >= 0); left;) {
    const int leader = ptx::lowest_bit(left), shared = ptx::shuffle(bucket, leader);
    float sum = bucket == shared ? value : 0.0f;
    for (int step = 1; step < kWarpSize; step *= 2) sum += ptx::shuffle_xor(sum, step);
    if (lane == leader) {
      float2* entry = reinterpret_cast<float2*>(table) + shared;
      float2 total = ptx::load_global(entry);
      add_compensated(total.x, total.y, sum);
      ptx::store_global(entry, total);
    }
    left &= ~ptx::ballot(bucket == shared);
    ptx::sync_warp();
  }
}

}  // namespace detail

template <class Element, int HeadDim>
FLASHATTN_KERNEL((GradientTiles<Element, HeadDim>::kThreads), GradientTiles<Element, HeadDim>::kLeastBlocks)
backward_relative_kernel(const FLASHATTN_CONSTANT AttentionParams p) {
  using Tiles = GradientTiles<Element, HeadDim>;
  GradientBlock<Element, HeadDim> block(p);
  const int h = static_cast<int>(ptx::block().x) % p.heads, slice = static_cast<int>(ptx::block().x) / p.heads;
  const int blocks = p.relative_slices / Tiles::kWarps, warp = block.warp_row() / 16, lane = block.lane().index;
  float* table = static_cast<float*>(p.d_relative_partial) +
                 (static_cast<int64_t>(slice * Tiles::kWarps + warp) * p.heads + h) * p.relative.bucket_count * 2;
  for (int bucket = lane; bucket < p.relative.bucket_count; bucket += kWarpSize)
    ptx::store_global(reinterpret_cast<float2*>(table) + bucket, make_float2(0.0f, 0.0f));
  ptx::sync_warp();

  const int tiles = divide_up(p.query_length, Tiles::kQueryTile);
  for (int item = slice; item < p.batch * tiles; item += blocks) {
    const Head head(p, item / tiles, h);
    const int first = item % tiles * Tiles::kQueryTile;
    if (first >= head.sequence.query_length) continue;
    block.load_queries(head, first);
    KeyWalk<Tiles::kKeyTile> walk(p, head.band, head.b, h, head.queries_at(first, Tiles::kQueryTile),
                                  head.sequence.key_length);
    for (TileStep step = walk.take(); step.begin >= 0; step = walk.take()) {
      const uint32_t* bits = bits_of(p.block_mask, step.block);
      auto d_score = block.score_gradients(head, first, step.begin, bits);
      for_each_score(d_score, block.positions(first, step.begin), [&](float value, int query, int key) {
        const bool visible = is_visible(head, bits, query, key);
        detail::add_to_table(table, visible ? relative_bucket(p.relative, query, key) : -1, value, lane);
      });
    }
    block.finish_queries();
  }
}

template <class Element, int HeadDim>
cudaError_t launch_backward_relative(const AttentionParams& p, cudaStream_t stream) {
  using Tiles = GradientTiles<Element, HeadDim>;
  const unsigned blocks = static_cast<unsigned>(p.relative_slices / Tiles::kWarps * p.heads);
  if (blocks == 0) return cudaSuccess;
  return launched("backward_relative", ptx::launch(backward_relative_kernel<Element, HeadDim>, "backward_relative",
                                                   dim3(blocks), Tiles::kThreads, Tiles::kSharedBytes, stream, p));
}

}  // namespace flashattn
