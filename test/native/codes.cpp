// Numbers as whole ones in words, and products of those, on memory of exactly their size, against plain loops.
#include "ops/code_matmul.h"
#include "ops/quantise.h"

#include <cmath>

#include "cases.h"
#include "check.h"

namespace flashattn::test {

namespace {

int words_of(int inner, CodeFormat format) {
  return format == CodeFormat::Trits ? round_up(divide_up(inner, 16), 16) : round_up(divide_up(inner, 4), 16) + 16;
}

/** As words say it. */
int code_at(const int32_t* row, int k, CodeFormat format) {
  if (format == CodeFormat::Bytes) return static_cast<int8_t>(static_cast<uint32_t>(row[k / 4]) >> (8 * (k % 4)));
  return static_cast<int>(static_cast<uint32_t>(row[k / 16]) >> (8 * (k % 4) + 2 * (k % 16 / 4)) & 3) - 1;
}

/** Two entries of rows of codes, of all values there are. */
struct Rows {
  Rows(Random& random, int rows, int inner, CodeFormat format, bool extreme)
      : rows(rows),
        inner(inner),
        format(format),
        words(words_of(inner, format)),
        has_row_scales(random.chance(50)),
        codes(size_t(2) * rows * words),
        scale(has_row_scales ? 2 * rows : 1) {
    const int most = format == CodeFormat::Trits ? 1 : 127, least = format == CodeFormat::Trits ? -1 : -128;
    for (size_t at = 0; at < codes.size(); ++at) codes[at] = 0;
    for (int r = 0; r < 2 * rows; ++r) {
      uint32_t* const row = reinterpret_cast<uint32_t*>(codes.data()) + size_t(r) * words;
      uint32_t sum = 0;
      for (int k = 0; k < inner; ++k) {
        const int code = extreme ? (random.chance(90) ? least : most) : random.integer(least, most);
        sum += static_cast<uint32_t>(code);
        if (format == CodeFormat::Bytes)
          row[k / 4] |= (static_cast<uint32_t>(code) & 255u) << (8 * (k % 4));
        else
          row[k / 16] |= static_cast<uint32_t>(code + 1) << (8 * (k % 4) + 2 * (k % 16 / 4));
      }
      if (format == CodeFormat::Bytes) row[divide_up(inner, 4)] = sum;
    }
    for (size_t at = 0; at < scale.size(); ++at) scale[at] = ldexpf(1, random.integer(-3, 3));
  }

  CodesRef ref() const { return {codes.data(), scale.data(), words, format, has_row_scales, 0}; }
  int at(int e, int r, int k) const { return code_at(codes.data() + size_t(e * rows + r) * words, k, format); }
  double scale_of(int e, int r) const { return scale[has_row_scales ? e * rows + r : 0]; }

  int rows, inner;
  CodeFormat format;
  int words;
  bool has_row_scales;
  Array<int32_t> codes;
  Array<float> scale;
};

/** Whether this machine can be asked for products of bytes. */
bool can_dot() {
#if defined(__AVX512F__)
  return __builtin_cpu_supports("avx512vnni");
#elif defined(__x86_64__)
  return false;
#else
  return true;
#endif
}

}  // namespace

bool quantise_case(uint64_t seed) {
  Random random(seed);
  const int rows = random.integer(1, 9),
            inner = random.chance(10) ? 8192 + random.integer(0, 40) : random.integer(0, 300);
  const auto dtype = static_cast<DType>(random.integer(0, 2));
  const bool given = random.chance(50);
  const CodeFormat format = given && random.chance(50) ? CodeFormat::Trits : CodeFormat::Bytes;
  const int stride = inner + random.integer(0, 5), words = words_of(inner, format), size = element_size(dtype);
  Array<uint8_t> x(size_t(rows > 0 ? (rows - 1) * stride + inner : 0) * size);
  const auto at = [&](int r, int k) { return x.data() + (size_t(r) * stride + k) * size; };
  for (int r = 0; r < rows; ++r)
    for (int k = 0; k < inner; ++k) encode(at(r, k), dtype, random.number());
  const int odd = random.chance(20) && inner > 0 ? random.integer(0, rows - 1) : -1;
  if (odd >= 0) encode(at(odd, inner / 2), dtype, NAN);
  Array<float> scale(given ? 1 : 0), row_scale(given ? 0 : rows);
  if (given) scale[0] = random.chance(50) ? 2.5f : 100.0f;
  const Array<int32_t> codes(size_t(rows) * words);
  const float least = 0.25f, smallest = format == CodeFormat::Trits ? -1 : -128;
  const float largest = format == CodeFormat::Trits ? 1 : 127;
  const QuantiseParams p{x.data(),     given ? scale.data() : nullptr,
                         codes.data(), given ? nullptr : row_scale.data(),
                         stride,       dtype,
                         rows,         inner,
                         words,        format,
                         least,        smallest,
                         largest};
  const auto workspace = poisoned_workspace<LongRowWorkspace>();
  for (int item = quantise_items(p) - 1; item >= 0; --item) quantise_item(p, item, *workspace);

  Check check({"quantise", seed});
  for (int r = 0; r < rows; ++r) {
    float most = least;
    for (int k = 0; k < inner; ++k) most = fmaxf(most, fabsf(static_cast<float>(decode(at(r, k), dtype))));
    const float times = given ? scale[0] : 127.0f / most;
    if (!given && r != odd) check.equal("scale", row_scale[r], times);
    if (!given && r == odd && !std::isnan(row_scale[r])) check.fail("scale of NaN", row_scale[r], NAN);
    const int32_t* row = codes.data() + size_t(r) * words;
    int32_t sum = 0;
    for (int k = 0; k < inner; ++k) {
      const float value = static_cast<float>(decode(at(r, k), dtype));
      const int code = code_at(row, k, format);
      sum += code;
      if (r == odd) continue;
      check.equal("code", code, fminf(fmaxf(rintf(value * times), smallest), largest));
    }
    const int used = divide_up(inner, format == CodeFormat::Trits ? 16 : 4);
    if (format == CodeFormat::Bytes) check.equal("sum", row[used], sum);
    for (int w = used + (format == CodeFormat::Bytes); w < words; ++w) check.equal("what is left", row[w], 0);
  }
  return check.passed();
}

bool code_matmul_case(uint64_t seed) {
  Random random(seed);
  const auto size = [&] { return random.chance(50) ? random.integer(1, 20) : random.integer(1, 150); };
  const int rows = size(), columns = size();
  const int inner = random.chance(30) ? random.integer(500, 2600) : random.chance(10) ? 0 : size();
  const CodeFormat format = random.chance(50) ? CodeFormat::Trits : CodeFormat::Bytes;
  const bool extreme = random.chance(30);
  const Rows a(random, rows, inner, CodeFormat::Bytes, extreme), b(random, columns, inner, format, extreme);
  const Array<float> bias = random_array(random.chance(50) ? columns : 0, random);
  const Array<float> c(size_t(2) * rows * columns);
  CodeMatmulParams p{};
  p.a = a.ref();
  p.b = b.ref();
  p.c = c.data();
  p.bias = bias.size() ? bias.data() : nullptr;
  p.batch = 2;
  p.rows = rows;
  p.columns = columns;
  p.inner = inner;
  Check check({"code_matmul", seed});
  for (const bool dot : {false, true}) {
    if (dot && !can_dot()) continue;
    has_dot_products = dot;
    const auto workspace = poisoned_workspace<CodeMatmulWorkspace>();
    for (int item = code_matmul_items(p) - 1; item >= 0; --item) code_matmul_item(p, item, *workspace);
    for (int e = 0; e < 2; ++e)
      for (int i = 0; i < rows; ++i)
        for (int j = 0; j < columns; ++j) {
          int64_t sum = 0;
          for (int k = 0; k < inner; ++k) sum += a.at(e, i, k) * b.at(e, j, k);
          // Scales are powers of two.
          const float scaled = static_cast<float>(static_cast<double>(sum) / a.scale_of(e, i) / b.scale_of(e, j));
          check.equal(dot ? "product of bytes" : "product", c[(size_t(e) * rows + i) * columns + j],
                      bias.size() ? scaled + bias[j] : scaled);
        }
  }
  has_dot_products = false;
  return check.passed();
}

}  // namespace flashattn::test
