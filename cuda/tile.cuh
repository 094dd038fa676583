// Matrices in shared memory: row-major, in chunks of 16 bytes whose order is permuted from row to row (a swizzle), so
// that eight rows read at one chunk column, or four rows at two, hit all 32 banks once.
#pragma once
#include "element.cuh"
#include "head_dim.h"
#include "structs/attention.h"

namespace flashattn {

FLASHATTN_DEVICE int min_of(int a, int b) { return a < b ? a : b; }
FLASHATTN_DEVICE int max_of(int a, int b) { return a > b ? a : b; }
constexpr int divide_up(int n, int by) { return (n + by - 1) / by; }

inline constexpr int kChunkBytes = 16;
inline constexpr int kWarpSize = 32;

template <class ElementType, int Rows, int Columns>
struct Tile {
  using Element = ElementType;
  static constexpr int kRows = Rows, kColumns = Columns;
  static constexpr int kElementBytes = sizeof(typename Element::Storage);
  static constexpr int kChunk = kChunkBytes / kElementBytes;  // elements of a chunk
  static constexpr int kRowChunks = Columns / kChunk;
  static constexpr int kRowBytes = Columns * kElementBytes;
  static constexpr int kBytes = Rows * kRowBytes;
  // A row of a multiple of 128 bytes starts at bank 0: rows 0-7 need eight permutations. A row of an odd multiple of 64
  // bytes starts at bank 0 or 16 in turn: each pair of rows shares one of four.
  static_assert(kRowBytes % 64 == 0, "rows of whole half bank lines");
  static constexpr int kSwizzleMask = kRowBytes % 128 == 0 ? 7 : 3;
  static constexpr int kSwizzleShift = kRowBytes % 128 == 0 ? 0 : 1;

  uint32_t base;  // shared memory, a multiple of 128

  FLASHATTN_DEVICE static int swizzle(int row) { return (row >> kSwizzleShift) & kSwizzleMask; }
  FLASHATTN_DEVICE uint32_t chunk(int row, int c) const {
    return base + static_cast<uint32_t>(row * kRowBytes + ((c ^ swizzle(row)) * kChunkBytes));
  }
  FLASHATTN_DEVICE uint32_t element(int row, int column) const {
    return chunk(row, column / kChunk) + static_cast<uint32_t>(column % kChunk * kElementBytes);
  }
};

/** A lane's place in a tile, moved by constant steps: the swizzle costs one exclusive or. */
template <class TileType>
struct Place {
  uint32_t origin;  // of the lane's row, with its chunk permuted

  FLASHATTN_DEVICE Place(TileType tile, int row, int c) : origin(tile.chunk(row, c)) {}
  /** `rows` below (a multiple of 8), and with the bits of `c` added to the chunk: the lane's own chunk has none of them. */
  FLASHATTN_DEVICE uint32_t at(int rows, int c) const {
    constexpr int kMask = TileType::kSwizzleMask;
    return (origin ^ static_cast<uint32_t>((c & kMask) * kChunkBytes)) +
           static_cast<uint32_t>(rows * TileType::kRowBytes + (c & ~kMask) * kChunkBytes);
  }
};

/** Rows of one head of a tensor in global memory. */
struct Rows {
  uint8_t* data;   // [rows, dim]
  int64_t stride;  // bytes
  int dim;         // elements
  bool aligned;    // every row starts at a multiple of 16 bytes

  /** From one that lies at `data`. */
  template <class Element>
  FLASHATTN_DEVICE static Rows at(uint8_t* data, const TensorRef& t, int dim) {
    const int64_t stride = t.seq * static_cast<int64_t>(sizeof(typename Element::Storage));
    return {data, stride, dim, ((reinterpret_cast<uintptr_t>(data) | static_cast<uint64_t>(stride)) & 15) == 0};
  }
  template <class Element>
  FLASHATTN_DEVICE static Rows of(const TensorRef& t, int b, int64_t first, int h, int dim) {
    const int64_t elements = b * t.batch + first * t.seq + h * t.head;
    return at<Element>(
        static_cast<uint8_t*>(t.data) + elements * static_cast<int64_t>(sizeof(typename Element::Storage)), t, dim);
  }
};

/** Stores two neighbouring elements, of an even column. */
template <class Element>
FLASHATTN_DEVICE void store_pair(uint32_t to, float first, float second) {
  if constexpr (sizeof(typename Element::Storage) == 2)
    ptx::store_shared(to, Element::pack(first, second));
  else
    ptx::store_shared(to, make_float2(first, second));
}
template <class TileType>
FLASHATTN_DEVICE void store_pair(TileType tile, int row, int column, float first, float second) {
  store_pair<typename TileType::Element>(tile.element(row, column), first, second);
}

namespace detail {

template <class Element>
struct ChunkValues {
  static constexpr int kCount = kChunkBytes / static_cast<int>(sizeof(typename Element::Storage));
  alignas(16) typename Element::Storage values[kCount];
};

/** Chunk column `c` of a tile's rows, from `top` on, in parts of Size bytes: for rows that are aligned to no more. */
template <int Size, int Step, class TileType>
FLASHATTN_DEVICE void load_parts(TileType tile, const Rows& from, const uint8_t* source, int top, int c, int first,
                                 int end) {
  const int columns = max_of(0, min_of(from.dim - c * TileType::kChunk, TileType::kChunk));
#pragma unroll 1
  for (int r = top; r < TileType::kRows; r += Step, source += Step * from.stride) {
    const int bytes = first + r < end ? columns * TileType::kElementBytes : 0;
#pragma unroll
    for (int part = 0; part < kChunkBytes; part += Size) {
      const int count = max_of(0, min_of(bytes - part, Size));
      ptx::cp_async<Size>(tile.chunk(r, c) + part, count ? source + part : from.data, count);
    }
  }
}

}  // namespace detail

/**
 * Starts to copy rows [first, first + kRows) into a tile; rows from `end` on and columns from the dim on become zero.
 * Every thread of the block takes part. What it copies asynchronously belongs to the open group.
 */
template <int Threads, class TileType>
FLASHATTN_DEVICE void load_rows(TileType tile, const Rows& from, int first, int end, int thread) {
  using Element = typename TileType::Element;
  using Storage = typename Element::Storage;
  // A thread keeps to one column of chunks, so that its addresses move by constants.
  constexpr int kPass = Threads / TileType::kRowChunks, kPasses = divide_up(TileType::kRows, kPass);
  const unsigned place_of = static_cast<unsigned>(thread);  // division by a constant is a shift for these alone
  const int top = place_of / TileType::kRowChunks, c = place_of % TileType::kRowChunks;
  if (kPass * TileType::kRowChunks < Threads && top >= kPass) return;
  const int columns = max_of(0, min_of(from.dim - c * TileType::kChunk, TileType::kChunk));
  const uint8_t* source = from.data + (first + top) * from.stride + c * kChunkBytes;
  if (from.aligned && from.dim == TileType::kColumns && first + TileType::kRows <= end &&
      TileType::kRows % kPass == 0) {
    // Almost all tiles: no copy has a size of its own, and where a pass is a whole number of swizzles, no swizzle.
    const int64_t step = kPass * from.stride;
    const Place<TileType> place(tile, top, c);
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass, source += step)
      ptx::cp_async<16>(kPass % 8 == 0 ? place.at(pass * kPass, 0) : tile.chunk(top + pass * kPass, c), source);
    return;
  }
  if (from.aligned) {
    int r = top;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass, r += kPass, source += kPass * from.stride) {
      if (TileType::kRows % kPass && r >= TileType::kRows) break;
      const int bytes = first + r < end ? columns * TileType::kElementBytes : 0;
      ptx::cp_async<16>(tile.chunk(r, c), bytes ? source : from.data, bytes);
    }
    return;
  }
  // Rows of an odd number of elements, or of a few of them between others.
  const uint64_t places = reinterpret_cast<uintptr_t>(from.data) | static_cast<uint64_t>(from.stride);
  if (places % 8 == 0) return detail::load_parts<8, kPass>(tile, from, source, top, c, first, end);
  if (places % 4 == 0) return detail::load_parts<4, kPass>(tile, from, source, top, c, first, end);
#pragma unroll 1
  for (int r = top; r < TileType::kRows; r += kPass, source += kPass * from.stride) {
    detail::ChunkValues<Element> chunk;
#pragma unroll
    for (int k = 0; k < TileType::kChunk; ++k)
      chunk.values[k] =
          k < columns && first + r < end ? ptx::load_global(reinterpret_cast<const Storage*>(source) + k) : Storage{};
    ptx::store_shared(tile.chunk(r, c), chunk);
  }
}

/** Copies a warp's own rows [row, row + Count) of a tile to rows `first` + row... in global memory, up to `end`. */
template <int Count, class TileType>
FLASHATTN_DEVICE void store_rows(TileType tile, const Rows& to, int row, int first, int end, int lane) {
  using Element = typename TileType::Element;
  using Storage = typename Element::Storage;
  constexpr int kChunks = Count * TileType::kRowChunks;
  static_assert(kChunks % kWarpSize == 0);
#pragma unroll 4  // addresses of all chunks at once would not fit in registers
  for (int i = 0; i < kChunks / kWarpSize; ++i) {
    const int index = i * kWarpSize + lane, r = row + index / TileType::kRowChunks, c = index % TileType::kRowChunks;
    const int count = first + r < end ? min_of(to.dim - c * TileType::kChunk, TileType::kChunk) : 0;
    const auto chunk = ptx::load_shared<detail::ChunkValues<Element>>(tile.chunk(r, c));
    if (count <= 0) continue;
    uint8_t* target = to.data + (first + r) * to.stride + c * kChunkBytes;
    if (to.aligned && count == TileType::kChunk) {
      ptx::store_global(reinterpret_cast<detail::ChunkValues<Element>*>(target), chunk);
    } else {
#pragma unroll
      for (int k = 0; k < TileType::kChunk; ++k)
        if (k < count) ptx::store_global(reinterpret_cast<Storage*>(target) + k, chunk.values[k]);
    }
  }
}

}  // namespace flashattn
