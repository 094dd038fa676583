// The product of matrices of whole numbers of few bits, on tensor cores. A block has a tile of C, and walks over the inner dim in
// steps of 64 codes, which it copies to shared memory as bytes. Trits are there what they are in words, 0 to 2; the 1 too
// much is taken off with the sum of A's row.
#include <cmath>

#include "launch.h"
#include "launch_error.h"
#include "vector.cuh"

namespace flashattn {

namespace {

constexpr int kThreads = 256, kRowWarps = 2, kColumnWarps = 4;
constexpr int kColumnTiles = 4;  // of 8 columns, of a warp
constexpr int kColumns = kColumnWarps * kColumnTiles * 8;
constexpr int kStep = 16;           // words of a row
constexpr int kStride = kStep + 4;  // rows that are read together lie in different banks

struct CodeMatmulLaunch {
  CodeMatmulParams params;
  uint32_t row_tiles, column_tiles;
};

FLASHATTN_DEVICE uint4 load_words(const int32_t* from) {
  return ptx::load_global(reinterpret_cast<const uint4*>(from));
}

FLASHATTN_DEVICE float inverse_of(const CodesRef& ref, int64_t row) {
  const float scale = ptx::load_global(static_cast<const float*>(ref.scale) + (ref.has_row_scales ? row : 0));
  return scale > 0 ? 1 / scale : NAN;
}

template <int kRowTiles>
constexpr int kRows = kRowWarps * kRowTiles * 16;

template <int kRowTiles>
FLASHATTN_KERNEL(kThreads)
code_matmul_kernel(CodeMatmulLaunch launch) {
  const CodeMatmulParams& p = launch.params;
  const uint32_t tile = ptx::block().x, column_tile = tile % launch.column_tiles;
  const int64_t entry = tile / launch.column_tiles / launch.row_tiles;
  const int i = static_cast<int>(tile / launch.column_tiles % launch.row_tiles) * kRows<kRowTiles>;
  const int j = static_cast<int>(column_tile) * kColumns;
  const int thread = ptx::thread(), lane = thread % 32, warp = thread / 32;
  const int first_row = warp / kColumnWarps * kRowTiles * 16, first_column = warp % kColumnWarps * kColumnTiles * 8;
  const bool trits = p.b.format == CodeFormat::Trits;
  const int32_t* const a = static_cast<const int32_t*>(p.a.codes) + entry * p.rows * p.a.words;
  const int32_t* const b = static_cast<const int32_t*>(p.b.codes) + entry * p.columns * p.b.words;
  const uint32_t shared_a = ptx::shared_base(), shared_b = shared_a + kRows<kRowTiles> * kStride * 4;
  const auto place = [](uint32_t base, int row, int word) {
    return base + static_cast<uint32_t>(row * kStride + word) * 4;
  };
  const int words = (p.inner + 3) / 4;

  int32_t sums[kRowTiles][kColumnTiles][4] = {};
#pragma unroll 1
  for (int begin = 0; begin < words; begin += kStep) {
    ptx::sync_threads();
    for (int at = thread; at < kRows<kRowTiles> * 4; at += kThreads) {
      const int row = at / 4, word = at % 4 * 4;
      uint4 four{};
      if (i + row < p.rows) four = load_words(a + int64_t{i + row} * p.a.words + begin + word);
      // Behind the last word of codes is their sum.
      const int left = words - begin - word;
      if (left < 1) four.x = 0;
      if (left < 2) four.y = 0;
      if (left < 3) four.z = 0;
      if (left < 4) four.w = 0;
      ptx::store_shared(place(shared_a, row, word), four);
    }
    if (trits) {
      for (int column = thread; column < kColumns; column += kThreads) {
        uint4 four{};
        if (j + column < p.columns) four = load_words(b + int64_t{j + column} * p.b.words + begin / 4);
        const uint32_t packed[4] = {four.x, four.y, four.z, four.w};
        for (int w = 0; w < 4; ++w) {
          const uint32_t word = packed[w], mask = 0x03030303u;
          ptx::store_shared(place(shared_b, column, 4 * w),
                            uint4{word & mask, word >> 2 & mask, word >> 4 & mask, word >> 6 & mask});
        }
      }
    } else {
      for (int at = thread; at < kColumns * 4; at += kThreads) {
        const int column = at / 4, word = at % 4 * 4;
        uint4 four{};
        if (j + column < p.columns) four = load_words(b + int64_t{j + column} * p.b.words + begin + word);
        ptx::store_shared(place(shared_b, column, word), four);
      }
    }
    ptx::sync_threads();
#pragma unroll
    for (int word = 0; word < kStep; word += 8) {
      uint32_t left[kRowTiles][4], right[kColumnTiles][2];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
        ptx::ldmatrix_x4(left[r], place(shared_a, first_row + r * 16 + lane % 16, word + lane / 16 * 4));
#pragma unroll
      for (int c = 0; c < kColumnTiles; c += 2) {
        uint32_t two[4];
        ptx::ldmatrix_x4(two, place(shared_b, first_column + (c + lane / 16) * 8 + lane % 8, word + lane / 8 % 2 * 4));
        right[c][0] = two[0];
        right[c][1] = two[1];
        right[c + 1][0] = two[2];
        right[c + 1][1] = two[3];
      }
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int c = 0; c < kColumnTiles; ++c) ptx::mma_s8(sums[r][c], left[r], right[c][0], right[c][1]);
    }
  }

  const float* const biases = p.bias;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = i + first_row + r * 16 + half * 8 + lane / 4;
      if (row >= p.rows) continue;
      const int64_t row_of_all = entry * p.rows + row;
      const float inverse = inverse_of(p.a, row_of_all);
      const int32_t moved = trits ? ptx::load_global(a + int64_t{row} * p.a.words + words) : 0;
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = j + first_column + c * 8 + lane % 4 * 2 + e;
          if (column >= p.columns) continue;
          const float sum = static_cast<float>(sums[r][c][2 * half + e] - moved);
          float value = ptx::product(ptx::product(sum, inverse), inverse_of(p.b, entry * p.columns + column));
          if (biases) value += ptx::load_global(biases + column);
          with_element(p.dtype, [&](auto element) {
            using Element = decltype(element);
            auto* to = static_cast<typename Element::Storage*>(static_cast<void*>(p.c));
            ptx::store_global(to + row_of_all * p.columns + column, Element::store(value));
          });
        }
    }
}

template <int kRowTiles>
cudaError_t launch_tiles(const CodeMatmulParams& p, cudaStream_t stream) {
  const auto tiles = [](int count, int tile) { return static_cast<uint32_t>((count + tile - 1) / tile); };
  const CodeMatmulLaunch launch{p, tiles(p.rows, kRows<kRowTiles>), tiles(p.columns, kColumns)};
  const dim3 grid(static_cast<uint32_t>(p.batch) * launch.row_tiles * launch.column_tiles);
  constexpr int kSharedBytes = (kRows<kRowTiles> + kColumns) * kStride * 4;
  return launched("code_matmul", ptx::launch(code_matmul_kernel<kRowTiles>, "code_matmul", grid, kThreads, kSharedBytes,
                                             stream, launch));
}

}  // namespace

cudaError_t launch_code_matmul(const CodeMatmulParams& p, const DeviceLimits&, cudaStream_t stream) {
  if (p.batch == 0 || p.rows == 0 || p.columns == 0) return cudaSuccess;
  return p.rows <= kRows<1> ? launch_tiles<1>(p, stream) : launch_tiles<4>(p, stream);
}

}  // namespace flashattn
