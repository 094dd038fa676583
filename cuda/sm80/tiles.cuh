// The shapes of thread blocks, one row for each kernel, kind of element and head dim: the only place to tune.
//
// A warp of forward owns `warp_rows` query rows: 16 x 16 fragments of keys and values read from shared memory are used
// warp_rows / 16 times, so 32 halve the traffic. Registers a thread, of 255: warp_rows / 16 * (head_dim / 2 for out +
// key_tile / 2 for scores) and about 50 for fragments and addresses. `slots` key and value tiles are on the way at once.
#pragma once
#include "../tile.cuh"

namespace flashattn {

/**
 * Large tiles reuse more; small ones fit the 99 KB of compute capability 8.6, 8.9 and 12.0, block masks of 64 and few
 * queries. Extras have small tiles and thin warps: softcap, biases and dropout need registers of their own.
 */
enum class Variant { Large, Small, Extras };

inline constexpr int kSharedMemoryFloor = 99 * 1024;  // what a block can have on every architecture

struct ForwardShape {
  int query_tile, key_tile, warp_rows, slots;
};

/** `bytes` of an element; head_dim is a bucket. */
constexpr ForwardShape forward_shape(int bytes, int head_dim, Variant variant) {
  // Float32 needs twice the room for elements and twice the registers for fragments.
  if (bytes == 4) return {head_dim <= 192 ? 64 : 32, 32, 16, 2};  // 96 KB at 192 and 256
  if (variant == Variant::Large) {
    if (head_dim <= 64) return {128, 128, 32, 2};  // 48 KB at 64, two blocks an SM; 192 registers of accumulators
    if (head_dim <= 128) return {128, 64, 32, 2};  // 64 KB at 128, two blocks an SM; 192 registers
    return {128, 64, 16, 2};                       // 128 KB at 256; 160 registers
  }
  if (variant == Variant::Small) {
    if (head_dim <= 64) return {64, 64, 32, 4};   // 40 KB at 64; 128 registers
    if (head_dim <= 128) return {64, 64, 32, 2};  // 48 KB at 128, two blocks in 99 KB; 192 registers
    return {64, 64, 16, 2};                       // 96 KB at 256; 160 registers
  }
  if (head_dim <= 64) return {64, 64, 16, 4};
  if (head_dim <= 128) return {64, 32, 16, 4};
  return {64, 64, 16, 2};
}

constexpr int forward_shared_bytes(int bytes, int head_dim, Variant variant) {
  const ForwardShape shape = forward_shape(bytes, head_dim, variant);
  return (shape.query_tile + shape.slots * shape.key_tile) * head_dim * bytes;
}

template <class Element, int HeadDim, Variant Kind>
struct ForwardTiles {
  static constexpr int kElementBytes = sizeof(typename Element::Storage);
  static constexpr ForwardShape kShape = forward_shape(kElementBytes, HeadDim, Kind);
  static constexpr int kQueryTile = kShape.query_tile, kKeyTile = kShape.key_tile, kSlots = kShape.slots;
  static constexpr int kWarps = kQueryTile / kShape.warp_rows, kThreads = kWarps * kWarpSize;
  static constexpr int kRowTiles = kShape.warp_rows / 16;  // of a warp
  /**
   * Blocks an SM that registers allow, 0: up to the compiler, which is wrong about extras and spills. Where float32 has one
   * less, more would spill.
   */
  static constexpr int least_blocks() {
    if (Kind != Variant::Extras) return 0;
    if (HeadDim > 128) return 2;
    if (kElementBytes == 2) return 3;
    if (HeadDim == 32) return ptx::kArchitecture < 120 ? 4 : 3;
    return HeadDim == 64 || ptx::kArchitecture < (HeadDim == 96 ? 120 : 100) ? 3 : 2;
  }
  static constexpr int kLeastBlocks = least_blocks();
  using QueryTile = Tile<Element, kQueryTile, HeadDim>;
  using KeyTile = Tile<Element, kKeyTile, HeadDim>;
  static constexpr int kSharedBytes = forward_shared_bytes(kElementBytes, HeadDim, Kind);
  static_assert(Kind == Variant::Large || kSharedBytes <= kSharedMemoryFloor);
  static_assert(kSlots % 2 == 0, "keys and values take turns");
};

/**
 * A block of backward is key_tile / warp_rows rows of warps, and the warps of one row share its keys: each has
 * 1 / column_warps of the dims of dK and dV. Registers a thread, of 255: warp_rows / 16 * (head_dim / column_warps for
 * dK and dV + the queries scored at once for P and dP), then dQ in the place of the scores, and about 50 for fragments
 * and addresses. What it reads from shared memory bounds its speed: for each 16 x 16 x 16 of all five products 4
 * fragments where one warp has 32 rows, 4.5 where two share them, 6 where one warp has 16.
 */
struct BackwardShape {
  int key_tile, query_tile, warps, warp_rows;
  int slots;  // of queries and of d_out: with two, copies overlap a whole tile's work, with one only its dQ

  constexpr int column_warps() const { return warps * warp_rows / key_tile; }
};

constexpr BackwardShape backward_shape(int bytes, int head_dim, Variant variant) {
  if (bytes == 4) {
    if (head_dim <= 64) return {64, 32, 4, 16, 2};   // 73 KB at 64
    if (head_dim <= 96) return {64, 32, 4, 16, 1};   // 81 KB
    if (head_dim <= 128) return {64, 16, 4, 16, 1};  // 84 KB
    return {32, 16, 4, 16, 1};                       // 99 KB at 256
  }
  if (variant == Variant::Large) {
    if (head_dim <= 64) return {128, 64, 4, 32, 2};   // 81 KB at 64, so two blocks an SM; 192 registers
    if (head_dim <= 128) return {128, 64, 8, 32, 2};  // 161 KB at 128; 192 registers
    if (head_dim <= 192) return {64, 64, 8, 32, 2};   // 161 KB; 128 registers
    return {64, 64, 8, 32, 1};                        // 145 KB; 160 registers
  }
  if (head_dim > 192) return {32, 32, 4, 16, 1};  // 69 KB; 144 registers
  if (head_dim > 128) return {64, 32, 8, 16, 1};  // 81 KB; 112 registers
  const int slots = head_dim <= 64 ? 2 : 1;       // 65 KB at 64, 81 KB at 128
  return variant == Variant::Small ? BackwardShape{64, 64, 4, 32, slots} : BackwardShape{64, 64, 8, 16, slots};
}

/** Whether the warps of a row score different queries each and exchange P and dS, instead of all scoring all. */
constexpr bool backward_exchanges(int bytes, int head_dim, Variant variant) {
  return bytes == 2 && backward_shape(bytes, head_dim, variant).column_warps() > 1;
}

constexpr int backward_shared_bytes(int bytes, int head_dim, Variant variant) {
  const BackwardShape shape = backward_shape(bytes, head_dim, variant);
  const int rows = 2 * (shape.key_tile + shape.slots * shape.query_tile);  // keys, values, queries and d_out
  const int score_tiles = backward_exchanges(bytes, head_dim, variant) ? 2 : 1;
  const int row_stats = shape.query_tile * 2 * 4, work = 11 * 16;  // see BackwardBlock
  return (rows * head_dim + score_tiles * shape.key_tile * shape.query_tile) * bytes + row_stats + work;
}

template <class ElementType, int HeadDim, Variant Kind>
struct BackwardTiles {
  using Element = ElementType;
  static constexpr int kElementBytes = sizeof(typename Element::Storage);
  static constexpr BackwardShape kShape = backward_shape(kElementBytes, HeadDim, Kind);
  static constexpr int kKeyTile = kShape.key_tile, kQueryTile = kShape.query_tile, kSlots = kShape.slots;
  static constexpr int kWarps = kShape.warps, kThreads = kWarps * kWarpSize;
  static constexpr int kWarpRows = kShape.warp_rows, kRowTiles = kWarpRows / 16;
  static constexpr int kColumnWarps = kShape.column_warps(), kDims = HeadDim / kColumnWarps;  // of a warp's dK and dV
  static constexpr bool kExchange = backward_exchanges(kElementBytes, HeadDim, Kind);
  static constexpr int kLeastBlocks = Kind == Variant::Extras && kElementBytes == 4 && HeadDim == 32 ? 3 : 1;
  /** Queries that a warp scores at once: fewer in float32, whose fragments take twice the registers. */
  static constexpr int kChunk = kExchange ? kQueryTile / kColumnWarps : kElementBytes == 4 ? 16 : 32;

  /** Of the warps, those side by side along the queries of dQ: the two sides of a warp's part as equal as can be. */
  static constexpr int query_warps() {
    int best = 0, least = 0;
    for (int n = 1; n <= kWarps; n *= 2) {
      if (kQueryTile / 16 % n || HeadDim / 16 % (kWarps / n)) continue;
      const int sides = kQueryTile / 16 / n + HeadDim / 16 / (kWarps / n);
      if (!best || sides < least) {
        best = n;
        least = sides;
      }
    }
    return best;
  }
  static constexpr int kQueryWarps = query_warps(), kDimWarps = kWarps / kQueryWarps;
  static constexpr int kQueryBlocks = kQueryTile / 16 / kQueryWarps, kDimBlocks = HeadDim / 16 / kDimWarps;

  using KeyTile = Tile<Element, kKeyTile, HeadDim>;
  using QueryTile = Tile<Element, kQueryTile, HeadDim>;
  using ScoreTile = Tile<Element, kKeyTile, kQueryTile>;
  static constexpr int kSharedBytes = backward_shared_bytes(kElementBytes, HeadDim, Kind);
  static_assert(Kind == Variant::Large || kSharedBytes <= kSharedMemoryFloor);
  static_assert(kDims % 16 == 0 && kChunk % 16 == 0);
};

/** Tiles of the kernels that form dS for the gradients of bias and relative positions: queries by keys. */
struct GradientShape {
  int query_tile, key_tile;
};

constexpr GradientShape gradient_shape(int bytes, int head_dim) {
  return bytes == 4 && head_dim > 128 ? GradientShape{32, 16} : GradientShape{64, 32};  // 96 KB at most
}

template <class Element, int HeadDim>
struct GradientTiles {
  static constexpr GradientShape kShape = gradient_shape(sizeof(typename Element::Storage), HeadDim);
  static constexpr int kQueryTile = kShape.query_tile, kKeyTile = kShape.key_tile;
  static constexpr int kWarps = kQueryTile / 16, kThreads = kWarps * kWarpSize;
  static constexpr int kLeastBlocks = 3;  // as in ForwardTiles
  using QueryTile = Tile<Element, kQueryTile, HeadDim>;
  using KeyTile = Tile<Element, kKeyTile, HeadDim>;
  static constexpr int kSharedBytes = 2 * (QueryTile::kBytes + KeyTile::kBytes);
  static_assert(kSharedBytes <= kSharedMemoryFloor);
};

}  // namespace flashattn
