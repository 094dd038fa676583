// Singular values and vectors on memory of exactly their size: what they must be, in double.
#include "ops/svd.h"

#include <math.h>

#include "cases.h"
#include "check.h"

namespace flashattn::test {

namespace {

/** The largest difference of what two rows of [count, length] have in common from one, or from nothing. */
double skewness(const Array<float>& rows, int matrix, int count, int length) {
  double worst = 0;
  for (int i = 0; i < count; ++i)
    for (int j = 0; j <= i; ++j) {
      double sum = 0;
      for (int k = 0; k < length; ++k)
        sum +=
            double(rows[(size_t(matrix) * count + i) * length + k]) * rows[(size_t(matrix) * count + j) * length + k];
      worst = fmax(worst, fabs(sum - (i == j)));
    }
  return worst;
}

}  // namespace

bool svd_case(uint64_t seed) {
  Random random(seed);
  const int matrices = random.integer(1, 3), count = random.integer(1, random.chance(10) ? 70 : 20);
  const int length = count + random.integer(0, 40), rank = random.chance(30) ? random.integer(0, count) : count;
  const float scale = random.chance(20) ? 0x1p100f : random.chance(20) ? 0x1p-120f : 1;
  Array<float> vectors(size_t(matrices) * count * length), values(size_t(matrices) * count),
      others(size_t(matrices) * count * count);
  for (int m = 0; m < matrices; ++m)
    for (int i = 0; i < count; ++i)
      for (int k = 0; k < length; ++k)
        vectors[(size_t(m) * count + i) * length + k] = i < rank ? random.number() * scale
                                                        : rank == 0
                                                            ? 0.0f
                                                            : 2 * vectors[(size_t(m) * count + i % rank) * length + k];
  Array<float> before(vectors.size());
  for (size_t i = 0; i < vectors.size(); ++i) before[i] = vectors[i];
  const SvdParams p = {vectors.data(), values.data(), others.data(), matrices, count, length};
  for (int item = 0; item < svd_items(p); ++item) svd_item(p, item);

  Check check({"svd", seed});
  for (int m = 0; m < matrices; ++m) {
    const float* const s = values.data() + size_t(m) * count;
    for (int i = 0; i < count; ++i)
      if (!(s[i] >= 0 && (i == 0 || s[i] <= s[i - 1]))) check.fail("a value", s[i], i == 0 ? 0 : s[i - 1]);
    const double skew = fmax(skewness(vectors, m, count, length), skewness(others, m, count, count));
    check.near("what vectors have in common", skew, 0, 1e-5, 0);
    for (int i = 0; i < count; ++i)
      for (int k = 0; k < length; ++k) {
        double sum = 0;
        for (int j = 0; j < count; ++j)
          sum += double(others[(size_t(m) * count + j) * count + i]) * s[j] *
                 vectors[(size_t(m) * count + j) * length + k];
        check.near("the product", sum, before[(size_t(m) * count + i) * length + k], 4e-6 * s[0], 0);
      }
  }
  return check.passed();
}

}  // namespace flashattn::test
