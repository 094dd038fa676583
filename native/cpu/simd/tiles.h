// Matrix registers (AMX): eight tiles of 16 rows of 16 words. One instruction multiplies a tile of pairs of bfloat16 with
// another and adds the products to a tile of float32. FLASHATTN_EMULATED_TILES stands in for them on machines without.
#pragma once
#include "simd/simd.h"

namespace flashattn {

#if defined(__AMX_BF16__) || defined(FLASHATTN_EMULATED_TILES)
inline constexpr bool kHasTiles = true;
#else
inline constexpr bool kHasTiles = false;
#endif

inline constexpr int kTileSide = 16;

#if defined(__AMX_BF16__)

// Not intrinsics: GCC's take their tiles as text and not as constants.

/** While there is one, a thread may use its tiles. */
class TileUse {
 public:
  TileUse() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~TileUse() { asm volatile("tilerelease"); }
  TileUse(const TileUse&) = delete;
  TileUse& operator=(const TileUse&) = delete;
};

template <int kTile>
FLASHATTN_INLINE void clear_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
template <int kTile>
FLASHATTN_INLINE void load_tile(const float* from, int64_t stride /* floats */) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride * 4), "i"(kTile) : "memory");
}
template <int kTile>
FLASHATTN_INLINE void store_tile(float* to, int64_t stride /* floats */) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride * 4), "i"(kTile) : "memory");
}
/** C[i, j] += the sums of A[i, k] * B[k, j], pair by pair. */
template <int kC, int kA, int kB>
FLASHATTN_INLINE void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
}

#else

class TileUse {
 public:
  TileUse() {}
};

namespace detail {

#if defined(FLASHATTN_EMULATED_TILES)
inline thread_local uint32_t emulated_tiles[8][kTileSide][kTileSide];
#else
extern uint32_t emulated_tiles[8][kTileSide][kTileSide];  // never used
#endif

inline float as_float(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

}  // namespace detail

template <int kTile>
inline void clear_tile() {
  for (auto& row : detail::emulated_tiles[kTile])
    for (uint32_t& word : row) word = 0;
}
template <int kTile>
inline void load_tile(const float* from, int stride) {
  for (int r = 0; r < kTileSide; ++r) __builtin_memcpy(detail::emulated_tiles[kTile][r], from + r * stride, 64);
}
template <int kTile>
inline void store_tile(float* to, int stride) {
  for (int r = 0; r < kTileSide; ++r) __builtin_memcpy(to + r * stride, detail::emulated_tiles[kTile][r], 64);
}
template <int kC, int kA, int kB>
inline void multiply_tiles() {
  using detail::as_float, detail::emulated_tiles;
  for (int i = 0; i < kTileSide; ++i)
    for (int j = 0; j < kTileSide; ++j) {
      float sum = as_float(emulated_tiles[kC][i][j]);
      for (int k = 0; k < kTileSide; ++k) {
        const uint32_t a = emulated_tiles[kA][i][k], b = emulated_tiles[kB][k][j];
        sum += as_float(a << 16) * as_float(b << 16);
        sum += as_float(a & 0xffff0000u) * as_float(b & 0xffff0000u);
      }
      __builtin_memcpy(&emulated_tiles[kC][i][j], &sum, 4);
    }
}

#endif

namespace detail {

template <int kTile>
FLASHATTN_INLINE void put_tile(float* c, int c_row, const float* row_scale) {
  if (row_scale == nullptr) return store_tile<kTile>(c, c_row);
  alignas(64) float sums[kTileSide * kTileSide];
  store_tile<kTile>(sums, kTileSide);
  for (int r = 0; r < kTileSide; ++r, c += c_row)
    for (int n = 0; n < kTileSide; n += kLanes)
      store(c + n, load(c + n) * splat(row_scale[r]) + load(sums + r * kTileSide + n));
}

}  // namespace detail

/**
 * C[r, n] = C[r, n] * row_scale[r] + sum_k A[r, k] * B[k, n], on words that are pairs of bfloat16; without row_scale C is
 * only written. Rows, columns and steps are handled 16 at a time: what lies beyond them has to be there, and beyond the
 * steps one factor has to be zero and the other finite.
 */
template <int kARow, int kBRow>
FLASHATTN_CALLED void tile_product(int rows, int columns, int steps, const float* a /* [rows][kARow] */,
                                   const float* b /* [steps][kBRow] */, float* c, int c_row, const float* row_scale) {
  for (int n = 0; n < columns; n += 2 * kTileSide) {
    const bool wide = n + kTileSide < columns;
    for (int r = 0; r < rows; r += 2 * kTileSide) {
      const bool high = r + kTileSide < rows;
      clear_tile<0>();
      clear_tile<1>();
      clear_tile<2>();
      clear_tile<3>();
      for (int k = 0; k < steps; k += kTileSide) {
        const float* rows_of_b = b + size_t(k) * kBRow + n;
        load_tile<4>(a + size_t(r) * kARow + k, kARow);
        load_tile<6>(rows_of_b, kBRow);
        multiply_tiles<0, 4, 6>();
        if (high) {
          load_tile<5>(a + size_t(r + kTileSide) * kARow + k, kARow);
          multiply_tiles<2, 5, 6>();
        }
        if (!wide) continue;
        load_tile<7>(rows_of_b + kTileSide, kBRow);
        multiply_tiles<1, 4, 7>();
        if (high) multiply_tiles<3, 5, 7>();
      }
      float* to = c + size_t(r) * c_row + n;
      const float* scale = row_scale ? row_scale + r : nullptr;
      detail::put_tile<0>(to, c_row, scale);
      if (wide) detail::put_tile<1>(to + kTileSide, c_row, scale);
      if (!high) continue;
      if (scale) scale += kTileSide;
      detail::put_tile<2>(to + size_t(kTileSide) * c_row, c_row, scale);
      if (wide) detail::put_tile<3>(to + size_t(kTileSide) * c_row + kTileSide, c_row, scale);
    }
  }
}

}  // namespace flashattn
