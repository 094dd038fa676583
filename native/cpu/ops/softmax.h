// Softmax, its logarithm, and the gradients of both, over rows that lie anywhere.
//
// A row is read from memory once where it fits a row of the workspace: pieces of it are widened to float32, exponentials
// take their place, and the results are rounded on their way out. Of a longer row the running maximum and sum are kept
// (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018), and it is read again. Where the row is not
// the innermost dim, neighbouring rows are handled side by side: a vector lane is a row.
#pragma once
#include "simd/long_rows.h"
#include "simd/math.h"
#include "structs/softmax.h"

namespace flashattn {

namespace detail {

/** One array of a launch. */
struct RowSide {
  uint8_t* data;
  const int64_t* strides;  // [4]: of the outer dims, then along the row
  DType dtype;

  int64_t step() const { return strides[3]; }
  /** Element i of the row that begins at `offset`. */
  uint8_t* at(int64_t offset, int64_t i) const { return data + (offset + i * step()) * element_size(dtype); }
};

inline RowSide x_side(const SoftmaxParams& p) { return {const_cast<uint8_t*>(bytes_of(p.x)), p.x_strides, p.dtype}; }
inline RowSide d_out_side(const SoftmaxParams& p) {
  return {const_cast<uint8_t*>(bytes_of(p.d_out)), p.d_out_strides, p.dtype};
}
inline RowSide result_side(const SoftmaxParams& p) { return {bytes_of(p.result), p.result_strides, p.dtype}; }

/** Where a launch is: an index of each outer dim, the last of which counts groups of neighbouring rows. */
struct OuterIndex {
  int64_t at[3], sizes[3];
  int group;

  OuterIndex(const SoftmaxParams& p, int group, int64_t index) : sizes{}, group(group) {
    for (int axis = 0; axis < 3; ++axis) sizes[axis] = p.outer[axis];
    sizes[2] = (sizes[2] + group - 1) / group;
    for (int axis = 2; axis >= 0; --axis) {
      at[axis] = index % sizes[axis];
      index /= sizes[axis];
    }
  }
  void next() {
    for (int axis = 2; axis >= 0 && ++at[axis] == sizes[axis]; --axis) at[axis] = 0;
  }
  int64_t offset(const RowSide& side) const {
    return at[0] * side.strides[0] + at[1] * side.strides[1] + at[2] * group * side.strides[2];
  }
};

// Rows one after the other --------------------------------------------------------------------------------------------

/** The largest element. */
FLASHATTN_CALLED float largest_element(const float* x /* [n], -Infinity to the end of the vector */, int n) {
  Vec top[kChains];
#pragma clang loop unroll(full)
  for (int c = 0; c < kChains; ++c) top[c] = splat(-kInfinity);
  int i = 0;
  for (; i + kChains * kLanes <= n; i += kChains * kLanes) {
#pragma clang loop unroll(full)
    for (int c = 0; c < kChains; ++c) top[c] = max(top[c], load(x + i + c * kLanes));
  }
  for (; i < n; i += kLanes) top[0] = max(top[0], load(x + i));
  top[0] = max(max(top[0], top[1]), max(top[2], top[3]));
  float most = -kInfinity;
  for (int lane = 0; lane < kLanes; ++lane) most = top[0][lane] > most ? top[0][lane] : most;
  return most;
}

/** to = e^(x - shift), sum += to. `ahead` will be read next. */
FLASHATTN_CALLED void add_exponentials(float* to, const float* x /* both [n] in whole vectors */, int n, float shift,
                                       const uint8_t* ahead, LongSum& sum) {
  add_up(sum, round_up(n, kLanes), [&](int i) {
    prefetch<kLanes>(reinterpret_cast<const float*>(ahead) + i);
    const Vec e = natural_exp(load(x + i) - splat(shift));
    store(to + i, e);
    return e;
  });
}

/** The logarithm of a sum of exponentials; NaN, of which every element of a row becomes one, where there is none. */
inline float log_of_sum(float sum) { return sum > 0 ? static_cast<float>(ln(sum)) : __builtin_nanf(""); }

/** What makes a row of softmax, or of its logarithm, out of its elements. */
struct Normalizer {
  float maximum, factor, log;
};

FLASHATTN_CALLED void store_products(float* to, const float* exponentials /* both [n] */, int n, float factor) {
  for (int i = 0; i < n; i += kLanes) store(to + i, load(exponentials + i) * splat(factor));
}
FLASHATTN_CALLED void store_exponentials(float* to, const float* x /* both [n] */, int n, const Normalizer& by) {
  for (int i = 0; i < n; i += kLanes) store(to + i, natural_exp(load(x + i) - splat(by.maximum)) * splat(by.factor));
}
FLASHATTN_CALLED void store_logarithms(float* to, const float* x /* both [n] */, int n, const Normalizer& by) {
  for (int i = 0; i < n; i += kLanes) store(to + i, load(x + i) - splat(by.maximum) - splat(by.log));
}

FLASHATTN_CALLED void softmax_row(const SoftmaxParams& p, const OuterIndex& index, LongRowWorkspace& ws) {
  const RowSide x = x_side(p), result = result_side(p);
  const int64_t from = index.offset(x), to = index.offset(result);
  const bool whole = p.length <= kLongRow;
  float maximum = -kInfinity;
  LongSum sum;
  const float* row = nullptr;
  const auto read_piece = [&](int64_t begin, int n) {
    row = read_floats(x.at(from, begin), p.dtype, x.step(), n, ws.row[0]);
    for (int i = n; i % kLanes != 0; ++i) ws.row[0][i] = -kInfinity;
  };
  for (int64_t begin = 0; begin < p.length; begin += kLongRow) {
    const int n = row_piece(p.length, begin);
    read_piece(begin, n);
    if (const float most = largest_element(row, n); most > maximum) {
      if (maximum > -kInfinity) sum.scale(natural_exp(splat(maximum - most)));
      maximum = most;
    }
    // Less -Infinity all would be NaN, also the rows that have other elements later on.
    add_exponentials(ws.row[1], row, n, maximum == -kInfinity ? 0.0f : maximum, x.at(from, p.length), sum);
  }
  const float total = sum.all();
  const Normalizer by{maximum, 1 / total, p.log ? log_of_sum(total) : 0.0f};
  for (int64_t begin = 0; begin < p.length; begin += kLongRow) {
    const int n = row_piece(p.length, begin);
    if (!whole) read_piece(begin, n);
    uint8_t* const place = result.at(to, begin);
    float* const out = floats_of(place, p.dtype, result.step(), n, ws.row[2]);
    if (p.log)
      store_logarithms(out, row, n, by);
    else if (whole)
      store_products(out, ws.row[1], n, by.factor);
    else
      store_exponentials(out, row, n, by);
    write_floats(place, p.dtype, result.step(), out, n);
  }
}

FLASHATTN_INLINE Vec softmax_gradient(bool log, Vec y, Vec dy, Vec sum) {
  return log ? dy - natural_exp(y) * sum : y * (dy - sum);
}

/** sum += y dy, or dy alone. */
FLASHATTN_CALLED void add_gradients(const float* y, const float* dy /* both [n] in whole vectors */, int n, bool log,
                                    LongSum& sum) {
  add_up(sum, round_up(n, kLanes), [&](int i) { return log ? load(dy + i) : load(y + i) * load(dy + i); });
}

FLASHATTN_CALLED void store_softmax_gradients(float* to, const float* y, const float* dy /* all [n] */, int n, bool log,
                                              float sum) {
  for (int i = 0; i < n; i += kLanes) store(to + i, softmax_gradient(log, load(y + i), load(dy + i), splat(sum)));
}

FLASHATTN_CALLED void softmax_backward_row(const SoftmaxParams& p, const OuterIndex& index, LongRowWorkspace& ws) {
  const RowSide y = x_side(p), d_out = d_out_side(p), result = result_side(p);
  const int64_t from_y = index.offset(y), from_dy = index.offset(d_out), to = index.offset(result);
  const float *row = nullptr, *d_row = nullptr;
  const auto read_piece = [&](int64_t begin, int n) {
    row = read_floats(y.at(from_y, begin), p.dtype, y.step(), n, ws.row[0]);
    d_row = read_floats(d_out.at(from_dy, begin), p.dtype, d_out.step(), n, ws.row[1]);
  };
  LongSum sum;
  for (int64_t begin = 0; begin < p.length; begin += kLongRow) {
    read_piece(begin, row_piece(p.length, begin));
    add_gradients(row, d_row, row_piece(p.length, begin), p.log, sum);
  }
  for (int64_t begin = 0; begin < p.length; begin += kLongRow) {
    const int n = row_piece(p.length, begin);
    if (p.length > kLongRow) read_piece(begin, n);
    uint8_t* const place = result.at(to, begin);
    float* const out = floats_of(place, p.dtype, result.step(), n, ws.row[2]);
    store_softmax_gradients(out, row, d_row, n, p.log, sum.all());
    write_floats(place, p.dtype, result.step(), out, n);
  }
}

// Rows side by side ---------------------------------------------------------------------------------------------------

/** Neighbouring rows, whole cache lines of them, and the steps along them that the workspace holds: [steps][rows]. */
struct RowTile {
  int rows, steps;

  explicit RowTile(int64_t length) : rows(kMostRows) {
    // Where not even rows of one cache line fit, they are passed over in pieces, of which wide ones are quicker.
    if (length * kLeastRows <= kLongRow)
      while (rows * length > kLongRow) rows /= 2;
    steps = kLongRow / rows;
  }

  int steps_from(int64_t begin, int64_t length) const {
    return static_cast<int>(length - begin < steps ? length - begin : steps);
  }

  static constexpr int kMostRows = 256, kLeastRows = 16;
};

constexpr int kTileVectors = RowTile::kMostRows / kLanes;

FLASHATTN_CALLED void read_tile(float* tile /* [steps][rows] */, const RowSide& side, int64_t offset, int64_t begin,
                                int steps, int rows, int count) {
  for (int j = 0; j < steps; ++j) load_row(tile + j * rows, side.at(offset, begin + j), side.dtype, count);
}

FLASHATTN_CALLED void write_tile(const RowSide& side, int64_t offset, int64_t begin, int steps, int rows, int count,
                                 const float* tile /* [steps][rows] */) {
  for (int j = 0; j < steps; ++j) store_row(side.at(offset, begin + j), side.dtype, tile + j * rows, count);
}

/** The largest of a column of vectors and of `before`. */
FLASHATTN_INLINE Vec largest_of(Vec before, const float* column, int steps, int rows) {
  Vec top[kChains];
#pragma clang loop unroll(full)
  for (int c = 0; c < kChains; ++c) top[c] = before;
  int j = 0;
  for (; j + kChains <= steps; j += kChains) {
#pragma clang loop unroll(full)
    for (int c = 0; c < kChains; ++c) top[c] = max(top[c], load(column + (j + c) * rows));
  }
  for (; j < steps; ++j) top[0] = max(top[0], load(column + j * rows));
  return max(max(top[0], top[1]), max(top[2], top[3]));
}

/** sum += f(j) for every step. */
template <class F>
FLASHATTN_INLINE void add_up_steps(LongSum& sum, int steps, F f) {
  add_up(sum, steps * kLanes, [&](int i) { return f(i / kLanes); });
}

/** A column of vectors of a tile: its exponentials, the running maximum and the running sum. */
FLASHATTN_CALLED void softmax_column(float* exponentials, const float* column, int steps, int rows, Vec& maximum,
                                     LongSum& sum) {
  const Vec most = largest_of(maximum, column, steps, rows);
  const Vec shift = select(most == splat(-kInfinity), Vec{}, most);
  sum.scale(select(most > maximum, natural_exp(maximum - shift), splat(1.0f)));
  maximum = most;
  add_up_steps(sum, steps, [&](int j) {
    const Vec e = natural_exp(load(column + j * rows) - shift);
    store(exponentials + j * rows, e);
    return e;
  });
}

/** The results take the place of the column; `exponentials` are null where they were not kept. */
FLASHATTN_CALLED void finish_column(float* column, const float* exponentials, int steps, int rows, bool log,
                                    Vec maximum, const LongSum& sum) {
  const Vec total = sum.lanes(), factor = splat(1.0f) / total;
  if (log) {
    Vec logarithm{};
    for (int lane = 0; lane < kLanes; ++lane) logarithm[lane] = log_of_sum(total[lane]);
    for (int j = 0; j < steps * rows; j += rows) store(column + j, load(column + j) - maximum - logarithm);
  } else if (exponentials != nullptr) {
    for (int j = 0; j < steps * rows; j += rows) store(column + j, load(exponentials + j) * factor);
  } else {
    for (int j = 0; j < steps * rows; j += rows) store(column + j, natural_exp(load(column + j) - maximum) * factor);
  }
}

FLASHATTN_CALLED void softmax_tile(const SoftmaxParams& p, const OuterIndex& index, LongRowWorkspace& ws) {
  const RowTile shape(p.length);
  const RowSide x = x_side(p), result = result_side(p);
  const int64_t from = index.offset(x), to = index.offset(result), left = p.outer[2] - index.at[2] * shape.rows;
  const int count = static_cast<int>(left < shape.rows ? left : shape.rows);
  const bool whole = p.length <= shape.steps;
  float *tile = ws.row[0], *exponentials = ws.row[1];
  Vec maximum[kTileVectors];
  LongSum sum[kTileVectors];
  for (Vec& m : maximum) m = splat(-kInfinity);
  for (int64_t begin = 0; begin < p.length; begin += shape.steps) {
    const int n = shape.steps_from(begin, p.length);
    read_tile(tile, x, from, begin, n, shape.rows, count);
    for (int c = 0; c < count; c += kLanes)
      softmax_column(exponentials + c, tile + c, n, shape.rows, maximum[c / kLanes], sum[c / kLanes]);
  }
  for (int64_t begin = 0; begin < p.length; begin += shape.steps) {
    const int n = shape.steps_from(begin, p.length);
    if (!whole) read_tile(tile, x, from, begin, n, shape.rows, count);
    for (int c = 0; c < count; c += kLanes)
      finish_column(tile + c, whole ? exponentials + c : nullptr, n, shape.rows, p.log, maximum[c / kLanes],
                    sum[c / kLanes]);
    write_tile(result, to, begin, n, shape.rows, count, tile);
  }
}

FLASHATTN_CALLED void softmax_backward_tile(const SoftmaxParams& p, const OuterIndex& index, LongRowWorkspace& ws) {
  const RowTile shape(p.length);
  const RowSide y = x_side(p), d_out = d_out_side(p), result = result_side(p);
  const int64_t from_y = index.offset(y), from_dy = index.offset(d_out), to = index.offset(result);
  const int64_t left = p.outer[2] - index.at[2] * shape.rows;
  const int count = static_cast<int>(left < shape.rows ? left : shape.rows);
  const bool whole = p.length <= shape.steps;
  float *tile = ws.row[0], *d_tile = ws.row[1];
  LongSum sum[kTileVectors];
  const auto load_both = [&](int64_t begin, int n) {
    read_tile(tile, y, from_y, begin, n, shape.rows, count);
    read_tile(d_tile, d_out, from_dy, begin, n, shape.rows, count);
  };
  for (int64_t begin = 0; begin < p.length; begin += shape.steps) {
    const int n = shape.steps_from(begin, p.length);
    load_both(begin, n);
    for (int c = 0; c < count; c += kLanes)
      add_up_steps(sum[c / kLanes], n, [&](int j) {
        const Vec dy = load(d_tile + j * shape.rows + c);
        return p.log ? dy : load(tile + j * shape.rows + c) * dy;
      });
  }
  for (int64_t begin = 0; begin < p.length; begin += shape.steps) {
    const int n = shape.steps_from(begin, p.length);
    if (!whole) load_both(begin, n);
    for (int c = 0; c < count; c += kLanes) {
      const Vec total = sum[c / kLanes].lanes();
      for (int j = 0; j < n; ++j) {
        float* at = tile + j * shape.rows + c;
        store(at, softmax_gradient(p.log, load(at), load(d_tile + j * shape.rows + c), total));
      }
    }
    write_tile(result, to, begin, n, shape.rows, count, tile);
  }
}

/** Whether neighbouring rows lie side by side everywhere, and there is not more to be read along a row. */
inline bool are_side_by_side(const SoftmaxParams& p) {
  const bool neighbours = p.x_strides[2] == 1 && p.result_strides[2] == 1 && (!p.d_out || p.d_out_strides[2] == 1);
  return neighbours && p.outer[2] > 1 && (p.length == 1 || p.result_strides[3] != 1);
}

/** Rows that are handled at a time. */
inline int softmax_group(const SoftmaxParams& p) { return are_side_by_side(p) ? RowTile(p.length).rows : 1; }

inline PieceGrid softmax_grid(const SoftmaxParams& p) {
  const int group = softmax_group(p);
  return {p.outer[0] * p.outer[1] * ((p.outer[2] + group - 1) / group), group * p.length};
}

using RunGroup = void (*)(const SoftmaxParams&, const OuterIndex&, LongRowWorkspace&);

FLASHATTN_CALLED void for_each_group(const SoftmaxParams& p, int item, RunGroup run, LongRowWorkspace& ws) {
  const PieceGrid grid = softmax_grid(p);
  OuterIndex index(p, softmax_group(p), grid.begin(item));
  for (int64_t at = grid.begin(item); at < grid.end(item); ++at, index.next()) run(p, index, ws);
}

}  // namespace detail

inline int softmax_items(const SoftmaxParams& p) { return detail::softmax_grid(p).items(); }

FLASHATTN_CALLED void softmax_item(const SoftmaxParams& p, int item, LongRowWorkspace& ws) {
  detail::for_each_group(p, item, detail::are_side_by_side(p) ? detail::softmax_tile : detail::softmax_row, ws);
}

FLASHATTN_CALLED void softmax_backward_item(const SoftmaxParams& p, int item, LongRowWorkspace& ws) {
  const bool tiles = detail::are_side_by_side(p);
  detail::for_each_group(p, item, tiles ? detail::softmax_backward_tile : detail::softmax_backward_row, ws);
}

}  // namespace flashattn
