// Tiles of the recurrence: float32 in shared memory, and products of tensor cores.
//
// Everything is float32 there, whatever the dtype of tensors: decays multiply keys and queries, and states stay float32.
// Products split each factor into two tf32 numbers, as factor.cuh does; what 16-bit elements hold is one exactly.
#pragma once
#include "../launch_error.h"
#include "../vector.cuh"
#include "factor.cuh"
#include "recurrence_parts.h"

namespace flashattn {

struct RecurrenceTiles {
  static constexpr int kThreads = 256, kWarps = kThreads / kWarpSize;
  static constexpr int kChunk = 64;  // positions between two states, as on the processor: native/cpu/linear/chunk.h
  static constexpr int kBlock = 16;  // positions within which decays by channel are met one by one; a row of fragments
  static constexpr int kBlocks = kChunk / kBlock;
  static constexpr int kKeyTile = 32;  // channels of keys and queries at a time: wider ones leave no room for the state
};

inline constexpr int kRecurrenceThreads = RecurrenceTiles::kThreads, kRecurrenceChunk = RecurrenceTiles::kChunk;
inline constexpr int kRecurrenceBlock = RecurrenceTiles::kBlock, kRecurrenceBlocks = RecurrenceTiles::kBlocks;
inline constexpr int kKeyTile = RecurrenceTiles::kKeyTile;
static_assert(kRecurrenceChunk * kKeyTile == kVector * kRecurrenceThreads, "a vector of a tile for each thread");

/**
 * A matrix of float32 in shared memory, in chunks of four whose order is permuted from row to row: fragments are read along
 * rows (eight rows, four neighbours) and down columns (four rows, eight neighbours) without bank conflicts.
 */
template <int Columns>
struct FloatTile {
  static constexpr int kColumns = Columns;
  static_assert(Columns % 32 == 0);
  static constexpr int bytes(int rows) { return rows * kColumns * static_cast<int>(sizeof(float)); }

  uint32_t base;

  FLASHATTN_DEVICE uint32_t at(int row, int column) const {
    const int swizzle = (row & 3) << 3 | (row & 4);
    return base + static_cast<uint32_t>((row * kColumns + (column ^ swizzle)) * static_cast<int>(sizeof(float)));
  }
  FLASHATTN_DEVICE float operator()(int row, int column) const { return ptx::load_shared<float>(at(row, column)); }
  FLASHATTN_DEVICE void set(int row, int column, float x) const { ptx::store_shared(at(row, column), x); }
};

using KeyTileOfChunk = FloatTile<kKeyTile>;         // [kRecurrenceChunk, kKeyTile]
using ScoresOfChunk = FloatTile<kRecurrenceChunk>;  // [query, key]

/** Floats in shared memory. */
struct FloatLine {
  uint32_t base;

  FLASHATTN_DEVICE uint32_t at(int i) const {
    return base + static_cast<uint32_t>(i * static_cast<int>(sizeof(float)));
  }
  FLASHATTN_DEVICE float operator()(int i) const { return ptx::load_shared<float>(at(i)); }
  FLASHATTN_DEVICE void set(int i, float x) const { ptx::store_shared(at(i), x); }
};

/** Whether tensor cores may have it: finite, and so is what it is rounded to. */
FLASHATTN_DEVICE bool is_ordinary(float x) { return (ptx::bits_of(x) & 0x7fffffffu) < 0x7f7ff000u; }

/** f(a kind as a constant) */
template <class F>
cudaError_t with_kind(RecurrenceKind kind, F f) {
  using Kind = RecurrenceKind;
  switch (kind) {
    case Kind::Channels: return f(std::integral_constant<Kind, Kind::Channels>{});
    case Kind::Positions: return f(std::integral_constant<Kind, Kind::Positions>{});
    case Kind::NarrowPositions: return f(std::integral_constant<Kind, Kind::NarrowPositions>{});
    case Kind::Delta: return f(std::integral_constant<Kind, Kind::Delta>{});
    case Kind::LowRank: return f(std::integral_constant<Kind, Kind::LowRank>{});
    default: return f(std::integral_constant<Kind, Kind::NarrowDelta>{});
  }
}

// Products ------------------------------------------------------------------------------------------------------------

/** [16, 16 kPairs] of a warp. */
template <int kPairs>
using WarpSums = Sums<1, 2 * kPairs>;

/** Made anew wherever it is used: places in tiles that were kept would take the registers of sums. */
FLASHATTN_DEVICE Lane lane_here() { return Lane(ptx::opaque(ptx::thread())); }

/** f(row, column, sum) for what a lane holds of a warp's sums that begin at a row and a column. */
template <int kPairs, class F>
FLASHATTN_DEVICE void for_each_sum(WarpSums<kPairs>& sums, int row, int column, F f) {
  const Lane lane = lane_here();
#pragma unroll
  for (int n = 0; n < 2 * kPairs; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      f(row + lane.group + e / 2 * 8, column + n * 8 + 2 * lane.quad + e % 2, sums.s[0][n][e]);
}

/** Which inner positions a row of a product meets: all, those up to its own or before it, those from its own on or behind it. */
enum class Reach { All, Past, Before, Future, After };

inline constexpr bool reaches_back(Reach reach) { return reach == Reach::Past || reach == Reach::Before; }
inline constexpr bool reaches_on(Reach reach) { return reach == Reach::Future || reach == Reach::After; }

/** Which factors of a product are tf32 numbers as they are. */
enum class Exact { Neither, First, Second, Both };

/** Ordinary floats as sums of two tf32 numbers: rounded by adding half of what is cut, and the rest, which is cut again. */
struct SplitFloats {
  uint32_t big[4], small[4];

  template <bool kExact>
  FLASHATTN_DEVICE static SplitFloats of(const float (&x)[4]) {
    SplitFloats result;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      result.big[i] = kExact ? ptx::bits_of(x[i]) : (ptx::bits_of(x[i]) + 0x1000u) & 0xffffe000u;
      result.small[i] = kExact ? 0u : ptx::bits_of(x[i] - ptx::float_of(result.big[i]));
    }
    return result;
  }
};

/** Of the sums of a warp, whose place is a multiple of 16. `careful`: in float32, and nothing is met that must not be. */
struct WarpProduct {
  int row, column, begin, end;  // inner positions
  bool careful;
};

/** sums += A B, where a(row, inner) and b(inner, column) are elements. Every lane of the warp takes part. */
template <Reach kReach = Reach::All, Exact kExact = Exact::Neither, int kHalves, class A, class B>
FLASHATTN_DEVICE void multiply_warp(Sums<1, kHalves>& sums, const WarpProduct& at, A a, B b) {
  constexpr int kPairs = kHalves / 2;
  constexpr bool kExactA = kExact == Exact::First || kExact == Exact::Both;
  constexpr bool kExactB = kExact == Exact::Second || kExact == Exact::Both;
  if (at.careful) {
    for_each_sum<kPairs>(sums, at.row, at.column, [&](int row, int column, float& sum) {
      const int begin = reaches_on(kReach) ? max_of(at.begin, kReach == Reach::After ? row + 1 : row) : at.begin;
      const int end = reaches_back(kReach) ? min_of(at.end, kReach == Reach::Before ? row : row + 1) : at.end;
#pragma unroll 1
      for (int k = begin; k < end; ++k) sum += a(row, k) * b(k, column);
    });
    return;
  }
  const int begin = reaches_on(kReach) ? max_of(at.begin, at.row) : at.begin;
  const int end = reaches_back(kReach) ? min_of(at.end, at.row + 16) : at.end;
  const Lane lane = lane_here();
  const int row = at.row + lane.group, column = at.column + lane.group;
#pragma unroll 1
  for (int k = begin; k < end; k += 8) {
    const int near = k + lane.quad, far = near + 4;
    const float rows[4] = {a(row, near), a(row + 8, near), a(row, far), a(row + 8, far)};
    const SplitFloats of_rows = SplitFloats::of<kExactA>(rows);
#pragma unroll
    for (int n = 0; n < kPairs; ++n) {
      const int c = column + n * 16;
      const float columns[4] = {b(near, c), b(far, c), b(near, c + 8), b(far, c + 8)};
      multiply<kExactA, kExactB>(sums.s[0][2 * n], sums.s[0][2 * n + 1], of_rows, SplitFloats::of<kExactB>(columns));
    }
  }
}

}  // namespace flashattn
