// Tensor cores: how matrices lie in the registers of a warp, and what the products are. Layouts are those of the PTX
// ISA, "Matrix fragments for mma.m16n8k16 with floating point type" and "... mma.m16n8k8".
#pragma once
#include "../emulator/numbers.h"
#include "device.h"
#include "numbers.cuh"

namespace flashattn::test {

inline constexpr int kLanes = 32, kRegistersOfA = 4, kRegistersOfB = 2, kRegistersOfC = 4;

/** Four matrices of 8 x 8 16-bit elements are read from rows that lie in shared memory in another order. */
template <bool Transposed>
struct LoadMatrixBody {
  static constexpr int kThreads = kLanes, kRows = 32, kRowBytes = 16, kMatrices = 4;
  static constexpr int kSharedBytes = kRows * kRowBytes;
  static FLASHATTN_DEVICE void run(const Arrays& arrays) {
    const int lane = ptx::thread();
    const uint4 row = ptx::load_global(reinterpret_cast<const uint4*>(arrays.in) + lane);
    const uint32_t place = ptx::shared_base() + place_of(lane) * kRowBytes;
    ptx::store_shared(place, row);
    ptx::sync_warp();
    uint32_t registers[kMatrices];
    if constexpr (Transposed)
      ptx::ldmatrix_x4_trans(registers, place);
    else
      ptx::ldmatrix_x4(registers, place);
    for (int i = 0; i < kMatrices; ++i) ptx::store_global(arrays.out + i * kLanes + lane, registers[i]);
  }

 private:
  static FLASHATTN_DEVICE int place_of(int lane) { return (lane * 5 + 3) % kRows; }
};

/** Element (row, column) of matrix `m`, whose 8 rows of 8 elements are packed in words. */
inline uint32_t element_of(const Words& words, int m, int row, int column) {
  return words[(m * 8 + row) * 4 + column / 2] >> column % 2 * 16 & 0xffff;
}

inline Words loaded_matrices(const Words& words, bool transposed) {
  Words registers;
  for (int m = 0; m < 4; ++m)
    for (int lane = 0; lane < kLanes; ++lane) {
      const int row = lane / 4, column = lane % 4 * 2;
      const auto at = [&](int r, int c) { return element_of(words, m, transposed ? c : r, transposed ? r : c); };
      registers.push_back(at(row, column) | at(row, column + 1) << 16);
    }
  return registers;
}

struct F16Product {
  static constexpr DType kDType = DType::Float16;
  static constexpr int kDepth = 16;
  static FLASHATTN_DEVICE void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    ptx::mma_f16(c, a, b0, b1);
  }
};
struct Bf16Product {
  static constexpr DType kDType = DType::BFloat16;
  static constexpr int kDepth = 16;
  static FLASHATTN_DEVICE void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    ptx::mma_bf16(c, a, b0, b1);
  }
};
struct Tf32Product {
  static constexpr DType kDType = DType::Float32;
  static constexpr int kDepth = 8;
  static FLASHATTN_DEVICE void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    ptx::mma_tf32(c, a, b0, b1);
  }
};

/** Every lane reads its registers of a, b and c in a row, multiplies, and writes those of c. */
template <class Product>
struct ProductBody {
  static constexpr int kThreads = kLanes;
  static FLASHATTN_DEVICE void run(const Arrays& arrays) {
    const int lane = ptx::thread();
    const auto read = [&](int i) { return ptx::load_global(arrays.in + i * kLanes + lane); };
    uint32_t a[kRegistersOfA];
    float c[kRegistersOfC];
    for (int i = 0; i < kRegistersOfA; ++i) a[i] = read(i);
    for (int i = 0; i < kRegistersOfC; ++i) c[i] = ptx::float_of(read(kRegistersOfA + kRegistersOfB + i));
    Product::multiply(c, a, read(kRegistersOfA), read(kRegistersOfA + 1));
    for (int i = 0; i < kRegistersOfC; ++i) ptx::store_global(arrays.out + i * kLanes + lane, ptx::bits_of(c[i]));
  }
};

inline constexpr int kProductRows = 16, kProductColumns = 8;

/** a [16, depth] b [depth, 8] + c [16, 8], of numbers that the formats hold. */
struct Product {
  int depth;
  std::vector<double> a, b, c;

  explicit Product(int depth)
      : depth(depth),
        a(kProductRows * depth),
        b(depth * kProductColumns),
        c(kProductRows * kProductColumns) {}

  double result(int row, int column) const {
    double sum = c[row * kProductColumns + column];
    for (int k = 0; k < depth; ++k) sum += a[row * depth + k] * b[k * kProductColumns + column];
    return sum;
  }
};

/** Registers [10][lane]: of a, of b, of c. */
inline Words registers_of(DType dtype, const Product& p) {
  const int packed = dtype == DType::Float32 ? 1 : 2;  // elements a register
  const int half = p.depth / 2;
  Words words;
  const auto add = [&](auto element) {  // of (lane, which of the register's elements)
    for (int lane = 0; lane < kLanes; ++lane) {
      uint32_t word = 0;
      for (int i = 0; i < packed; ++i) word |= encode(dtype, element(lane, i)) << 16 * i;
      words.push_back(word);
    }
  };
  for (int i = 0; i < kRegistersOfA; ++i)
    add([&](int lane, int e) { return p.a[(lane / 4 + i % 2 * 8) * p.depth + lane % 4 * packed + e + i / 2 * half]; });
  for (int i = 0; i < kRegistersOfB; ++i)
    add([&](int lane, int e) { return p.b[(lane % 4 * packed + e + i * half) * kProductColumns + lane / 4]; });
  for (int i = 0; i < kRegistersOfC; ++i)
    for (int lane = 0; lane < kLanes; ++lane)
      words.push_back(encode(DType::Float32, p.c[(lane / 4 + i / 2 * 8) * kProductColumns + lane % 4 * 2 + i % 2]));
  return words;
}

inline Words result_registers(const Product& p) {
  Words words;
  for (int i = 0; i < kRegistersOfC; ++i)
    for (int lane = 0; lane < kLanes; ++lane)
      words.push_back(encode(DType::Float32, p.result(lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2)));
  return words;
}

/** Every product and every partial sum is exact in float32, in any order. */
inline Product of_integers(int depth) {
  Random random(2);
  Product p(depth);
  for (double& x : p.a) x = random.below(33) - 16;
  for (double& x : p.b) x = random.below(33) - 16;
  for (double& x : p.c) x = random.below(2001) - 1000;
  return p;
}

/** Of numbers of the format within [-1, 1]. */
inline Product of_fractions(DType dtype, int depth) {
  Random random(3);
  const auto draw = [&] {
    const double x = random.uniform(-1, 1);
    return dtype == DType::Float32 ? std::round(x * 1024) / 1024 : round_to(dtype, x);  // tf32 has 10 bits
  };
  Product p(depth);
  for (double& x : p.a) x = draw();
  for (double& x : p.b) x = draw();
  for (double& x : p.c) x = std::round(random.uniform(-1, 1) * 65536) / 65536;
  return p;
}

/** Every lane reads its registers of a, b and c in a row, multiplies bytes, and writes those of c. */
struct ByteProductBody {
  static constexpr int kThreads = kLanes, kDepth = 32;
  static FLASHATTN_DEVICE void run(const Arrays& arrays) {
    const int lane = ptx::thread();
    const auto read = [&](int i) { return ptx::load_global(arrays.in + i * kLanes + lane); };
    uint32_t a[kRegistersOfA];
    int32_t c[kRegistersOfC];
    for (int i = 0; i < kRegistersOfA; ++i) a[i] = read(i);
    for (int i = 0; i < kRegistersOfC; ++i) c[i] = static_cast<int32_t>(read(kRegistersOfA + kRegistersOfB + i));
    ptx::mma_s8(c, a, read(kRegistersOfA), read(kRegistersOfA + 1));
    for (int i = 0; i < kRegistersOfC; ++i)
      ptx::store_global(arrays.out + i * kLanes + lane, static_cast<uint32_t>(c[i]));
  }
};

/** All bytes and words there are; sums wrap around. Layouts are those of "Matrix fragments for mma.m16n8k32". */
inline void add_byte_product_case(Cases& cases) {
  const Words words = random_words((kRegistersOfA + kRegistersOfB + kRegistersOfC) * kLanes, 5);
  const auto byte = [&](int i, int row, int k) {
    return static_cast<int8_t>(words[i * kLanes + row * 4 + k / 4] >> 8 * (k % 4));
  };
  Words expected;
  for (int i = 0; i < kRegistersOfC; ++i)
    for (int lane = 0; lane < kLanes; ++lane) {
      const int row = lane / 4, column = lane % 4 * 2 + i % 2;
      uint32_t sum = words[(kRegistersOfA + kRegistersOfB + i) * kLanes + lane];
      for (int k = 0; k < ByteProductBody::kDepth; ++k) {
        const int half = k / 16;
        sum += static_cast<uint32_t>(byte(2 * half + i / 2, row, k % 16) * byte(kRegistersOfA + half, column, k % 16));
      }
      expected.push_back(sum);
    }
  cases.push_back(body_case<ByteProductBody>("mma_s8", "", kSameBits, words, expected));
}

/** The smallest subnormal number of the format, which tensor cores do not take for 0. */
inline Product of_subnormals(DType dtype, int depth) {
  Product p(depth);
  const double smallest = dtype == DType::Float32 ? 0x1p-136 : decode(dtype, 1);
  for (int row = 0; row < kProductRows; ++row) p.a[row * depth + row % depth] = smallest * (row + 1);
  for (int k = 0; k < depth; ++k)
    for (int column = 0; column < kProductColumns; ++column)
      p.b[k * kProductColumns + column] = std::ldexp(1.0, 10 + column % 4);
  return p;
}

/** An infinity in a row, a NaN in another, an infinity against zeros in a third, and one of each in c. */
inline Product of_special_numbers(int depth) {
  Product p = of_integers(depth);
  for (double& x : p.b) x = std::fabs(x) + 1;
  p.a[1 * depth + 2] = kInf;
  p.a[3 * depth + 5] = kNaN;
  p.a[9 * depth + depth - 1] = -kInf;
  for (int k = 0; k < depth; ++k) p.b[k * kProductColumns + 6] = 0;
  p.c[12 * kProductColumns + 3] = kInf;
  p.c[13 * kProductColumns + 4] = kNaN;
  p.c[1 * kProductColumns + 1] = -kInf;
  return p;
}

template <class P>
void add_product_cases(Cases& cases, const char* function) {
  // Tensor cores align every term to the largest and drop what falls off, in an order of their own.
  constexpr Tolerance kSums{Tolerance::Near, 0x1p-17, 0};
  const auto add = [&](const char* aspect, Tolerance tolerance, const Product& product) {
    cases.push_back(body_case<ProductBody<P>>(function, aspect, tolerance, registers_of(P::kDType, product),
                                              result_registers(product)));
  };
  add("integers", kSameBits, of_integers(P::kDepth));
  add("fractions", kSums, of_fractions(P::kDType, P::kDepth));
  add("subnormal numbers", kSameBits, of_subnormals(P::kDType, P::kDepth));
  add("special numbers", kSameFloats, of_special_numbers(P::kDepth));
}

inline void add_fragment_cases(Cases& cases) {
  const Words elements = random_words(LoadMatrixBody<false>::kRows * 4, 4);
  const Grid grid{dim3(1), LoadMatrixBody<false>::kSharedBytes};
  cases.push_back(
      body_case<LoadMatrixBody<false>>("ldmatrix_x4", "", kSameBits, elements, loaded_matrices(elements, false), grid));
  cases.push_back(body_case<LoadMatrixBody<true>>("ldmatrix_x4_trans", "", kSameBits, elements,
                                                  loaded_matrices(elements, true), grid));
  add_product_cases<F16Product>(cases, "mma_f16");
  add_product_cases<Bf16Product>(cases, "mma_bf16");
  add_product_cases<Tf32Product>(cases, "mma_tf32");
  add_byte_product_case(cases);
}

}  // namespace flashattn::test
