// Rows of any length, each of which a team of threads walks over: a warp, a block, or, where neighbouring rows lie side by
// side, the same lane of every warp of a block.
#pragma once
#include "flat.cuh"
#include "vector.cuh"

namespace flashattn {

/** Who walks over a row. */
enum class RowTeam : int32_t { Warp, Block, Columns };

inline constexpr int kRowThreads = 256;
inline constexpr int kRowWarps = kRowThreads / 32;
// A row that a warp walks over in four steps of vectors; what is longer gets a block.
inline constexpr int kMostWarpElements = 1024;
// What a block exchanges: a number of each thread in each of four slots.
inline constexpr int kRowSlots = 4;
inline constexpr int kRowSharedBytes = kRowSlots * kRowThreads * static_cast<int>(sizeof(float));

inline RowTeam team_for(int64_t length) { return length <= kMostWarpElements ? RowTeam::Warp : RowTeam::Block; }

/** Blocks for so many rows, or columns of each of `outer` arrays of rows. */
inline dim3 row_grid(RowTeam team, int64_t rows, int64_t outer = 1) {
  const int64_t per_block = team == RowTeam::Warp ? kRowWarps : team == RowTeam::Block ? 1 : 32;
  return dim3(static_cast<uint32_t>(outer * ((rows + per_block - 1) / per_block)));
}

FLASHATTN_DEVICE int row_warp() { return ptx::thread() / 32; }
FLASHATTN_DEVICE int row_lane() { return ptx::thread() % 32; }

/**
 * The elements of this thread: kVector of them at base = first, first + jump, ... below length, at base + e * gap. They are
 * neighbours where a vector is one access; otherwise threads take neighbours.
 */
struct RowWalk {
  int64_t first, jump, gap, length;

  FLASHATTN_DEVICE RowWalk(RowTeam team, bool vectors, int64_t length) : length(length) {
    const int threads = team == RowTeam::Warp ? 32 : team == RowTeam::Block ? kRowThreads : kRowWarps;
    const int index = team == RowTeam::Warp ? row_lane() : team == RowTeam::Block ? ptx::thread() : row_warp();
    first = vectors ? index * kVector : index;
    jump = threads * kVector;
    gap = vectors ? 1 : threads;
  }
};

/** x = the part at `base` of the row of elements `step` apart that begins at `row`; `rest` beyond the row. */
FLASHATTN_DEVICE void load_part(float (&x)[kVector], DType dtype, const void* data, int64_t row, int64_t step,
                                const RowWalk& walk, int64_t base, bool aligned, float rest = 0) {
  if (walk.gap == 1) {
    load_vector(x, dtype, data, row + base, walk.length - base, aligned);
    for (int e = 0; e < kVector; ++e)
      if (base + e >= walk.length) x[e] = rest;
    return;
  }
  with_element(dtype, [&](auto element) {
    using Element = decltype(element);
    const auto* from = static_cast<const typename Element::Storage*>(data) + row;
    for (int e = 0; e < kVector; ++e) {
      const int64_t i = base + e * walk.gap;
      x[e] = i < walk.length ? Element::load(ptx::load_global(from + i * step)) : rest;
    }
  });
}

FLASHATTN_DEVICE void store_part(DType dtype, void* data, int64_t row, int64_t step, const RowWalk& walk, int64_t base,
                                 bool aligned, const float (&x)[kVector]) {
  if (walk.gap == 1) return store_vector(dtype, data, row + base, x, walk.length - base, aligned);
  with_element(dtype, [&](auto element) {
    using Element = decltype(element);
    auto* to = static_cast<typename Element::Storage*>(data) + row;
    for (int e = 0; e < kVector; ++e) {
      const int64_t i = base + e * walk.gap;
      if (i < walk.length) ptx::store_global(to + i * step, Element::store(x[e]));
    }
  });
}

/** combine over the threads of a row's team, in each of them and always in the same order. A slot is used once. */
template <class Combine>
FLASHATTN_DEVICE float combine_row(RowTeam team, int slot, float x, Combine combine) {
  if (team != RowTeam::Columns)
    for (int mask = 16; mask > 0; mask >>= 1) x = combine(x, ptx::shuffle_xor(x, mask));
  if (team == RowTeam::Warp) return x;
  const auto at = [&](int thread) {
    return ptx::shared_base() + static_cast<uint32_t>((slot * kRowThreads + thread) * sizeof(float));
  };
  ptx::store_shared(at(ptx::thread()), x);
  ptx::sync_threads();
  x = ptx::load_shared<float>(at(row_lane()));
  for (int warp = 1; warp < kRowWarps; ++warp) x = combine(x, ptx::load_shared<float>(at(warp * 32 + row_lane())));
  return x;
}

FLASHATTN_DEVICE float sum_row(RowTeam team, int slot, float x) {
  return combine_row(team, slot, x, [](float a, float b) { return a + b; });
}

}  // namespace flashattn
