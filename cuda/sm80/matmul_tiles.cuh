// The shapes of thread blocks of matmul, one row for each tile and kind of element: the only place to tune it.
//
// All have four warps and at most 48 KB of tiles on the way, so that two blocks are at home on a multiprocessor of any
// architecture. What is read from shared memory bounds the speed: a warp of 64 x 64 reads 8 fragments for 16 products
// [16, 16, 16], one of 32 x 32 reads 4 for 4. Registers a thread, of 255: rows * columns / 128 / inner_warps of sums, and
// about 60 for fragments (90 in float32, whose factors are split in two) and addresses.
#pragma once
#include "factor.cuh"

namespace flashattn {

/** Large tiles reuse more, small ones are more blocks; thin ones are for few rows, and cut the inner dim into parts. */
enum class MatmulTile { Large, Small, Thin };

struct MatmulShape {
  int rows, columns, inner;                  // of a tile of A and a tile of B
  int row_warps, column_warps, inner_warps;  // how the warps of a block share it
  int slots;                                 // tiles of each factor that are on the way at once, or in use
};

/** `bytes` of an element. */
constexpr MatmulShape matmul_shape(int bytes, MatmulTile tile) {
  // Rows of 64 bytes: with twice the depth two slots would be left, or one block. 128 registers of sums; in float32, whose
  // split factors need twice as many as others, they would be spilled.
  if (tile == MatmulTile::Large) return {128, bytes == 4 ? 64 : 128, 64 / bytes, 2, 2, 1, 3};
  // Where there are few blocks, each waits for memory: rows of 128 bytes, of which more is on the way.
  if (tile == MatmulTile::Small) return {64, 64, 128 / bytes, 2, 2, 1, 3};
  // What is read of B bounds the speed: three tiles of 8 KB on the way, and as many blocks as can be.
  return {16, 32, 256 / bytes, 1, 1, 4, 4};
}

constexpr int matmul_tiles_bytes(int bytes, MatmulTile tile) {
  const MatmulShape shape = matmul_shape(bytes, tile);
  return shape.slots * (shape.rows + shape.columns) * shape.inner * bytes;
}

/** Where sums are carried (matmul.cuh): one float32 of a tile for each warp that has a part of it. */
constexpr int matmul_carried_bytes(int bytes, MatmulTile tile) {
  const MatmulShape shape = matmul_shape(bytes, tile);
  return shape.rows * shape.columns * shape.inner_warps * 4;
}

constexpr int matmul_shared_bytes(int bytes, MatmulTile tile, bool carries) {
  return matmul_tiles_bytes(bytes, tile) + (carries ? matmul_carried_bytes(bytes, tile) : 0);
}

/** `AlongA` and `AlongB`: how the factors lie in their tiles. */
template <class ElementType, MatmulTile Kind, Along AlongA, Along AlongB>
struct MatmulTiles {
  using Element = ElementType;
  static constexpr int kElementBytes = sizeof(typename Element::Storage);
  static constexpr MatmulShape kShape = matmul_shape(kElementBytes, Kind);
  static constexpr int kRows = kShape.rows, kColumns = kShape.columns, kInner = kShape.inner, kSlots = kShape.slots;
  static constexpr int kWarps = kShape.row_warps * kShape.column_warps * kShape.inner_warps;
  static constexpr int kThreads = kWarps * kWarpSize, kLeastBlocks = 2;
  static constexpr int kInnerWarps = kShape.inner_warps;
  // Of a warp.
  static constexpr int kWarpRows = kRows / kShape.row_warps, kWarpColumns = kColumns / kShape.column_warps;
  static constexpr int kWarpInner = kInner / kInnerWarps;
  static constexpr int kRowTiles = kWarpRows / 16, kColumnTiles = kWarpColumns / 8;

  using TileOfA = FactorTile<Element, AlongA, kRows, kInner>;
  using TileOfB = FactorTile<Element, AlongB, kColumns, kInner>;
  static constexpr int kSlotBytes = TileOfA::kBytes + TileOfB::kBytes;
  static constexpr int kTilesBytes = matmul_tiles_bytes(kElementBytes, Kind);
  static_assert(kTilesBytes == kSlots * kSlotBytes && 2 * (kTilesBytes + 1024) <= 100 * 1024);
  static_assert(kWarpRows % 16 == 0 && kWarpColumns % 16 == 0 && kWarpInner % 16 == 0);

  /** 16 rows of a warp's sums, on their way to C. */
  using SumTile = FourRowTile<16, kWarpColumns>;
  static_assert(kWarps * (SumTile::kBytes + 4) <= kTilesBytes);
};

}  // namespace flashattn
