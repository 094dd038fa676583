// Layer norm (Ba, Kiros and Hinton 2016) and RMS norm (Zhang and Sennrich 2019), and their gradients.
//
// A row is read from memory once where it fits a row of the workspace, and passed over there: for its mean, for the
// squares of what differs from it, and for the result. A longer one is read for each pass. What the rows add to the
// gradients of gain and bias is summed up within chunks of rows that follow from the shapes alone, then over the chunks.
#pragma once
#include "simd/long_rows.h"
#include "structs/norm.h"

namespace flashattn {

namespace detail {

inline const uint8_t* norm_row(const void* data, int64_t row, int64_t stride, DType dtype) {
  return bytes_of(data) + row * stride * element_size(dtype);
}
inline uint8_t* norm_row(void* data, int64_t row, int64_t stride, DType dtype) {
  return bytes_of(data) + row * stride * element_size(dtype);
}

FLASHATTN_CALLED void add_floats(const float* row /* [n] in whole vectors */, int n, LongSum& sum) {
  add_up(sum, round_up(n, kLanes), [&](int i) { return load(row + i); });
}

FLASHATTN_CALLED void add_residual(float* to, const float* x, const float* residual /* all [n] in whole vectors */,
                                   int n) {
  for (int i = 0; i < n; i += kLanes) store(to + i, load(x + i) + load(residual + i));
}

/** Elements [begin, begin + n) of a row as it is normalised. `first`: the sum of x and residual is still to be made. */
FLASHATTN_CALLED const float* read_norm_piece(const NormParams& p, int64_t r, int64_t begin, int n, bool first,
                                              LongRowWorkspace& ws) {
  const int64_t skipped = begin * element_size(p.dtype);
  const uint8_t* x = norm_row(p.x, r, p.x_row, p.dtype) + skipped;
  if (!p.residual) return read_floats(x, p.dtype, 1, n, ws.row[0]);
  uint8_t* const sum = norm_row(p.sum, r, p.dim, p.dtype) + skipped;
  if (first) {
    const uint8_t* residual = norm_row(p.residual, r, p.residual_row, p.dtype) + skipped;
    float* const to = floats_of(sum, p.dtype, 1, n, ws.row[0]);
    const float* const one = read_floats(x, p.dtype, 1, n, ws.row[0]);
    add_residual(to, one, read_floats(residual, p.dtype, 1, n, ws.row[3]), n);
    write_floats(sum, p.dtype, 1, to, n);
  }
  // What is normalised is the sum as it was rounded.
  return read_floats(sum, p.dtype, 1, n, ws.row[0]);
}

/** sum += the squares of scale * row - mean. `ahead` will be read next. */
FLASHATTN_CALLED void add_squares(const float* row /* [n] */, int n, float scale, float mean, const uint8_t* ahead,
                                  LongSum& sum) {
  const int whole = n / kLanes * kLanes;
  const auto square = [&](int i) {
    prefetch<kLanes>(reinterpret_cast<const float*>(ahead) + i);
    const Vec d = multiply_add(load(row + i), splat(scale), splat(-mean));
    return d * d;
  };
  add_up(sum, whole, square);
  if (whole < n) sum.add(select(iota(whole) < n, square(whole), Vec{}));
}

FLASHATTN_CALLED void add_scaled(const float* row /* [n] in whole vectors */, int n, float scale, LongSum& sum) {
  add_up(sum, round_up(n, kLanes), [&](int i) { return load(row + i) * splat(scale); });
}

inline bool is_finite(double x) { return x - x == 0; }

struct RowStatistics {
  float mean, rstd;
};

/**
 * Mean and reciprocal standard deviation of a row, which is then at `row` if it has one piece. Squares beyond the range of
 * float32 are taken again of a scaled row.
 */
FLASHATTN_CALLED RowStatistics row_statistics(const NormParams& p, int64_t r, const float*& row, LongRowWorkspace& ws) {
  const bool whole = p.dim <= kLongRow;
  const double count = static_cast<double>(p.dim);
  LongSum sum;
  for (int64_t begin = 0; begin < p.dim; begin += kLongRow) {
    const int n = row_piece(p.dim, begin);
    row = read_norm_piece(p, r, begin, n, true, ws);
    if (p.centered) add_floats(row, n, sum);
  }
  const uint8_t* ahead = norm_row(p.x, r + 1, p.x_row, p.dtype);
  double scale = 1, mean = p.centered ? sum.all() / count : 0, variance = 0;
  for (;;) {
    LongSum squares;
    for (int64_t begin = 0; begin < p.dim; begin += kLongRow) {
      const int n = row_piece(p.dim, begin);
      if (!whole) row = read_norm_piece(p, r, begin, n, false, ws);
      add_squares(row, n, static_cast<float>(scale), static_cast<float>(mean), ahead, squares);
    }
    variance = squares.all() / count;
    if (is_finite(variance) || scale < 1) break;
    scale = 0x1p-96;
    LongSum scaled;
    for (int64_t begin = 0; p.centered && begin < p.dim; begin += kLongRow) {
      const int n = row_piece(p.dim, begin);
      if (!whole) row = read_norm_piece(p, r, begin, n, false, ws);
      add_scaled(row, n, static_cast<float>(scale), scaled);
    }
    mean = p.centered ? scaled.all() / count : 0;
  }
  const double deviation = __builtin_sqrt(variance + static_cast<double>(p.epsilon) * scale * scale);
  return {static_cast<float>(mean / scale), static_cast<float>(scale / deviation)};
}

/** Elements [begin, begin + n) of gain, or ones. */
FLASHATTN_CALLED const float* read_gain(const NormParams& p, int64_t begin, int n, float* row) {
  if (p.gain) return read_floats(norm_row(p.gain, begin, 1, p.gain_dtype), p.gain_dtype, 1, n, row);
  fill(row, 1, n);
  return row;
}
/** Those of bias, or null. */
inline const float* read_bias(const NormParams& p, int64_t begin, int n, float* row) {
  return p.bias ? read_floats(norm_row(p.bias, begin, 1, p.bias_dtype), p.bias_dtype, 1, n, row) : nullptr;
}

FLASHATTN_CALLED void store_normed(float* to, const float* row, const float* gain, const float* bias /* all [n] */,
                                   int n, RowStatistics s) {
  const auto scaled = [&](int i) { return (load(row + i) - splat(s.mean)) * splat(s.rstd); };
  if (bias == nullptr)
    for (int i = 0; i < n; i += kLanes) store(to + i, scaled(i) * load(gain + i));
  else
    for (int i = 0; i < n; i += kLanes) store(to + i, multiply_add(scaled(i), load(gain + i), load(bias + i)));
}

FLASHATTN_CALLED void norm_one_row(const NormParams& p, int64_t r, const float* gain, const float* bias,
                                   LongRowWorkspace& ws) {
  const bool whole = p.dim <= kLongRow;
  const float* row = nullptr;
  const RowStatistics s = row_statistics(p, r, row, ws);
  if (p.mean) p.mean[r] = s.mean;
  if (p.rstd) p.rstd[r] = s.rstd;
  for (int64_t begin = 0; begin < p.dim; begin += kLongRow) {
    const int n = row_piece(p.dim, begin);
    if (!whole) {
      row = read_norm_piece(p, r, begin, n, false, ws);
      gain = read_gain(p, begin, n, ws.row[1]);
      bias = read_bias(p, begin, n, ws.row[2]);
    }
    uint8_t* const place = norm_row(p.out, r, p.dim, p.dtype) + begin * element_size(p.dtype);
    float* const to = floats_of(place, p.dtype, 1, n, ws.row[3]);
    store_normed(to, row, gain, bias, n, s);
    write_floats(place, p.dtype, 1, to, n);
  }
}

// Backward ------------------------------------------------------------------------------------------------------------

/** What a chunk of rows adds to the gradient of gain or bias: the sum, and a block that is still to be added to it. */
struct ParameterSums {
  float *total, *block;  // [partial_row]
};

inline ParameterSums parameter_sums(const NormParams& p, int chunk, int which) {
  float* const sums = p.partial + (int64_t{chunk} * 2 + which) * 2 * p.partial_row;
  return {sums, sums + p.partial_row};
}

FLASHATTN_CALLED void clear_sums(const ParameterSums& sums, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    store(sums.total + i, Vec{});
    store(sums.block + i, Vec{});
  }
}

// Rows that are added up in a block before it is added to the total.
constexpr int kBlockRows = 64;

/** total += block; the block keeps what rounding cut off. */
FLASHATTN_CALLED void add_block(const ParameterSums& sums, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    Vec total = load(sums.total + i);
    store(sums.block + i, add_exactly(total, load(sums.block + i)));
    store(sums.total + i, total);
  }
}

struct RowSums {
  LongSum d_normed, product;  // of dy * gain, and of that times the normalised x
};

/**
 * Sums over y = (x - mean) rstd and g = dy gain. With `d_gain`, its block gets dy y and that of `d_bias` gets dy; zeros
 * beyond the row add nothing.
 */
FLASHATTN_CALLED void add_norm_gradients(const float* x, const float* dy, const float* gain /* all [n] */, int n,
                                         RowStatistics s, float* d_gain, float* d_bias, RowSums& sums) {
  for (int begin = 0; begin < n; begin += kBlockVectors * kLanes) {
    const int end = min(begin + kBlockVectors * kLanes, n);
    Vec sum{}, product{};
    for (int i = begin; i < end; i += kLanes) {
      const Vec y = (load(x + i) - splat(s.mean)) * splat(s.rstd), d = load(dy + i), g = d * load(gain + i);
      sum += g;
      product += g * y;
      if (d_gain == nullptr) continue;
      store(d_gain + i, load(d_gain + i) + d * y);
      store(d_bias + i, load(d_bias + i) + d);
    }
    sums.d_normed.add(sum);
    sums.product.add(product);
  }
}

/** to = rstd (g - mean_g - y mean_product) + d_sum, with y and g as above. */
FLASHATTN_CALLED void store_norm_gradients(float* to, const float* x, const float* dy, const float* gain,
                                           const float* d_sum /* all [n] */, int n, RowStatistics s, float mean_g,
                                           float mean_product) {
  for (int i = 0; i < n; i += kLanes) {
    const Vec y = (load(x + i) - splat(s.mean)) * splat(s.rstd), g = load(dy + i) * load(gain + i);
    const Vec gradient = (g - splat(mean_g) - y * splat(mean_product)) * splat(s.rstd);
    store(to + i, d_sum == nullptr ? gradient : gradient + load(d_sum + i));
  }
}

FLASHATTN_CALLED void norm_backward_row(const NormParams& p, int64_t r, const float* gain, const ParameterSums& d_gain,
                                        const ParameterSums& d_bias, LongRowWorkspace& ws) {
  const bool whole = p.dim <= kLongRow;
  const RowStatistics s{p.mean ? p.mean[r] : 0.0f, p.rstd[r]};
  const float *x = nullptr, *dy = nullptr;
  const auto read_piece = [&](int64_t begin, int n) {
    const int64_t skipped = begin * element_size(p.dtype);
    x = read_floats(norm_row(p.x, r, p.x_row, p.dtype) + skipped, p.dtype, 1, n, ws.row[0]);
    dy = read_floats(norm_row(p.d_out, r, p.d_out_row, p.dtype) + skipped, p.dtype, 1, n, ws.row[1]);
    if (!whole) gain = read_gain(p, begin, n, ws.row[2]);
  };
  RowSums sums;
  for (int64_t begin = 0; begin < p.dim; begin += kLongRow) {
    read_piece(begin, row_piece(p.dim, begin));
    add_norm_gradients(x, dy, gain, row_piece(p.dim, begin), s, p.partial ? d_gain.block + begin : nullptr,
                       p.partial ? d_bias.block + begin : nullptr, sums);
  }
  if (!p.d_x) return;
  const double count = static_cast<double>(p.dim);
  const float mean_g = p.centered ? static_cast<float>(sums.d_normed.all() / count) : 0.0f;
  const float mean_product = static_cast<float>(sums.product.all() / count);
  for (int64_t begin = 0; begin < p.dim; begin += kLongRow) {
    const int n = row_piece(p.dim, begin);
    const int64_t skipped = begin * element_size(p.dtype);
    if (!whole) read_piece(begin, n);
    const float* d_sum = nullptr;
    if (p.d_sum) d_sum = read_floats(norm_row(p.d_sum, r, p.d_sum_row, p.dtype) + skipped, p.dtype, 1, n, ws.row[3]);
    uint8_t* const place = norm_row(p.d_x, r, p.dim, p.dtype) + skipped;
    float* const to = floats_of(place, p.dtype, 1, n, ws.row[0]);
    store_norm_gradients(to, x, dy, gain, d_sum, n, s, mean_g, mean_product);
    write_floats(place, p.dtype, 1, to, n);
  }
}

/** The gradient of gain or bias: the sums of all chunks, in their order. */
FLASHATTN_CALLED void add_chunks(const NormParams& p, int which, void* result, DType dtype, int64_t begin,
                                 int64_t end) {
  for (int64_t i = begin; i < end; i += kLanes) {
    LongSum sum;
    for (int chunk = 0; chunk < p.chunks; ++chunk) {
      const ParameterSums sums = parameter_sums(p, chunk, which);
      sum.add(load(sums.total + i));
      sum.rest += load(sums.block + i);
    }
    float lanes[kLanes];
    store(lanes, sum.lanes());
    store_row(norm_row(result, i, 1, dtype), dtype, lanes, end - i < kLanes ? static_cast<int>(end - i) : kLanes);
  }
}

constexpr int64_t kColumnsPerItem = 1024;

}  // namespace detail

inline int norm_items(const NormParams& p) { return PieceGrid(p.rows, p.dim).items(); }

FLASHATTN_CALLED void norm_item(const NormParams& p, int item, LongRowWorkspace& ws) {
  using namespace detail;
  const PieceGrid grid(p.rows, p.dim);
  const float *gain = nullptr, *bias = nullptr;
  if (p.dim <= kLongRow) {
    const int n = static_cast<int>(p.dim);
    gain = read_gain(p, 0, n, ws.row[1]);
    bias = read_bias(p, 0, n, ws.row[2]);
  }
  for (int64_t r = grid.begin(item); r < grid.end(item); ++r) norm_one_row(p, r, gain, bias, ws);
}

inline int norm_backward_items(const NormParams& p) { return p.chunks; }

/** A chunk of rows. */
FLASHATTN_CALLED void norm_backward_item(const NormParams& p, int item, LongRowWorkspace& ws) {
  using namespace detail;
  ParameterSums d_gain{}, d_bias{};
  if (p.partial) {
    d_gain = parameter_sums(p, item, 0), d_bias = parameter_sums(p, item, 1);
    clear_sums(d_gain, p.partial_row);
    clear_sums(d_bias, p.partial_row);
  }
  const auto add_blocks = [&] {
    if (!p.partial) return;
    add_block(d_gain, p.partial_row);
    add_block(d_bias, p.partial_row);
  };
  const float* gain = nullptr;
  if (p.dim <= kLongRow) gain = read_gain(p, 0, static_cast<int>(p.dim), ws.row[2]);
  const int64_t begin = item * p.chunk_rows, end = p.rows - begin < p.chunk_rows ? p.rows : begin + p.chunk_rows;
  for (int64_t r = begin; r < end; ++r) {
    if (r > begin && (r - begin) % kBlockRows == 0) add_blocks();
    norm_backward_row(p, r, gain, d_gain, d_bias, ws);
  }
  add_blocks();
}

inline int finish_norm_items(const NormParams& p) {
  return p.d_gain || p.d_bias ? static_cast<int>((p.dim + detail::kColumnsPerItem - 1) / detail::kColumnsPerItem) : 0;
}

FLASHATTN_CALLED void finish_norm_item(const NormParams& p, int item) {
  const int64_t begin = item * detail::kColumnsPerItem;
  const int64_t end = p.dim - begin < detail::kColumnsPerItem ? p.dim : begin + detail::kColumnsPerItem;
  if (p.d_gain) detail::add_chunks(p, 0, p.d_gain, p.gain_dtype, begin, end);
  if (p.d_bias) detail::add_chunks(p, 1, p.d_bias, p.bias_dtype, begin, end);
}

}  // namespace flashattn
