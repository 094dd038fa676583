// Matrix fragments against a plain product, with small integers that every format holds exactly, and number formats
// against their definitions.
#include <cmath>

#include "expect.h"
#include "ptx.cuh"

namespace {

constexpr int kRows = 16, kColumns = 8, kThreads = 32;

enum class Kind { F16, BF16, TF32 };

constexpr int depth_of(Kind kind) { return kind == Kind::TF32 ? 8 : 16; }

struct Memory {
  const float* a;  // [kRows, depth]
  const float* b;  // [depth, kColumns]
  float* c;        // [kRows, kColumns], added to
};

FLASHATTN_DEVICE int group() { return ptx::thread() / 4; }
FLASHATTN_DEVICE int place() { return ptx::thread() % 4; }

template <Kind kind>
FLASHATTN_DEVICE void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kind == Kind::F16) ptx::mma_f16(c, a, b0, b1);
  if constexpr (kind == Kind::BF16) ptx::mma_bf16(c, a, b0, b1);
  if constexpr (kind == Kind::TF32) ptx::mma_tf32(c, a, b0, b1);
}

template <Kind kind>
FLASHATTN_DEVICE uint32_t pack(float low, float high) {
  return kind == Kind::F16 ? ptx::pack_f16(low, high) : ptx::pack_bf16(low, high);
}

FLASHATTN_DEVICE float* c_element(const Memory& m, int i) {
  return m.c + (group() + i / 2 * 8) * kColumns + 2 * place() + i % 2;
}

template <class Multiply>
FLASHATTN_DEVICE void update_c(const Memory& m, Multiply multiply) {
  float c[4];
  for (int i = 0; i < 4; ++i) c[i] = ptx::load_global(c_element(m, i));
  multiply(c);
  for (int i = 0; i < 4; ++i) ptx::store_global(c_element(m, i), c[i]);
}

/** Registers filled element by element, as the PTX ISA numbers them. */
template <Kind kind>
FLASHATTN_KERNEL(kThreads)
from_registers(const Memory m) {
  constexpr int depth = depth_of(kind);
  const auto a_at = [&](int row, int k) { return ptx::load_global(m.a + row * depth + k); };
  const auto b_at = [&](int k, int column) { return ptx::load_global(m.b + k * kColumns + column); };
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) {
    const int row = group() + i % 2 * 8;
    if constexpr (kind == Kind::TF32) {
      a[i] = ptx::to_tf32(a_at(row, place() + i / 2 * 4));
    } else {
      const int k = 2 * place() + i / 2 * 8;
      a[i] = pack<kind>(a_at(row, k), a_at(row, k + 1));
    }
  }
  for (int i = 0; i < 2; ++i) {
    if constexpr (kind == Kind::TF32) {
      b[i] = ptx::to_tf32(b_at(place() + 4 * i, group()));
    } else {
      const int k = 2 * place() + 8 * i;
      b[i] = pack<kind>(b_at(k, group()), b_at(k + 1, group()));
    }
  }
  update_c(m, [&](float(&c)[4]) { multiply<kind>(c, a, b[0], b[1]); });
}

constexpr int kDepth = 16;

/** Rows of 16-bit numbers in shared memory: a [16, 16], then b transposed [8, 16] or as it is [16, 8]. */
template <Kind kind>
FLASHATTN_DEVICE void fill_shared(const Memory& m, bool transpose_b) {
  const uint32_t a = ptx::shared_base(), b = a + kRows * kDepth * 2;
  const auto store = [](uint32_t to, float x) { ptx::store_shared(to, static_cast<uint16_t>(pack<kind>(x, 0))); };
  for (int i = ptx::thread(); i < kRows * kDepth; i += kThreads)
    store(a + static_cast<uint32_t>(i) * 2, ptx::load_global(m.a + i));
  for (int i = ptx::thread(); i < kDepth * kColumns; i += kThreads) {
    const int k = i / kColumns, column = i % kColumns;
    const int at = transpose_b ? column * kDepth + k : i;
    store(b + static_cast<uint32_t>(at) * 2, ptx::load_global(m.b + i));
  }
  ptx::sync_warp();
}

FLASHATTN_DEVICE void load_a(uint32_t (&a)[4]) {
  const int row = ptx::thread() % 16, k = ptx::thread() / 16 * 8;
  ptx::ldmatrix_x4(a, ptx::shared_base() + static_cast<uint32_t>(row * kDepth + k) * 2);
}

template <Kind kind>
FLASHATTN_KERNEL(kThreads)
from_rows(const Memory m) {
  fill_shared<kind>(m, true);
  uint32_t a[4], b[4];
  load_a(a);
  // Two matrices are needed; the other two are the same again.
  const int column = ptx::thread() % 8, k = ptx::thread() / 8 % 2 * 8;
  const uint32_t first = ptx::shared_base() + kRows * kDepth * 2;
  ptx::ldmatrix_x4(b, first + static_cast<uint32_t>(column * kDepth + k) * 2);
  update_c(m, [&](float(&c)[4]) { multiply<kind>(c, a, b[2], b[3]); });
}

template <Kind kind>
FLASHATTN_KERNEL(kThreads)
from_columns(const Memory m) {
  fill_shared<kind>(m, false);
  uint32_t a[4], b[4];
  load_a(a);
  const int k = ptx::thread() % 16;
  const uint32_t first = ptx::shared_base() + kRows * kDepth * 2;
  ptx::ldmatrix_x4_trans(b, first + static_cast<uint32_t>(k * kColumns) * 2);
  update_c(m, [&](float(&c)[4]) { multiply<kind>(c, a, b[0], b[1]); });
}

void check(void (*kernel)(Memory), const char* name, Kind kind) {
  const int depth = depth_of(kind);
  emulator::Buffer<float> a(static_cast<size_t>(kRows * depth), "a"), b(static_cast<size_t>(depth * kColumns), "b"),
      c(kRows * kColumns, "c");
  const auto value = [](size_t i, size_t period) { return static_cast<float>(static_cast<int>(i * 7 % period) - 8); };
  for (size_t i = 0; i < a.size(); ++i) a[i] = value(i, 17);
  for (size_t i = 0; i < b.size(); ++i) b[i] = value(i, 19);
  for (size_t i = 0; i < c.size(); ++i) c[i] = static_cast<float>(i);
  ptx::launch(kernel, name, dim3(1), kThreads, 1024, nullptr, Memory{a.data(), b.data(), c.data()});
  for (int row = 0; row < kRows; ++row)
    for (int column = 0; column < kColumns; ++column) {
      float expected = static_cast<float>(row * kColumns + column);
      for (int k = 0; k < depth; ++k) expected += a.data()[row * depth + k] * b.data()[k * kColumns + column];
      EXPECT(c.data()[row * kColumns + column] == expected);
    }
}

/** Every number of a 16-bit format, and what lies between neighbours. */
template <class From, class To>
void check_format(From from, To to, uint16_t largest) {
  for (uint32_t bits = 0; bits < largest; ++bits) {
    const uint16_t low = static_cast<uint16_t>(bits), high = static_cast<uint16_t>(bits + 1);
    const float middle = from(low) / 2 + from(high) / 2;
    EXPECT(to(from(low)) == low);
    EXPECT(to(-from(low)) == (low | 0x8000));
    if (from(low) / 2 + from(high) / 2 - from(low) != from(high) - middle) continue;  // not a float32
    EXPECT(to(middle) == (low % 2 == 0 ? low : high));
    EXPECT(to(std::nextafterf(middle, 0)) == low);
    EXPECT(to(std::nextafterf(middle, INFINITY)) == high);
  }
  const uint16_t infinity = static_cast<uint16_t>(largest + 1);
  EXPECT(to(INFINITY) == infinity && to(3.4028235e38f) == infinity && from(infinity) == INFINITY);
  EXPECT(std::isnan(from(to(NAN))));
}

void check_numbers() {
  check_format(emulator::from_f16, emulator::to_f16, 0x7bff);
  check_format(emulator::from_bf16, emulator::to_bf16, 0x7f7f);
  const float unit = 0x1p-10f;
  EXPECT(ptx::float_of(ptx::to_tf32(1 + unit)) == 1 + unit);
  EXPECT(ptx::float_of(ptx::to_tf32(1 + unit / 2)) == 1 + unit);  // a tie: away from zero
  EXPECT(ptx::float_of(ptx::to_tf32(-1 - unit / 2)) == -1 - unit);
  EXPECT(ptx::float_of(ptx::to_tf32(std::nextafterf(1 + unit / 2, 0))) == 1);
  EXPECT(ptx::float_of(ptx::to_tf32(INFINITY)) == INFINITY && std::isnan(ptx::float_of(ptx::to_tf32(NAN))));
  EXPECT(ptx::exp2(-126) == 0x1p-126f && ptx::exp2(-126.5f) == 0 && ptx::exp2(-INFINITY) == 0);
  EXPECT(ptx::multiply_high(0xd2511f53u, 0xcd9e8d57u) == 0xa8ed3844u);
}

}  // namespace

int main() {
  for (int schedule = 0; schedule < 4; ++schedule) {
    emulator::config().schedule = schedule;
    check(from_registers<Kind::F16>, "from_registers", Kind::F16);
    check(from_registers<Kind::BF16>, "from_registers", Kind::BF16);
    check(from_registers<Kind::TF32>, "from_registers", Kind::TF32);
    check(from_rows<Kind::F16>, "from_rows", Kind::F16);
    check(from_rows<Kind::BF16>, "from_rows", Kind::BF16);
    check(from_columns<Kind::F16>, "from_columns", Kind::F16);
    check(from_columns<Kind::BF16>, "from_columns", Kind::BF16);
  }
  check_numbers();
  return finish();
}
