// Sums that are carried from tile to tile. A float32 sum of n terms loses up to n / 2 units of its last place: over
// millions of keys that is all that anyone wanted to know. So a few tiles are summed apart, as a block, and the block is
// added to the total with what rounding cuts off kept: it becomes the first term of the next block.
#pragma once
#include "attention/tile.h"
#include "simd/sums.h"

namespace flashattn {

inline constexpr int kBlockTiles = 2048 / kKeyTile;  // tiles in a block

/** total += block; the block keeps what rounding cut off. */
FLASHATTN_CALLED void carry(float* total, float* block, size_t n) {
  for (size_t i = 0; i < n; i += kLanes) {
    Vec sum = load(total + i);
    store(block + i, add_exactly(sum, load(block + i)));
    store(total + i, sum);
  }
}

/** Counts the tiles of the running block of a sum. */
struct BlockCounter {
  int tiles = 0;
  bool carried = false;  // whether the total has begun

  /** Counts a tile that is about to be added; whether the block must be carried first, for it is full. */
  bool was_full() {
    if (tiles < kBlockTiles) {
      ++tiles;
      return false;
    }
    tiles = 1;
    return true;
  }
};

/** The block of `count` rows goes into its total, which is begun with it if `begun` is false. */
FLASHATTN_CALLED void carry_rows(bool begun, float* total, float* block /* both [count][kRowStride] */, int count,
                                 int dim) {
  if (!begun) clear_rows(total, count, dim);
  for (int r = 0; r < count; ++r) carry(total + r * kRowStride, block + r * kRowStride, dim);
}

/** rows += others */
FLASHATTN_CALLED void add_rows(float* rows, const float* others /* both [count][kRowStride] */, int count, int dim) {
  for (int r = 0; r < count; ++r)
    for (int d = r * kRowStride; d < r * kRowStride + dim; d += kLanes)
      store(rows + d, load(rows + d) + load(others + d));
}

FLASHATTN_CALLED void multiply_rows(float* rows /* [count][kRowStride] */, const float* factors /* [count] */,
                                    int count, int dim) {
  for (int r = 0; r < count; ++r)
    for (int d = r * kRowStride; d < r * kRowStride + dim; d += kLanes)
      store(rows + d, load(rows + d) * load_splat(factors + r));
}

FLASHATTN_CALLED void scale_rows(float* rows /* [count][kRowStride] */, int count, int dim, float factor) {
  for (int r = 0; r < count; ++r)
    for (int d = r * kRowStride; d < r * kRowStride + dim; d += kLanes) store(rows + d, load(rows + d) * splat(factor));
}

}  // namespace flashattn
