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
  const int queries = variant == Variant::Large ? 128 : 64, rows = variant == Variant::Extras ? 16 : 32;
  if (head_dim <= 64) return {queries, 64, rows, 4};   // 48 KB at 64; 128 registers of accumulators
  if (head_dim <= 128) return {queries, 32, rows, 4};  // 64 KB at 128, so two blocks an SM; 160 registers
  return {queries, 64, 16, 2};                         // 128 KB at 256, 96 KB small; 160 registers
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
  using QueryTile = Tile<Element, kQueryTile, HeadDim>;
  using KeyTile = Tile<Element, kKeyTile, HeadDim>;
  static constexpr int kSharedBytes = forward_shared_bytes(kElementBytes, HeadDim, Kind);
  static_assert(Kind == Variant::Large || kSharedBytes <= kSharedMemoryFloor);
  static_assert(kSlots % 2 == 0, "keys and values take turns");
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
  using QueryTile = Tile<Element, kQueryTile, HeadDim>;
  using KeyTile = Tile<Element, kKeyTile, HeadDim>;
  static constexpr int kSharedBytes = 2 * (QueryTile::kBytes + KeyTile::kBytes);
  static_assert(kSharedBytes <= kSharedMemoryFloor);
};

}  // namespace flashattn
