// The product of matrices of whole numbers of few bits.
//
// An item is some rows of C in one panel of columns. It unpacks the panel of B, some steps of the inner dim at a time, into
// words of neighbours as simd/dot.h takes them, and multiplies all of its rows with it; rows of A are read where they lie. Codes
// of B may be moved by an offset to fit an instruction; what that adds to a sum, the offset times the sum of A's row, is taken
// off in the end. 32 bits wrap around on the way, and sums are exact.
#pragma once
#include "ops/matmul.h"
#include "simd/dot.h"
#include "structs/code_matmul.h"

namespace flashattn {

namespace detail {

constexpr int kCodeRows = kMatmulTile.rows, kCodeVectors = kMatmulTile.vectors, kCodeColumns = kPanelColumns;
constexpr int kTallCodeRows = kTileRows;
constexpr int kStepWords = 256;  // of the inner dim that are unpacked at a time: quads or pairs

}  // namespace detail

struct alignas(kCacheLine) CodeMatmulWorkspace {
  uint32_t panel[detail::kStepWords][detail::kCodeColumns];
  int32_t sums[detail::kTallCodeRows][detail::kCodeColumns];
  uint32_t pairs[detail::kCodeRows][detail::kStepWords];  // of rows of A
  float inverse[detail::kCodeColumns], bias[detail::kCodeColumns], row[detail::kCodeColumns];
};

namespace detail {

template <class Products, int kRows>
FLASHATTN_INLINE void code_block(int steps, const uint32_t* a /* [kRows][a_row] */, int64_t a_row,
                                 const uint32_t* panel /* [steps][kCodeColumns] */, int32_t* c /* [kRows][..] */,
                                 bool first) {
  IntVec acc[kRows][kCodeVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma clang loop unroll(full)
    for (int v = 0; v < kCodeVectors; ++v) acc[r][v] = IntVec{};
  }
#pragma clang loop unroll(disable)
  for (int k = 0; k < steps; ++k) {
    IntVec columns[kCodeVectors];
#pragma clang loop unroll(full)
    for (int v = 0; v < kCodeVectors; ++v) columns[v] = (IntVec)load_bits(panel + v * kLanes);
    const uint32_t* row = a;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const IntVec word = load_splat_bits(row);
#pragma clang loop unroll(full)
      for (int v = 0; v < kCodeVectors; ++v) acc[r][v] = Products::multiply_add(word, columns[v], acc[r][v]);
      row += a_row;
    }
    ++a;
    panel += kCodeColumns;
    keep_as_pointer(a);
    keep_as_pointer(panel);
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma clang loop unroll(full)
    for (int v = 0; v < kCodeVectors; ++v) {
      uint32_t* const to = reinterpret_cast<uint32_t*>(c) + r * kCodeColumns + v * kLanes;
      store_bits(to, (UintVec)Products::finish(acc[r][v]) + (first ? UintVec{} : load_bits(to)));
    }
  }
}

template <class Products>
FLASHATTN_INLINE void code_strip(int rows, int steps, const uint32_t* a, int64_t a_row, const uint32_t* panel,
                                 int32_t* c, bool first) {
  int r = 0;
  for (; r + kCodeRows <= rows; r += kCodeRows)
    code_block<Products, kCodeRows>(steps, a + r * a_row, a_row, panel, c + r * kCodeColumns, first);
  if constexpr (kCodeRows > 4)
    for (; r + 4 <= rows; r += 4)
      code_block<Products, 4>(steps, a + r * a_row, a_row, panel, c + r * kCodeColumns, first);
  for (; r < rows; ++r) code_block<Products, 1>(steps, a + r * a_row, a_row, panel, c + r * kCodeColumns, first);
}

template <class Products>
FLASHATTN_CALLED void code_rows(int rows, int steps, const uint32_t* a, int64_t a_row, const uint32_t* panel,
                                int32_t* c, bool first) {
  for (int k = 0; k == 0 || k < steps; k += min(Products::kMostSteps, max(steps, 1)))
    code_strip<Products>(rows, min(Products::kMostSteps, steps - k), a + k, a_row, panel + k * kCodeColumns, c,
                         first && k == 0);
}

#if defined(FLASHATTN_DOT_TARGET)
FLASHATTN_DOT_TARGET FLASHATTN_CALLED void dot_rows(int rows, int steps, const uint32_t* a, int64_t a_row,
                                                    const uint32_t* panel, int32_t* c, bool first) {
  code_strip<DotProducts>(rows, steps, a, a_row, panel, c, first);
}
#endif

/** What multiplies the codes of a launch. */
enum class CodeProducts { Dots, SmallDots, Pairs };

inline CodeProducts products_of(CodeFormat b) {
#if defined(FLASHATTN_DOT_TARGET)
  if (has_dot_products) return CodeProducts::Dots;
#endif
  return kHasSmallDots && b == CodeFormat::Trits ? CodeProducts::SmallDots : CodeProducts::Pairs;
}

/** What is added to codes of B. */
inline int offset_of(CodeFormat b, [[maybe_unused]] CodeProducts products) {
  if (b == CodeFormat::Trits) return 1;
#if defined(FLASHATTN_DOT_TARGET)
  if (products == CodeProducts::Dots) return DotProducts::kByteOffset;
#endif
  return 0;
}

FLASHATTN_INLINE void store_quad(uint32_t* to /* [1 or 2][kCodeColumns] */, UintVec quad, bool as_pairs) {
  if (as_pairs) {
    store_bits(to, lower_pair(quad));
    store_bits(to + kCodeColumns, upper_pair(quad));
  } else {
    store_bits(to, quad);
  }
}

/** Columns [j, j + columns) of B, `quads` words of four codes from word `begin` on: a multiple of 4 * kLanes. */
FLASHATTN_CALLED void unpack_panel(const CodesRef& b, const int32_t* codes /* [columns][words] */, int columns,
                                   int begin, int quads, bool as_pairs, int offset, uint32_t* panel) {
  const bool trits = b.format == CodeFormat::Trits;
  const int per_word = trits ? 4 : 1, words = divide_up(quads, per_word), from = begin / per_word;
  const UintVec flip = UintVec{} + (!trits && offset ? 0x80808080u : 0u);
  const int step = as_pairs ? 2 : 1;
  for (int v = 0; v < kCodeVectors; ++v) {
    for (int w = 0; w < words; w += kLanes) {
      Vec m[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        const int column = v * kLanes + lane;
        const int32_t* row = codes + size_t(column) * b.words + from + w;
        m[lane] = column < columns ? (Vec)load_bits(reinterpret_cast<const uint32_t*>(row)) : Vec{};
      }
      transpose_lanes(m);
      uint32_t* to = panel + size_t(w) * per_word * step * kCodeColumns + v * kLanes;
      const int count = min(kLanes, words - w);
      for (int i = 0; i < count; ++i) {
        const UintVec word = (UintVec)m[i];
        if (!trits) {
          store_quad(to, word ^ flip, as_pairs);
          to += step * kCodeColumns;
          continue;
        }
#pragma clang loop unroll(full)
        for (int q = 0; q < 4; ++q, to += step * kCodeColumns)
          store_quad(to, (word >> (2 * q)) & 0x03030303u, as_pairs);
      }
    }
  }
}

/** Words of rows of A as pairs. */
FLASHATTN_CALLED void widen_rows(const uint32_t* a /* [rows][a_row] */, int64_t a_row, int rows, int quads,
                                 uint32_t (&to)[kCodeRows][kStepWords]) {
  for (int r = 0; r < rows; ++r) {
    int8_t codes[4];
    for (int q = 0; q < quads; ++q) {
      __builtin_memcpy(codes, a + r * a_row + q, 4);
      for (int half = 0; half < 2; ++half)
        to[r][2 * q + half] = static_cast<uint16_t>(codes[2 * half]) | static_cast<uint32_t>(codes[2 * half + 1]) << 16;
    }
  }
}

/** How C is cut into items. */
struct CodeGrid {
  int tile_rows, row_tiles, panels;  // of an entry of the batch

  explicit CodeGrid(const CodeMatmulParams& p) : panels(divide_up(p.columns, kCodeColumns)) {
    constexpr int kWanted = 16;
    const int blocks = divide_up(p.rows, kCodeRows);
    int tiles = divide_up(p.rows, kTallCodeRows);
    while (int64_t{p.batch} * panels * tiles < kWanted && tiles < blocks) tiles = min(2 * tiles, blocks);
    tile_rows = divide_up(blocks, tiles) * kCodeRows;
    row_tiles = divide_up(p.rows, tile_rows);
  }
};

inline float inverse_of(const CodesRef& ref, size_t row) {
  const float scale = ref.scale[ref.has_row_scales ? row : 0];
  return scale > 0 ? 1 / scale : __builtin_nanf("");
}

/** Sums become rows of C. */
FLASHATTN_CALLED void finish_codes(const CodeMatmulParams& p, int64_t entry, int i, int rows, int j, int columns,
                                   int offset, CodeMatmulWorkspace& ws) {
  for (int n = 0; n < kCodeColumns; ++n) {
    ws.inverse[n] = n < columns ? inverse_of(p.b, size_t(entry * p.columns + j + n)) : 0;
    ws.bias[n] = n < columns && p.bias ? p.bias[j + n] : 0;
  }
  for (int r = 0; r < rows; ++r) {
    const int64_t row = entry * p.rows + i + r;
    const int32_t sum_a = p.a.codes[row * p.a.words + divide_up(p.inner, kCodesPerByteWord)];
    const UintVec moved = UintVec{} + static_cast<uint32_t>(sum_a) * static_cast<uint32_t>(offset);
    const Vec inverse = splat(inverse_of(p.a, size_t(row)));
    for (int n = 0; n < kCodeColumns; n += kLanes) {
      const UintVec sum = load_bits(reinterpret_cast<const uint32_t*>(ws.sums[r]) + n) - moved;
      const Vec scaled = __builtin_convertvector((IntVec)sum, Vec) * inverse * load(ws.inverse + n);
      store(ws.row + n, p.bias ? scaled + load(ws.bias + n) : scaled);
    }
    store_row(bytes_of(p.c) + (row * p.columns + j) * element_size(p.dtype), p.dtype, ws.row, columns);
  }
}

}  // namespace detail

inline int code_matmul_items(const CodeMatmulParams& p) {
  const detail::CodeGrid grid(p);
  return p.batch * grid.row_tiles * grid.panels;
}

FLASHATTN_CALLED void code_matmul_item(const CodeMatmulParams& p, int item, CodeMatmulWorkspace& ws) {
  using namespace detail;
  const CodeGrid grid(p);
  const int64_t entry = item / grid.panels / grid.row_tiles;
  const int i = item / grid.panels % grid.row_tiles * grid.tile_rows, rows = min(grid.tile_rows, p.rows - i);
  const int j = item % grid.panels * kCodeColumns, columns = min(kCodeColumns, p.columns - j);
  const CodeProducts products = products_of(p.b.format);
  const bool as_pairs = products == CodeProducts::Pairs;
  const int offset = offset_of(p.b.format, products);
  const auto* a =
      reinterpret_cast<const uint32_t*>(static_cast<const int32_t*>(p.a.codes)) + (entry * p.rows + i) * p.a.words;
  const int32_t* b = p.b.codes + (entry * p.columns + j) * p.b.words;
  const int quads = divide_up(p.inner, kCodesPerByteWord), step = as_pairs ? kStepWords / 2 : kStepWords;
  for (int begin = 0; begin == 0 || begin < quads; begin += step) {
    const int count = min(step, quads - begin);
    const bool first = begin == 0;
    unpack_panel(p.b, b, columns, begin, count, as_pairs, offset, ws.panel[0]);
    if (products == CodeProducts::Pairs) {
      for (int r = 0; r < rows; r += kCodeRows) {
        const int some = min(kCodeRows, rows - r);
        widen_rows(a + r * p.a.words + begin, p.a.words, some, count, ws.pairs);
        code_rows<PairProducts>(some, 2 * count, ws.pairs[0], kStepWords, ws.panel[0], ws.sums[r], first);
      }
    } else if (products == CodeProducts::SmallDots) {
      if constexpr (kHasSmallDots)
        code_rows<SmallDots>(rows, count, a + begin, p.a.words, ws.panel[0], ws.sums[0], first);
    } else {
#if defined(FLASHATTN_DOT_TARGET)
      dot_rows(rows, count, a + begin, p.a.words, ws.panel[0], ws.sums[0], first);
#endif
    }
  }
  finish_codes(p, entry, i, rows, j, columns, offset, ws);
}

}  // namespace flashattn
