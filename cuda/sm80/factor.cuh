// The factors of a product of matrices: from global memory to tiles, and from tiles to the fragments of a warp.
//
// A factor has an outer dim, which C has too, and the inner one that is summed over. Whichever of them is contiguous in
// memory is so in the tile as well: 16 bytes are copied at once, and fragments are read along rows or down columns.
#pragma once
#include <type_traits>

#include "../fragment.cuh"

namespace flashattn {

/** Which dim of a factor its tile has along its rows. */
enum class Along { Inner, Outer };

/**
 * Float32 of which four neighbouring rows are read at once, two chunks of each: down the columns of a factor, and pairs of
 * accumulators. Neighbouring rows start two chunks from each other.
 */
template <int Rows, int Columns>
struct FourRowTile : Tile<Float32, Rows, Columns> {
  using Base = Tile<Float32, Rows, Columns>;
  static_assert(Base::kRowBytes % 128 == 0);

  FLASHATTN_DEVICE static int swizzle(int row) { return (row & 3) << 1 | (row >> 2 & 1); }
  FLASHATTN_DEVICE uint32_t chunk(int row, int c) const {
    return this->base + static_cast<uint32_t>(row * Base::kRowBytes + ((c ^ swizzle(row)) * kChunkBytes));
  }
  FLASHATTN_DEVICE uint32_t element(int row, int column) const {
    return chunk(row, column / Base::kChunk) + static_cast<uint32_t>(column % Base::kChunk * Base::kElementBytes);
  }
};

namespace detail {

template <class Element, Along kAlong, int Outer, int Inner>
struct FactorTileOf {
  using Type = Tile<Element, Outer, Inner>;
};
template <class Element, int Outer, int Inner>
struct FactorTileOf<Element, Along::Outer, Outer, Inner> {
  using Type = Tile<Element, Inner, Outer>;
};
template <int Outer, int Inner>
struct FactorTileOf<Float32, Along::Outer, Outer, Inner> {
  using Type = FourRowTile<Inner, Outer>;
};

}  // namespace detail

template <class Element, Along kAlong, int Outer, int Inner>
using FactorTile = typename detail::FactorTileOf<Element, kAlong, Outer, Inner>::Type;

// To tiles ------------------------------------------------------------------------------------------------------------

/** A factor as its tiles see it. */
struct Factor {
  uint8_t* data;        // [rows, columns]
  int64_t row, column;  // strides in bytes
  int rows, columns;
  bool aligned;  // every row starts at a multiple of 16 bytes

  FLASHATTN_DEVICE Factor(uint8_t* data, int64_t row, int64_t column, int rows, int columns)
      : data(data),
        row(row),
        column(column),
        rows(rows),
        columns(columns),
        aligned(((reinterpret_cast<uintptr_t>(data) | static_cast<uint64_t>(row)) & 15) == 0) {}
};

/** Elements one by one, whatever their strides. */
template <int Threads, class TileType>
FLASHATTN_DEVICE void load_elements(TileType tile, const Factor& from, int first_row, int first_column, int thread) {
  using Storage = typename TileType::Element::Storage;
#pragma unroll 1
  for (int index = thread; index < TileType::kRows * TileType::kRowChunks; index += Threads) {
    const int r = index / TileType::kRowChunks, c = index % TileType::kRowChunks;
    const int row = first_row + r, column = first_column + c * TileType::kChunk;
    detail::ChunkValues<typename TileType::Element> chunk;
#pragma unroll
    for (int k = 0; k < TileType::kChunk; ++k) {
      const bool inside = row < from.rows && column + k < from.columns;
      const uint8_t* source = from.data + row * from.row + (column + k) * from.column;
      chunk.values[k] = inside ? ptx::load_global(reinterpret_cast<const Storage*>(source)) : Storage{};
    }
    ptx::store_shared(tile.chunk(r, c), chunk);
  }
}

/**
 * Starts to fill a tile with what begins at a row and a column of the factor; what lies outside of it becomes zero. Every
 * thread of the block takes part. What it copies asynchronously belongs to the open group.
 */
template <int Threads, class TileType>
FLASHATTN_DEVICE void load_tile(TileType tile, const Factor& from, int first_row, int first_column, int thread) {
  if (from.column != TileType::kElementBytes)
    return load_elements<Threads>(tile, from, first_row, first_column, thread);
  const Rows rows{from.data + first_column * static_cast<int64_t>(TileType::kElementBytes), from.row,
                  min_of(from.columns - first_column, TileType::kColumns), from.aligned};
  load_rows<Threads>(tile, rows, first_row, from.rows, thread);
}

// To fragments: `load(outer, inner)` of a warp whose part of the outer dim begins at `first`. ---------------------------

/** Of 16-bit elements [16, 16]. */
template <class TileType, Along kAlong, template <class> class Fragment, Second kSecondOfRows>
struct FactorReader {
  static constexpr bool kRows = kAlong == Along::Inner;
  static constexpr Second kSecondOfColumns = kSecondOfRows == Second::Below ? Second::Beside : Second::Below;
  using Element = typename TileType::Element;
  std::conditional_t<kRows, RowsAs<TileType, Fragment, kSecondOfRows>, ColumnsAs<TileType, Fragment, kSecondOfColumns>>
      reader;

  FLASHATTN_DEVICE FactorReader(TileType tile, int first, Lane lane) : reader(make(tile, first, lane)) {}
  FLASHATTN_DEVICE static auto make(TileType tile, int first, Lane lane) {
    if constexpr (kRows)
      return RowsAs<TileType, Fragment, kSecondOfRows>(tile, first, lane);
    else
      return ColumnsAs<TileType, Fragment, kSecondOfColumns>(tile, 0, lane, first);
  }
  FLASHATTN_DEVICE Fragment<Element> load(int outer, int inner) const {
    return kRows ? reader.load(outer, inner) : reader.load(inner, outer);
  }
};

/**
 * Float32 [16, 8] or [8, 16], each of a lane's words split into two tf32 numbers. An infinity times the small part of a
 * number, which may be 0 or of the other sign, is what it should not be: `infinite` tells that there is one.
 */
struct SplitWords {
  uint32_t big[4], small[4];
  bool infinite;

  FLASHATTN_DEVICE static SplitWords of(const uint32_t (&words)[4]) {
    SplitWords result;
    result.infinite = false;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const detail::Split split(words[i]);
      result.big[i] = split.big;
      result.small[i] = split.small;
      result.infinite = result.infinite || (words[i] & 0x7fffffffu) == 0x7f800000u;
    }
    return result;
  }
};

/** Of float32, half a fragment. Along rows as ldmatrix gives it: inner positions quad and quad + 4. */
template <int Rows, int Columns, template <class> class Fragment, Second kSecond>
struct FactorReader<Tile<Float32, Rows, Columns>, Along::Inner, Fragment, kSecond> {
  using TileType = Tile<Float32, Rows, Columns>;
  Place<TileType> place;

  FLASHATTN_DEVICE FactorReader(TileType tile, int first, Lane lane)
      : place(detail::fragment_place<kSecond>(tile, first, 0, lane)) {}
  FLASHATTN_DEVICE SplitWords load(int outer, int inner) const {
    uint32_t words[4];
    ptx::ldmatrix_x4(words, place.at(outer, inner / TileType::kChunk));
    return SplitWords::of(words);
  }
};

/** Down columns word by word: the same positions, which those of fragment.cuh are not. */
template <int Rows, int Columns, template <class> class Fragment, Second kSecond>
struct FactorReader<FourRowTile<Rows, Columns>, Along::Outer, Fragment, kSecond> {
  using TileType = FourRowTile<Rows, Columns>;
  Place<TileType> near, far;  // of inner positions quad and quad + 4
  uint32_t offset;

  FLASHATTN_DEVICE FactorReader(TileType tile, int first, Lane lane)
      : near(tile, lane.quad, lane.group / 4 + first / TileType::kChunk),
        far(tile, lane.quad + 4, lane.group / 4 + first / TileType::kChunk),
        offset(static_cast<uint32_t>(lane.group % 4 * 4)) {}
  FLASHATTN_DEVICE SplitWords load(int outer, int inner) const {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool is_far = kSecond == Second::Below ? i / 2 : i % 2, is_next = kSecond == Second::Below ? i % 2 : i / 2;
      const int c = (outer + (is_next ? 8 : 0)) / TileType::kChunk;
      words[i] = ptx::load_shared<uint32_t>((is_far ? far : near).at(inner, c) + offset);
    }
    return SplitWords::of(words);
  }
};

template <class TileType, Along kAlong>
using ReaderOfA = FactorReader<TileType, kAlong, FragmentA, Second::Below>;
template <class TileType, Along kAlong>
using ReaderOfB = FactorReader<TileType, kAlong, FragmentB, Second::Beside>;

// Products ------------------------------------------------------------------------------------------------------------

/**
 * As `multiply` of fragment.cuh, for 8 inner positions: tensor cores add what belongs to one product, sums are rounded. A
 * factor that is exact has no small parts.
 */
template <bool kExactA = false, bool kExactB = false, class Split>
FLASHATTN_DEVICE void multiply(float (&left)[4], float (&right)[4], const Split& a, const Split& b) {
  float left_part[4] = {}, right_part[4] = {};
  if constexpr (!kExactA) {
    ptx::mma_tf32(left_part, a.small, b.big[0], b.big[1]);
    ptx::mma_tf32(right_part, a.small, b.big[2], b.big[3]);
  }
  if constexpr (!kExactB) {
    ptx::mma_tf32(left_part, a.big, b.small[0], b.small[1]);
    ptx::mma_tf32(right_part, a.big, b.small[2], b.small[3]);
  }
  ptx::mma_tf32(left_part, a.big, b.big[0], b.big[1]);
  ptx::mma_tf32(right_part, a.big, b.big[2], b.big[3]);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    left[i] += left_part[i];
    right[i] += right_part[i];
  }
}

/**
 * sums += A B over inner positions [begin, begin + Count) of the tiles; whether an infinity among them may have made
 * NaNs of what would have been infinite.
 */
template <int Count, int RowTiles, int ColumnTiles, class OfA, class OfB>
FLASHATTN_DEVICE bool add_products(Sums<RowTiles, ColumnTiles>& sums, const OfA& a, const OfB& b, int begin) {
  using RowFragment = decltype(a.load(0, 0));
  constexpr bool kSplit = std::is_same_v<RowFragment, SplitWords>;
  constexpr int kStep = kSplit ? 8 : 16;
  bool infinite = false;
#pragma unroll(kSplit ? 1 : Count / kStep)  // as `unrolled` of fragment.cuh
  for (int k = begin; k < begin + Count; k += kStep) {
    RowFragment rows[RowTiles];
#pragma unroll
    for (int m = 0; m < RowTiles; ++m) {
      rows[m] = a.load(m * 16, k);
      if constexpr (kSplit) infinite = infinite || rows[m].infinite;
    }
#pragma unroll
    for (int n = 0; n < ColumnTiles / 2; ++n) {
      const auto columns = b.load(n * 16, k);
      if constexpr (kSplit) infinite = infinite || columns.infinite;
#pragma unroll
      for (int m = 0; m < RowTiles; ++m) multiply(sums.s[m][2 * n], sums.s[m][2 * n + 1], rows[m], columns);
    }
  }
  return infinite;
}

}  // namespace flashattn
