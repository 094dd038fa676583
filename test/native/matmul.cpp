// Products of matrices on memory of exactly their size, against plain loops.
#include "ops/matmul.h"

#include <vector>

#include "activated.h"
#include "cases.h"
#include "check.h"

namespace flashattn::test {

namespace {

/** Two entries of a batch; the last two dims lie in memory in either order. */
struct Matrices {
  Matrices(Random& random, int rows, int columns, DType dtype)
      : rows(rows),
        columns(columns),
        transposed(random.chance(50)),
        shared(random.chance(30)),
        dtype(dtype),
        bytes(size_t(shared ? 1 : 2) * rows * columns * element_size(dtype)) {
    for (int b = 0; b < (shared ? 1 : 2); ++b)
      for (int i = 0; i < rows; ++i)
        for (int j = 0; j < columns; ++j) encode(at(b, i, j), dtype, random.number());
  }

  MatrixRef ref() const {
    return {bytes.data(), transposed ? 1 : columns, transposed ? rows : 1, {0, 0, 0, stride()}, dtype, 0};
  }
  int stride() const { return shared ? 0 : rows * columns; }
  uint8_t* at(int b, int i, int j) const {
    return bytes.data() + (b * stride() + (transposed ? j * rows + i : i * columns + j)) * element_size(dtype);
  }
  double get(int b, int i, int j) const { return decode(at(b, i, j), dtype); }

  int rows, columns;
  bool transposed, shared;
  DType dtype;
  Array<uint8_t> bytes;
};

}  // namespace

bool matmul_case(uint64_t seed) {
  Random random(seed);
  const auto size = [&] { return random.chance(50) ? random.integer(1, 20) : random.integer(1, 200); };
  const auto dtype = static_cast<DType>(random.integer(0, 2));
  const int rows = size(), columns = size(), inner = random.chance(20) ? random.integer(250, 600) : size();
  const Matrices a(random, rows, inner, dtype), b(random, inner, columns, dtype), bias(random, rows, columns, dtype);
  Matrices c(random, rows, columns, static_cast<DType>(random.integer(0, 2)));
  while (c.shared) c = Matrices(random, rows, columns, c.dtype);
  std::vector<double> before;
  for (int e = 0; e < 2; ++e)
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < columns; ++j) before.push_back(c.get(e, i, j));
  const auto packed = [&](int count, int width, bool shared) {
    return Array<float>(
        random.chance(50) ? size_t(shared ? 1 : 2) * divide_up(count, width) * inner * round_up(width, kLanes) : 0);
  };
  const Array<float> packed_a = packed(rows, detail::kMatmulTile.rows, a.shared);
  const Array<float> packed_b = packed(columns, detail::kPanelColumns, b.shared);
  MatmulParams p{};
  p.a = a.ref();
  p.b = b.ref();
  p.c = c.ref();
  if (random.chance(50)) p.bias = bias.ref();
  p.packed_a = packed_a.size() ? packed_a.data() : nullptr;
  p.packed_b = packed_b.size() ? packed_b.data() : nullptr;
  for (int64_t& n : p.batch) n = 1;
  p.batch[3] = 2;
  p.rows = rows;
  p.columns = columns;
  p.inner = inner;
  p.alpha = random.chance(50) ? 1 : -0.5f;
  p.accumulate = random.chance(50);
  if (!p.accumulate) p.activation = static_cast<Activation>(random.integer(0, 4));

  for (int item = matmul_packing_items(p) - 1; item >= 0; --item) matmul_packing_item(p, item);
  const auto workspace = poisoned_workspace<MatmulWorkspace>();
  for (int item = matmul_items(p) - 1; item >= 0; --item) matmul_item(p, item, *workspace);

  Check check({"matmul", seed});
  for (int e = 0; e < 2; ++e)
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < columns; ++j) {
        double sum = 0;
        for (int k = 0; k < inner; ++k) sum += a.get(e, i, k) * b.get(e, k, j);
        double wanted = p.alpha * sum;
        if (p.bias.data) wanted += bias.get(e, i, j);
        wanted = activated(p.activation, wanted);
        if (p.accumulate) wanted += before[(size_t(e) * rows + i) * columns + j];
        check.near("an element", c.get(e, i, j), wanted, 1e-4, rounding(c.dtype));
      }
  return check.passed();
}

}  // namespace flashattn::test
