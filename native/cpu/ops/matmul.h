// The product of matrices: Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008).
//
// Factors are packed, as float32, into panels in the order in which the innermost loop reads them: a panel of A is a few
// rows, [inner][kPackedRows], one of B a few vectors of columns, [inner][kPanelColumns]. An item is a tile of C, some panels
// of A times some of B; it walks over the inner dim in steps that its caches hold, and adds the steps up in its workspace.
// What only one item reads, it packs itself; what several read is packed by a phase before, once. Where there are few rows,
// as of the tokens of a batch, items are so tall that each column of B, a weight perhaps, belongs to one of them: it
// then goes from memory through the cache that it is packed in, and not to memory and back.
#pragma once
#include "simd/activation.h"
#include "simd/product.h"
#include "simd/rows.h"
#include "simd/transpose.h"
#include "structs/matmul.h"

namespace flashattn {

namespace detail {

struct MatmulTile {
  int rows, vectors;              // of the block of C that registers hold
  int row_panels, column_panels;  // of an item: 64 to 84 rows and 64 to 128 columns
  int tall_panels;                // of one that packs B itself: 256 rows
};

/**
 * Every vector of B is used `rows` times and every broadcast of A `vectors` times, and the accumulators have to leave
 * registers for both: 28 of 32, 12 of 16, 24 of 32, and for WebAssembly what V8 keeps of 16.
 */
constexpr MatmulTile kMatmulTile =
#if defined(__AVX512F__)
    {14, 2, 6, 4, 19};
#elif defined(__AVX2__)
    {6, 2, 12, 4, 43};
#elif defined(__aarch64__)
    {6, 4, 12, 4, 43};
#else
    {4, 2, 16, 8, 64};
#endif

constexpr int kPackedRows = round_up(kMatmulTile.rows, kLanes);
constexpr int kPanelColumns = kMatmulTile.vectors * kLanes;

// A panel of B for so many steps of the inner dim stays in the first cache while the panels of A pass by.
constexpr int kInnerStep = 256;
constexpr int kAhead = 32;  // steps of the inner dim
constexpr int kTileRows = kMatmulTile.tall_panels * kMatmulTile.rows;
constexpr int kTileColumns = kMatmulTile.column_panels * kPanelColumns;

// What the host reckons with when it allocates packed factors: lib/kernels/matmul.ts.
static_assert(3 * kPackedRows <= 4 * kMatmulTile.rows && kPackedRows <= 16 && kPanelColumns <= 64 && kTileRows >= 256);

}  // namespace detail

struct alignas(kCacheLine) MatmulWorkspace {
  float a[detail::kMatmulTile.row_panels * detail::kInnerStep * detail::kPackedRows];
  float b[detail::kInnerStep * detail::kPanelColumns];
  float c[detail::kTileRows * detail::kTileColumns];
  float row[detail::kTileColumns];
};

namespace detail {

/** One factor of one entry of the batch: its outer dim is that of C, the rows of A or the columns of B. */
struct Factor {
  const uint8_t* data;   // [outer, inner]
  int64_t outer, inner;  // strides
  DType dtype;
  int count;  // of the outer dim

  const uint8_t* at(int o, int k) const { return data + (o * outer + k * inner) * element_size(dtype); }
};

/** to[k][o] = factor[begin + o][k_begin + k]; what lies outside of the factor is zero. */
template <int kWidth>
FLASHATTN_CALLED void pack_panel(float* to /* [k_count][kWidth] */, const Factor& factor, int begin, int k_begin,
                                 int k_count) {
  const int count = min(kWidth, factor.count - begin);
  if (factor.outer == 1 && count == kWidth) {
    for (int k = 0; k < k_count; ++k) {
      const uint8_t* from = factor.at(begin, k_begin + k);
      const int bytes = kLanes * element_size(factor.dtype);
      for (int o = 0; o < kWidth; o += kLanes, from += bytes)
        store(to + k * kWidth + o, load_elements(from, factor.dtype));
    }
    return;
  }
  for (int o = 0; o < kWidth; o += kLanes) {
    const int lanes = max(0, min(kLanes, count - o));
    if (lanes > 0 && factor.inner == 1) {
      for (int k = 0; k < k_count; k += kLanes) {
        const int steps = min(kLanes, k_count - k);
        Vec m[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) {
          if (lane >= lanes) {
            m[lane] = Vec{};
          } else if (steps == kLanes) {
            m[lane] = load_elements(factor.at(begin + o + lane, k_begin + k), factor.dtype);
          } else {
            float padded[kLanes];
            load_row(padded, factor.at(begin + o + lane, k_begin + k), factor.dtype, steps);
            m[lane] = load(padded);
          }
        }
        transpose_lanes(m);
        for (int step = 0; step < steps; ++step) store(to + (k + step) * kWidth + o, m[step]);
      }
      continue;
    }
    for (int k = 0; k < k_count; ++k) {
      float lane_values[kLanes] = {};
      if (factor.outer == 1) {
        if (lanes > 0) load_row(lane_values, factor.at(begin + o, k_begin + k), factor.dtype, lanes);
      } else {
        float padded[kLanes];
        for (int lane = 0; lane < lanes; ++lane) {
          load_row(padded, factor.at(begin + o + lane, k_begin + k), factor.dtype, 1);
          lane_values[lane] = padded[0];
        }
      }
      store(to + k * kWidth + o, load(lane_values));
    }
  }
}

/**
 * Asks for what `pack_panel` will read, part `part` of `parts` of it. Its rows are a few cache lines each on pages of their own,
 * which no processor fetches by itself; asked for while the panel before is multiplied, they have arrived.
 */
inline void prefetch_panel([[maybe_unused]] const Factor& factor, [[maybe_unused]] int begin,
                           [[maybe_unused]] int k_begin, [[maybe_unused]] int k_count, [[maybe_unused]] int part,
                           [[maybe_unused]] int parts) {
#if !defined(__wasm__)
  const bool by_steps = factor.outer == 1;
  const int columns = min(kPanelColumns, factor.count - begin);
  const int lines = by_steps ? k_count : columns, bytes = (by_steps ? columns : k_count) * element_size(factor.dtype);
  if (!by_steps && factor.inner != 1) return;
  for (int line = lines * part / parts; line < lines * (part + 1) / parts; ++line) {
    const uint8_t* from = by_steps ? factor.at(begin, k_begin + line) : factor.at(begin + line, k_begin);
    for (int at = 0; at < bytes; at += kCacheLine) __builtin_prefetch(from + at, 0, 2);
  }
#endif
}

/** How C is cut into items. */
struct MatmulGrid {
  int row_panels, column_panels;  // of an item
  int row_tiles, column_tiles;    // of an entry of the batch

  /** Fewer panels an item where there would be too few items for many threads. */
  explicit MatmulGrid(const MatmulParams& p)
      : row_panels(kMatmulTile.row_panels),
        column_panels(kMatmulTile.column_panels) {
    const bool tall = p.packed_a && !p.packed_b;
    if (tall) {
      const int panels = divide_up(p.rows, kMatmulTile.rows);
      row_panels = divide_up(panels, divide_up(panels, kMatmulTile.tall_panels));
    }
    const int wanted = tall ? 12 : 16;  // narrow items read all of A once more each
    for (;;) {
      row_tiles = divide_up(p.rows, row_panels * kMatmulTile.rows);
      column_tiles = divide_up(p.columns, column_panels * kPanelColumns);
      if (batch(p) * row_tiles * column_tiles >= wanted || (row_panels == 1 && column_panels == 1)) return;
      int& more = column_panels > 1 && (tall || row_panels <= column_panels) ? column_panels : row_panels;
      more = divide_up(more, 2);
    }
  }

  static int64_t batch(const MatmulParams& p) { return p.batch[0] * p.batch[1] * p.batch[2] * p.batch[3]; }
};

/** Where the matrix of entry `entry` of the batch begins, in elements. */
inline int64_t matrix_offset(const MatmulParams& p, const MatrixRef& matrix, int64_t entry) {
  int64_t offset = 0;
  for (int axis = 3; axis >= 0; --axis) {
    offset += entry % p.batch[axis] * matrix.batch[axis];
    entry /= p.batch[axis];
  }
  return offset;
}

inline uint8_t* matrix_data(const MatmulParams& p, const MatrixRef& matrix, int64_t entry) {
  return bytes_of(matrix.data) + matrix_offset(p, matrix, entry) * element_size(matrix.dtype);
}

inline Factor factor_a(const MatmulParams& p, int64_t entry) {
  return {matrix_data(p, p.a, entry), p.a.row, p.a.column, p.a.dtype, p.rows};
}
inline Factor factor_b(const MatmulParams& p, int64_t entry) {
  return {matrix_data(p, p.b, entry), p.b.column, p.b.row, p.b.dtype, p.columns};
}

/** One factor as it is packed: panels of so many of its outer dim. */
struct Packed {
  float* data;  // [entries, panels, inner, width]
  int panels, entries;
  size_t panel;  // floats

  Packed(float* to, int outer, int per_panel, int width, const MatmulParams& p, const MatrixRef& matrix)
      : data(to),
        panels(divide_up(outer, per_panel)),
        panel(size_t(p.inner) * width) {
    bool shared = true;
    for (int axis = 0; axis < 4; ++axis) shared &= p.batch[axis] == 1 || matrix.batch[axis] == 0;
    entries = !data ? 0 : shared ? 1 : static_cast<int>(MatmulGrid::batch(p));
  }
  float* at(int64_t entry, int index) const { return data + ((entries == 1 ? 0 : entry) * panels + index) * panel; }
};

inline Packed packed_a(const MatmulParams& p) { return {p.packed_a, p.rows, kMatmulTile.rows, kPackedRows, p, p.a}; }
inline Packed packed_b(const MatmulParams& p) { return {p.packed_b, p.columns, kPanelColumns, kPanelColumns, p, p.b}; }

// What an item of the packing phase handles: so many panels, and so many steps of them.
constexpr int kPanelsPerItem = 4, kStepsPerItem = 4 * kInnerStep;

inline int packing_items(const Packed& packed, int inner) {
  return packed.entries * divide_up(packed.panels, kPanelsPerItem) * divide_up(inner, kStepsPerItem);
}

template <int kWidth>
void pack_item(const Packed& packed, int per_panel, int item, const MatmulParams& p,
               Factor (*factor)(const MatmulParams&, int64_t)) {
  const int groups = divide_up(packed.panels, kPanelsPerItem), parts = divide_up(p.inner, kStepsPerItem);
  const int entry = item / parts / groups, first = item / parts % groups * kPanelsPerItem;
  const int last = min(first + kPanelsPerItem, packed.panels), begin = item % parts * kStepsPerItem;
  const int end = min(begin + kStepsPerItem, p.inner);
  // Steps of the inner dim outside, panels inside: rows of a factor are then read a few at a time, and whole.
  for (int k = begin; k < end; k += kInnerStep)
    for (int panel = first; panel < last; ++panel)
      pack_panel<kWidth>(packed.at(entry, panel) + size_t(k) * kWidth, factor(p, entry), panel * per_panel, k,
                         min(kInnerStep, end - k));
}

/** row[j] = matrix[i, begin + j], as float32. */
inline void load_matrix_row(float* row /* [count] */, const MatrixRef& matrix, const uint8_t* data, int i, int begin,
                            int count) {
  const int size = element_size(matrix.dtype);
  const uint8_t* from = data + (i * matrix.row + begin * matrix.column) * size;
  if (matrix.column == 1) return load_row(row, from, matrix.dtype, count);
  float padded[kLanes];
  for (int j = 0; j < count; ++j) {
    if (j == 0 || matrix.column != 0) load_row(padded, from + j * matrix.column * size, matrix.dtype, 1);
    row[j] = padded[0];
  }
}

inline void store_matrix_row(const MatrixRef& matrix, uint8_t* data, int i, int begin, int count,
                             const float* row /* [count] */) {
  const int size = element_size(matrix.dtype);
  uint8_t* to = data + (i * matrix.row + begin * matrix.column) * size;
  if (matrix.column == 1) return store_row(to, matrix.dtype, row, count);
  float padded[kLanes] = {};
  for (int j = 0; j < count; ++j) {
    padded[0] = row[j];
    store_row(to + j * matrix.column * size, matrix.dtype, padded, 1);
  }
}

/** Rows of a tile of sums become rows of C. */
FLASHATTN_CALLED void finish_matmul(const MatmulParams& p, int64_t entry, int i, int j, int rows, int columns,
                                    MatmulWorkspace& ws) {
  const Vec alpha = splat(p.alpha);
  uint8_t* c = matrix_data(p, p.c, entry);
  const uint8_t* bias = p.bias.data ? matrix_data(p, p.bias, entry) : nullptr;
  for (int r = 0; r < rows; ++r) {
    float* sums = ws.c + r * kTileColumns;
    const auto add = [&](const MatrixRef& matrix, const uint8_t* data) {
      load_matrix_row(ws.row, matrix, data, i + r, j, columns);
      for (int n = 0; n < columns; n += kLanes) store(sums + n, load(sums + n) + load(ws.row + n));
    };
    if (p.alpha != 1)
      for (int n = 0; n < columns; n += kLanes) store(sums + n, load(sums + n) * alpha);
    if (bias) add(p.bias, bias);
    activate(p.activation, sums, columns);
    if (p.accumulate) add(p.c, c);
    store_matrix_row(p.c, c, i + r, j, columns, sums);
  }
}

}  // namespace detail

inline int matmul_packing_items(const MatmulParams& p) {
  return detail::packing_items(detail::packed_a(p), p.inner) + detail::packing_items(detail::packed_b(p), p.inner);
}

FLASHATTN_CALLED void matmul_packing_item(const MatmulParams& p, int item) {
  using namespace detail;
  const Packed a = packed_a(p), b = packed_b(p);
  const int of_b = packing_items(b, p.inner);
  if (item < of_b)
    pack_item<kPanelColumns>(b, kPanelColumns, item, p, factor_b);
  else
    pack_item<kPackedRows>(a, kMatmulTile.rows, item - of_b, p, factor_a);
}

inline int matmul_items(const MatmulParams& p) {
  const detail::MatmulGrid grid(p);
  return static_cast<int>(detail::MatmulGrid::batch(p)) * grid.row_tiles * grid.column_tiles;
}

FLASHATTN_CALLED void matmul_item(const MatmulParams& p, int item, MatmulWorkspace& ws) {
  using namespace detail;
  using Panels = Strides<1, kPackedRows, kPanelColumns, kAhead>;
  const MatmulGrid grid(p);
  const int column_tile = item % grid.column_tiles, row_tile = item / grid.column_tiles % grid.row_tiles;
  const int64_t entry = item / grid.column_tiles / grid.row_tiles;
  const int i = row_tile * grid.row_panels * kMatmulTile.rows, j = column_tile * grid.column_panels * kPanelColumns;
  const int rows = min(grid.row_panels * kMatmulTile.rows, p.rows - i);
  const int columns = min(grid.column_panels * kPanelColumns, p.columns - j);
  const Packed packed_rows = packed_a(p), packed_columns = packed_b(p);
  const Factor a = factor_a(p, entry), b = factor_b(p, entry);

  if (p.inner == 0)
    for (int r = 0; r < rows; ++r) fill(ws.c + r * kTileColumns, 0.0f, columns);
  Nothing nothing;
  for (int k = 0; k < p.inner; k += kInnerStep) {
    const int steps = min(kInnerStep, p.inner - k);
    const auto panel_of_a = [&](int r) -> const float* {
      if (packed_rows.data) return packed_rows.at(entry, (i + r) / kMatmulTile.rows) + size_t(k) * kPackedRows;
      return ws.a + r / kMatmulTile.rows * (kInnerStep * kPackedRows);
    };
    if (!packed_rows.data)
      for (int r = 0; r < rows; r += kMatmulTile.rows)
        pack_panel<kPackedRows>(const_cast<float*>(panel_of_a(r)), a, i + r, k, steps);
    for (int n = 0; n < columns; n += kPanelColumns) {
      const float* panel = ws.b;
      if (packed_columns.data)
        panel = packed_columns.at(entry, (j + n) / kPanelColumns) + size_t(k) * kPanelColumns;
      else
        pack_panel<kPanelColumns>(ws.b, b, j + n, k, steps);
      // The next panel: beside this one, or at the beginning of the next steps.
      const bool is_last = n + kPanelColumns >= columns;
      const int next_k = is_last ? k + kInnerStep : k, next_n = is_last ? 0 : n + kPanelColumns;
      const bool ahead = !packed_columns.data && next_k < p.inner;
      for (int r = 0; r < rows; r += kMatmulTile.rows) {
        const int count = min(kMatmulTile.rows, rows - r);
        if (ahead)
          prefetch_panel(b, j + next_n, next_k, min(kInnerStep, p.inner - next_k), r / kMatmulTile.rows,
                         divide_up(rows, kMatmulTile.rows));
        float* c = ws.c + r * kTileColumns + n;
        if (k == 0)
          product_strip<Panels, Accumulate::No, kMatmulTile.rows, kMatmulTile.vectors>(
              count, steps, panel_of_a(r), panel, c, kTileColumns, nullptr, nothing);
        else
          product_strip<Panels, Accumulate::Yes, kMatmulTile.rows, kMatmulTile.vectors>(
              count, steps, panel_of_a(r), panel, c, kTileColumns, nullptr, nothing);
      }
    }
  }
  finish_matmul(p, entry, i, j, rows, columns, ws);
}

}  // namespace flashattn
