#include "product.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace flashattn::cublaslt {

namespace {

constexpr int64_t kCarryRows = 2048;
constexpr int64_t kPartUnit = 64;  // rows of a part, so that those after it are aligned as the first
constexpr uint64_t kMostAlignment = 16;

/** One operand, with the only stride that its batch has. */
struct View {
  const void* data;
  int64_t row, column, batch;
  DType dtype;
};

View transpose(View view) {
  std::swap(view.row, view.column);
  return view;
}

std::optional<DataType> dtype_of(DType dtype) {
  switch (dtype) {
    case DType::Float32: return DataType::Float32;
    case DType::Float16: return DataType::Float16;
    case DType::BFloat16: return DataType::BFloat16;
    default: return std::nullopt;
  }
}

/** The pairs that float32 sums are documented for. */
bool multiplies(DType factors, DType result) {
  return factors == result || (factors != DType::Float32 && result == DType::Float32);
}

uint32_t alignment_of(const void* data, int64_t batch_stride_bytes) {
  const uint64_t bits = reinterpret_cast<uintptr_t>(data) | static_cast<uint64_t>(batch_stride_bytes) | kMostAlignment;
  return static_cast<uint32_t>(bits & (~bits + 1));
}

/** One column behind another, or nothing. */
std::optional<Layout> by_columns(const View& view, int64_t rows, int64_t columns) {
  const std::optional<DataType> dtype = dtype_of(view.dtype);
  const int64_t stride = columns == 1 ? rows : view.column;
  if (!dtype || (rows != 1 && view.row != 1) || stride < rows || view.batch < 0) return std::nullopt;
  return Layout{*dtype, rows,       columns,
                stride, view.batch, alignment_of(view.data, view.batch * element_size(view.dtype))};
}

struct FactorLayout {
  Layout layout;
  Transform transform;
};

/** One column behind another, or one row. A dim of 1 goes with either: long rows are better than many columns of 1. */
std::optional<FactorLayout> factor_layout(const View& view, int64_t rows, int64_t columns) {
  const auto straight = by_columns(view, rows, columns);
  const auto turned = by_columns(transpose(view), columns, rows);
  if (straight && (!turned || rows > 1)) return FactorLayout{*straight, Transform::None};
  if (turned) return FactorLayout{*turned, Transform::Transpose};
  return std::nullopt;
}

struct Batch {
  int32_t count;
  int axis;
};

/** The one axis that is longer than 1. */
std::optional<Batch> batch_of(const MatmulParams& p) {
  Batch batch{1, 3};
  for (int axis = 0; axis < 4; ++axis) {
    if (p.batch[axis] == 1) continue;
    if (batch.count != 1 || p.batch[axis] > std::numeric_limits<int32_t>::max()) return std::nullopt;
    batch = {static_cast<int32_t>(p.batch[axis]), axis};
  }
  return batch;
}

/** C, or its transpose where its rows are contiguous: then the factors change places, transposed as well. */
struct Views {
  View a, b, c, bias;
  int64_t rows, columns;
};

Views views_of(const MatmulParams& p, const Batch& batch, bool transposed) {
  const auto view = [&](const MatrixRef& m) {
    return View{m.data, m.row, m.column, batch.count == 1 ? 0 : m.batch[batch.axis], m.dtype};
  };
  const Views straight{view(p.a), view(p.b), view(p.c), view(p.bias), p.rows, p.columns};
  if (!transposed) return straight;
  return {transpose(straight.b),    transpose(straight.a), transpose(straight.c),
          transpose(straight.bias), straight.columns,      straight.rows};
}

/** Adds what stands beside the product; false where it cannot. */
bool add_bias(const Views& v, bool accumulates, Product* product) {
  Shape& shape = product->shape;
  if (v.bias.data == nullptr) return true;
  if (v.bias.dtype != v.c.dtype) return false;
  if ((v.rows == 1 || v.bias.row == 1) && (v.columns == 1 || v.bias.column == 0)) {
    shape.epilogue = Epilogue::Bias;
    shape.bias_batch_stride = v.bias.batch;
    shape.bias_alignment = alignment_of(v.bias.data, v.bias.batch * element_size(v.bias.dtype));
    product->bias = v.bias.data;
    return v.bias.batch >= 0;
  }
  const auto layout = by_columns(v.bias, v.rows, v.columns);
  if (accumulates || !layout || (shape.batch > 1 && layout->batch_stride == 0)) return false;
  shape.c = *layout;
  product->c = v.bias.data;
  product->beta = 1.0f;
  return true;
}

std::optional<Product> product_of(const MatmulParams& p, const Batch& batch, bool transposed) {
  const Views v = views_of(p, batch, transposed);
  const auto a = factor_layout(v.a, v.rows, p.inner);
  const auto b = factor_layout(v.b, p.inner, v.columns);
  const auto d = by_columns(v.c, v.rows, v.columns);
  if (!a || !b || !d) return std::nullopt;
  Product product{};
  product.shape = {a->layout, b->layout, *d, *d, a->transform, b->transform, batch.count, Epilogue::None, 0, 0};
  product.a = v.a.data;
  product.b = v.b.data;
  product.d = p.c.data;
  product.c = p.c.data;
  product.alpha = p.alpha;
  product.beta = p.accumulate != 0 ? 1.0f : 0.0f;
  product.inner = p.inner;
  if (!add_bias(v, p.accumulate != 0, &product)) return std::nullopt;
  return product;
}

/** Moves `data` by `count` steps of the inner dim, which is the columns of op(A) and the rows of op(B). */
const void* step(const void* data, const Layout& layout, bool along_columns, int64_t count) {
  const int64_t bytes = layout.dtype == DataType::Float32 ? 4 : 2;
  return static_cast<const uint8_t*>(data) + count * (along_columns ? layout.column_stride : 1) * bytes;
}

}  // namespace

std::optional<Product> product_of(const MatmulParams& p) {
  const auto batch = batch_of(p);
  const bool empty = p.rows < 1 || p.columns < 1 || p.inner < 1;
  if (!batch || empty || p.alpha == 0.0f || p.activation != Activation::None) return std::nullopt;
  if (p.a.dtype != p.b.dtype || !multiplies(p.a.dtype, p.c.dtype)) return std::nullopt;
  // Most results have contiguous rows.
  const auto transposed = product_of(p, *batch, true);
  return transposed ? transposed : product_of(p, *batch, false);
}

int64_t parts_of(const Product& product) {
  return product.shape.d.dtype == DataType::Float32 ? (product.inner + kCarryRows - 1) / kCarryRows : 1;
}

Product part_of(const Product& whole, int64_t index, int64_t parts) {
  if (parts == 1) return whole;
  const int64_t even = (whole.inner + parts - 1) / parts;
  const int64_t size = (even + kPartUnit - 1) / kPartUnit * kPartUnit;
  const int64_t begin = index * size;
  const int64_t count = std::min(size, whole.inner - begin);
  Product part = whole;
  Shape& shape = part.shape;
  const bool a_along_columns = shape.transform_a == Transform::None;
  const bool b_along_columns = shape.transform_b == Transform::Transpose;
  part.a = step(whole.a, shape.a, a_along_columns, begin);
  part.b = step(whole.b, shape.b, b_along_columns, begin);
  (a_along_columns ? shape.a.columns : shape.a.rows) = count;
  (b_along_columns ? shape.b.columns : shape.b.rows) = count;
  part.inner = count;
  if (index > 0) {
    shape.c = shape.d;
    part.c = part.d;
    part.beta = 1.0f;
  }
  if (index + 1 < parts) {
    shape.epilogue = Epilogue::None;
    shape.bias_batch_stride = 0;
    shape.bias_alignment = 0;
    part.bias = nullptr;
  }
  return part;
}

}  // namespace flashattn::cublaslt
