// Matrix products of a warp: C [16, 16] += A [16, 16] B [16, 16], with A and B read from tiles or made of accumulators.
//
// A lane has group = lane / 4 and quad = lane % 4. Of an accumulator [16, 8] it holds (row group, columns 2 quad and
// 2 quad + 1) and the same of row group + 8. 16-bit elements use one m16n8k16 per accumulator. Float32 uses m16n8k8 with
// every factor split into two tf32 numbers, 22 bits in all, and three products (Ootomo and Yokota, "Recovering single
// precision accuracy from Tensor Cores", 2022): the product of the two small parts is below the rounding of the sum.
#pragma once
#include "tile.cuh"

namespace flashattn {

struct Lane {
  int group, quad, index;

  FLASHATTN_DEVICE explicit Lane(int thread) : group(thread >> 2 & 7), quad(thread & 3), index(thread & 31) {}
};

template <class Element>
struct FragmentA {
  uint32_t r[4];
};
template <class Element>
struct FragmentB {
  uint32_t r[4];  // two of the left half, two of the right
};

/**
 * Of float32: two halves of 8 inner positions. Where an operand is read down its columns or comes from accumulators,
 * positions (2 quad, 2 quad + 1) stand in the places of (quad, quad + 4), on both sides of the product.
 */
template <>
struct FragmentA<Float32> {
  uint32_t r[2][4];
};
template <>
struct FragmentB<Float32> {
  uint32_t r[2][4];
};

namespace detail {

FLASHATTN_DEVICE void mma(Float16, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  ptx::mma_f16(c, a, b0, b1);
}
FLASHATTN_DEVICE void mma(BFloat16, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  ptx::mma_bf16(c, a, b0, b1);
}

}  // namespace detail

/** Which of the two factors' small parts are added first, where there are some. */
enum class SmallFirst { OfA, OfB };

template <SmallFirst = SmallFirst::OfA, class Element>
FLASHATTN_DEVICE void multiply(float (&left)[4], float (&right)[4], const FragmentA<Element>& a,
                               const FragmentB<Element>& b) {
  detail::mma(Element{}, left, a.r, b.r[0], b.r[1]);
  detail::mma(Element{}, right, a.r, b.r[2], b.r[3]);
}

namespace detail {

struct Split {
  uint32_t big, small;

  FLASHATTN_DEVICE explicit Split(uint32_t bits) : big(ptx::to_tf32(ptx::float_of(bits))) {
    constexpr uint32_t kMagnitude = 0x7fffffffu, kInfinite = 0x7f800000u, kKept = 0xffffe000u;
    // The largest numbers are cut: rounded they would be infinite, and a product with their rest a NaN.
    if ((big & kMagnitude) == kInfinite) big = bits & kKept;
    // An infinity minus itself would make every product a NaN. Of a NaN `big` keeps the high bits alone, and may be an
    // infinity: `small` stays one.
    const float rest = ptx::float_of(bits) - ptx::float_of(big);
    small = ptx::to_tf32((bits & kMagnitude) == kInfinite ? 0.0f : rest);
  }
};

}  // namespace detail

/**
 * Tensor cores cut sums towards zero, which adds up: over thousands of keys to far more than float32 rounds away. They
 * only add what belongs to one product; the sums that go on are left to additions that round (Ootomo and Yokota too).
 */
template <SmallFirst Order = SmallFirst::OfA>
FLASHATTN_DEVICE void multiply(float (&left)[4], float (&right)[4], const FragmentA<Float32>& a,
                               const FragmentB<Float32>& b) {
  float left_part[4] = {}, right_part[4] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t big[4], small[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const detail::Split split(a.r[half][i]);
      big[i] = split.big;
      small[i] = split.small;
    }
    const detail::Split b0(b.r[half][0]), b1(b.r[half][1]), b2(b.r[half][2]), b3(b.r[half][3]);
    if (Order == SmallFirst::OfA) {
      ptx::mma_tf32(left_part, small, b0.big, b1.big);
      ptx::mma_tf32(right_part, small, b2.big, b3.big);
    }
    ptx::mma_tf32(left_part, big, b0.small, b1.small);
    ptx::mma_tf32(right_part, big, b2.small, b3.small);
    if (Order == SmallFirst::OfB) {
      ptx::mma_tf32(left_part, small, b0.big, b1.big);
      ptx::mma_tf32(right_part, small, b2.big, b3.big);
    }
    ptx::mma_tf32(left_part, big, b0.big, b1.big);
    ptx::mma_tf32(right_part, big, b2.big, b3.big);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    left[i] += left_part[i];
    right[i] += right_part[i];
  }
}

/**
 * How many of `steps` along the inner dim to unroll: products of float32 do not wait for each other's sums, so that
 * unrolled ones would all begin at once, and registers run out.
 */
template <class Element>
constexpr int unrolled(int steps) {
  return sizeof(typename Element::Storage) == 4 ? 1 : steps;
}

/** A from two neighbouring accumulators [16, 8] each. */
template <class Element>
FLASHATTN_DEVICE FragmentA<Element> fragment_of(const float (&left)[4], const float (&right)[4]) {
  return {{Element::pack(left[0], left[1]), Element::pack(left[2], left[3]), Element::pack(right[0], right[1]),
           Element::pack(right[2], right[3])}};
}
template <>
FLASHATTN_DEVICE FragmentA<Float32> fragment_of<Float32>(const float (&left)[4], const float (&right)[4]) {
  return {{{ptx::bits_of(left[0]), ptx::bits_of(left[2]), ptx::bits_of(left[1]), ptx::bits_of(left[3])},
           {ptx::bits_of(right[0]), ptx::bits_of(right[2]), ptx::bits_of(right[1]), ptx::bits_of(right[3])}}};
}

// Operands in tiles. Each reader fixes a lane's place once; `load` then moves by constants.
//
// A fragment is four matrices [8, 8]. Of them the second lies below the first in the tile and the third beside it, or the
// second beside and the third below.

enum class Second { Below, Beside };

namespace detail {

/** The place of the matrix row that a lane names: `row` and `column` are those of the fragment. */
template <Second kSecond, class TileType>
FLASHATTN_DEVICE Place<TileType> fragment_place(TileType tile, int row, int column, Lane lane) {
  const bool below = kSecond == Second::Below;
  return {tile, row + (below ? lane.index % 16 : lane.index % 8 + lane.index / 16 * 8),
          (below ? lane.index / 16 : lane.index / 8 % 2) + column / TileType::kChunk};
}

}  // namespace detail

/** Rows of the tile are rows of the fragment; `row` and `inner` are multiples of 16. */
template <class TileType, template <class> class Fragment, Second kSecond>
struct RowsAs {
  using Element = typename TileType::Element;
  Place<TileType> place;

  FLASHATTN_DEVICE RowsAs(TileType tile, int row, Lane lane)
      : place(detail::fragment_place<kSecond>(tile, row, 0, lane)) {}

  FLASHATTN_DEVICE Fragment<Element> load(int row, int inner) const {
    Fragment<Element> f;
    const int c = inner / TileType::kChunk;
    if constexpr (TileType::kElementBytes == 2) {
      ptx::ldmatrix_x4(f.r, place.at(row, c));
    } else {
      ptx::ldmatrix_x4(f.r[0], place.at(row, c));
      ptx::ldmatrix_x4(f.r[1], place.at(row, c + 2));
    }
    return f;
  }
};

/** Columns of the tile are rows of the fragment; all are multiples of 16. */
template <class TileType, template <class> class Fragment, Second kSecond>
struct ColumnsAs {
  using Element = typename TileType::Element;
  Place<TileType> place;

  FLASHATTN_DEVICE ColumnsAs(TileType tile, int inner, Lane lane, int column = 0)
      : place(detail::fragment_place<kSecond>(tile, inner, column, lane)) {}

  FLASHATTN_DEVICE Fragment<Element> load(int inner, int column) const {
    Fragment<Element> f;
    ptx::ldmatrix_x4_trans(f.r, place.at(inner, column / TileType::kChunk));
    return f;
  }
};

/**
 * ldmatrix transposes 16-bit elements only: float32 goes word by word. A matrix [8, 4] of a fragment has the even, or the
 * odd, of 8 rows of the tile: inner positions 2 quad, or 2 quad + 1.
 */
template <int Rows, int Columns, template <class> class Fragment, Second kSecond>
struct ColumnsAs<Tile<Float32, Rows, Columns>, Fragment, kSecond> {
  using TileType = Tile<Float32, Rows, Columns>;
  Place<TileType> even, odd;
  uint32_t offset;

  FLASHATTN_DEVICE ColumnsAs(TileType tile, int inner, Lane lane, int column = 0)
      : even(tile, inner + 2 * lane.quad, lane.group / 4 + column / TileType::kChunk),
        odd(tile, inner + 2 * lane.quad + 1, lane.group / 4 + column / TileType::kChunk),
        offset(static_cast<uint32_t>(lane.group % 4 * 4)) {}

  FLASHATTN_DEVICE Fragment<Float32> load(int inner, int column) const {
    Fragment<Float32> f;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool below = kSecond == Second::Below ? i % 2 : i / 2, beside = kSecond == Second::Below ? i / 2 : i % 2;
        const int c = (column + (beside ? 8 : 0)) / TileType::kChunk;
        f.r[half][i] = ptx::load_shared<uint32_t>((below ? odd : even).at(inner + half * 8, c) + offset);
      }
    return f;
  }
};

/** A [rows, inner] as it lies in the tile. */
template <class TileType>
using RowsAsA = RowsAs<TileType, FragmentA, Second::Below>;
/** B [inner, columns] whose transpose lies in the tile: K of Q K^T. */
template <class TileType>
using RowsAsB = RowsAs<TileType, FragmentB, Second::Beside>;
/** A [rows, inner] whose transpose lies in the tile: dS of dS K, kept as dS^T. */
template <class TileType>
using ColumnsAsA = ColumnsAs<TileType, FragmentA, Second::Beside>;
/** B [inner, columns] as it lies in the tile: V of P V. */
template <class TileType>
using ColumnsAsB = ColumnsAs<TileType, FragmentB, Second::Below>;

/** What a warp's products are added up in: [16 RowTiles, 8 ColumnTiles], four elements a lane of each 16 x 8. */
template <int RowTiles, int ColumnTiles>
struct Sums {
  float s[RowTiles][ColumnTiles][4];

  FLASHATTN_DEVICE void clear() {
#pragma unroll
    for (auto& row : s)
#pragma unroll
      for (auto& quad : row) quad[0] = quad[1] = quad[2] = quad[3] = 0.0f;
  }
};

}  // namespace flashattn
