// Programs of arithmetic and reductions on memory of exactly their size, with any strides, against plain loops in double.
#include "ops/elementwise.h"

#include <cmath>
#include <vector>

#include "cases.h"
#include "check.h"
#include "ops/reduce.h"

namespace flashattn::test {

namespace {

using Index = std::vector<int64_t>;

int64_t product(const Index& sizes) {
  int64_t count = 1;
  for (const int64_t n : sizes) count *= n;
  return count;
}

/** The index at a row-major place. */
Index index_at(int64_t at, const Index& sizes) {
  Index index(sizes.size());
  for (size_t axis = sizes.size(); axis-- > 0;) {
    index[axis] = at % sizes[axis];
    at /= sizes[axis];
  }
  return index;
}

int64_t place_of(const Index& index, const Index& strides) {
  int64_t place = 0;
  for (size_t axis = 0; axis < index.size(); ++axis) place += index[axis] * strides[axis];
  return place;
}

/** Elements of some shape, whose axes lie in memory in any order, with gaps, or not at all: then they are repeated. */
struct Strided {
  Strided(Random& random, const Index& sizes, DType dtype, bool may_repeat)
      : sizes(sizes),
        strides(sizes.size()),
        dtype(dtype) {
    std::vector<size_t> order(sizes.size());
    for (size_t axis = 0; axis < order.size(); ++axis) order[axis] = axis;
    if (random.chance(40))
      for (size_t axis = order.size(); axis-- > 1;) std::swap(order[axis], order[size_t(random.integer(0, int(axis)))]);
    int64_t stride = 1, last = 0;
    for (size_t at = order.size(); at-- > 0;) {
      const size_t axis = order[at];
      if (may_repeat && random.chance(15)) continue;
      if (random.chance(10)) stride *= 2;
      strides[axis] = stride;
      last += (sizes[axis] - 1) * stride;
      stride *= sizes[axis];
    }
    bytes = Array<uint8_t>(size_t(last + 1) * element_size(dtype));
  }

  uint8_t* at(const Index& index) const { return bytes.data() + place_of(index, strides) * element_size(dtype); }

  void fill(Random& random) const {
    for (int64_t at = 0; at < product(sizes); ++at) encode(this->at(index_at(at, sizes)), dtype, random.number());
  }

  Index sizes, strides;
  DType dtype;
  Array<uint8_t> bytes;
};

/** What the program says, in double. */
double apply(Opcode opcode, double a, double b, double c) {
  switch (opcode) {
    case Opcode::add: return a + b;
    case Opcode::sub: return a - b;
    case Opcode::mul: return a * b;
    case Opcode::div: return a / b;
    case Opcode::minimum: return a < b || a != a ? a : b;
    case Opcode::maximum: return a > b || a != a ? a : b;
    case Opcode::pow: return std::pow(a, b);
    case Opcode::less: return a < b;
    case Opcode::lessEqual: return a <= b;
    case Opcode::equal: return a == b;
    case Opcode::neg: return -a;
    case Opcode::abs: return std::fabs(a);
    case Opcode::sign: return (a > 0) - (a < 0);
    case Opcode::sqrt: return std::sqrt(a);
    case Opcode::rsqrt: return 1 / std::sqrt(a);
    case Opcode::exp: return std::exp(a);
    case Opcode::expm1: return std::expm1(a);
    case Opcode::log: return std::log(a);
    case Opcode::log1p: return std::log1p(a);
    case Opcode::sin: return std::sin(a);
    case Opcode::cos: return std::cos(a);
    case Opcode::tanh: return std::tanh(a);
    case Opcode::sigmoid: return 1 / (1 + std::exp(-a));
    case Opcode::erf: return std::erf(a);
    case Opcode::normalCdf: return 0.5 * std::erfc(-a * std::sqrt(0.5));
    case Opcode::floor: return std::floor(a);
    case Opcode::round: return std::nearbyint(a);
    case Opcode::where: return a != 0 ? b : c;
    case Opcode::multiplyAdd: return a * b + c;
    case Opcode::uniform:
    case Opcode::normal:
    case Opcode::lookup: break;
  }
  return 0;
}

uint32_t word_of(Opcode opcode, int to, int a, int b, int c) {
  return uint32_t(opcode) | uint32_t(to) << 8 | uint32_t(a) << 14 | uint32_t(b) << 20 | uint32_t(c) << 26;
}

/** Instructions whose results are exact for small multiples of 1/64. */
constexpr Opcode kExact[] = {Opcode::add,   Opcode::sub,   Opcode::minimum, Opcode::maximum, Opcode::less,
                             Opcode::neg,   Opcode::abs,   Opcode::sign,    Opcode::equal,   Opcode::lessEqual,
                             Opcode::round, Opcode::floor, Opcode::where};

DType random_dtype(Random& random) {
  return random.chance(50) ? DType::Float32 : static_cast<DType>(random.integer(0, 2));
}

/** A chain of exact instructions, or one instruction of any kind for each output. */
void check_program(Check& check, Random& random) {
  Index sizes(kProgramDims, 1);
  for (int axis = random.integer(0, kProgramDims - 1); axis < kProgramDims; ++axis)
    sizes[size_t(axis)] = random.chance(20) ? random.integer(200, 700) : random.integer(1, 9);
  while (product(sizes) > 40000)
    for (int64_t& n : sizes) n = (n + 1) / 2;
  const bool exact = random.chance(50);
  ElementwiseParams p{};
  p.input_count = random.integer(0, 4);
  p.output_count = random.integer(1, 3);
  p.constant_count = random.integer(p.input_count == 0, 3);
  for (int axis = 0; axis < kProgramDims; ++axis) p.sizes[axis] = sizes[size_t(axis)];
  for (int c = 0; c < p.constant_count; ++c) p.constants[c] = random.number();
  std::vector<Strided> arrays;
  for (int k = 0; k < p.input_count + p.output_count; ++k) {
    const bool input = k < p.input_count;
    arrays.emplace_back(random, sizes, random_dtype(random), input);
    if (input) arrays.back().fill(random);
  }
  const int leaves = p.input_count + p.constant_count;
  if (exact) {
    p.instruction_count = random.integer(1, 7);
    int filled = leaves;
    for (int i = 0; i < p.instruction_count; ++i) {
      const auto any = [&] { return random.integer(0, filled - 1); };
      const Opcode opcode = kExact[random.integer(0, int(sizeof(kExact) / sizeof(Opcode)) - 1)];
      const int a = any(), b = any(), c = any();
      const int to = filled > leaves && random.chance(40) ? random.integer(leaves, filled - 1) : filled++;
      p.instructions[i] = word_of(opcode, to, a, b, c);
    }
    for (int k = 0; k < p.output_count; ++k) p.operands[p.input_count + k].result = random.integer(0, filled - 1);
  } else {
    p.instruction_count = p.output_count;
    for (int k = 0; k < p.output_count; ++k) {
      const auto any = [&] { return random.integer(0, leaves - 1); };
      const auto opcode = static_cast<Opcode>(random.integer(0, int(Opcode::multiplyAdd)));
      p.instructions[k] = word_of(opcode, leaves + k, any(), any(), any());
      p.operands[p.input_count + k].result = leaves + k;
    }
  }
  for (size_t k = 0; k < arrays.size(); ++k) {
    ProgramOperand& operand = p.operands[k];
    operand.data = arrays[k].bytes.data();
    operand.dtype = arrays[k].dtype;
    for (int axis = 0; axis < kProgramDims; ++axis) operand.strides[axis] = arrays[k].strides[size_t(axis)];
  }
  const auto workspace = poisoned_workspace<ElementwiseWorkspace>();
  for (int item = elementwise_items(p) - 1; item >= 0; --item) elementwise_item(p, item, *workspace);

  std::vector<std::vector<bool>> written;
  for (const Strided& array : arrays) written.emplace_back(array.bytes.size(), false);
  for (int64_t at = 0; at < product(sizes); ++at) {
    const Index index = index_at(at, sizes);
    double registers[64] = {};
    for (int k = 0; k < p.input_count; ++k) registers[k] = decode(arrays[size_t(k)].at(index), arrays[size_t(k)].dtype);
    for (int c = 0; c < p.constant_count; ++c) registers[p.input_count + c] = p.constants[c];
    for (int i = 0; i < p.instruction_count; ++i) {
      const Instruction in(p.instructions[i]);
      registers[in.to] = apply(in.opcode, registers[in.a], registers[in.b], registers[in.c]);
    }
    for (int k = p.input_count; k < p.input_count + p.output_count; ++k) {
      const Strided& array = arrays[size_t(k)];
      const double got = decode(array.at(index), array.dtype), wanted = registers[p.operands[k].result];
      if (std::isnan(wanted) ? !std::isnan(got) : std::isinf(wanted) && got != wanted)
        check.fail("a value", got, wanted);
      if (std::isfinite(wanted)) {
        // 16-bit subnormals are not among these numbers, but what lies below them is.
        const double least = array.dtype == DType::Float16 ? 0x1p-25 : 0;
        check.near("an element", got, wanted, least, rounding(array.dtype) + (exact ? 0 : 6e-7));
      }
      for (int byte = 0; byte < element_size(array.dtype); ++byte)
        written[size_t(k)][size_t(array.at(index) - array.bytes.data() + byte)] = true;
    }
  }
  for (size_t k = size_t(p.input_count); k < arrays.size(); ++k)
    for (size_t byte = 0; byte < arrays[k].bytes.size(); ++byte)
      if (!written[k][byte]) check.equal("a byte between elements", arrays[k].bytes[byte], 0xa5);
}

/** Whole numbers as the floats nearest to them and what those are short of: both together are the numbers. */
void check_rests(Check& check, Random& random) {
  const int count = random.integer(1, 300), stride = random.chance(20) ? 0 : random.integer(1, 2);
  const Array<int32_t> whole(size_t((count - 1) * stride + 1));
  for (size_t at = 0; at < whole.size(); ++at)
    whole[at] = random.chance(10) ? INT32_MAX : random.chance(10) ? INT32_MIN : static_cast<int32_t>(random.bits());
  const Array<float> values{size_t(count)}, rests{size_t(count)};
  ElementwiseParams p{};
  p.input_count = 2;
  p.output_count = 2;
  p.constant_count = 1;
  p.instruction_count = 2;
  p.instructions[0] = word_of(Opcode::add, 3, 0, 2, 0);
  p.instructions[1] = word_of(Opcode::add, 4, 1, 2, 0);
  for (int64_t& n : p.sizes) n = 1;
  p.sizes[kProgramDims - 1] = count;
  p.operands[0] = {whole.data(), {0, 0, 0, stride}, DType::Int32, 0};
  p.operands[1] = {whole.data(), {0, 0, 0, stride}, kInt32Rest, 0};
  p.operands[2] = {values.data(), {0, 0, 0, 1}, DType::Float32, 3};
  p.operands[3] = {rests.data(), {0, 0, 0, 1}, DType::Float32, 4};
  const auto workspace = poisoned_workspace<ElementwiseWorkspace>();
  for (int item = 0; item < elementwise_items(p); ++item) elementwise_item(p, item, *workspace);
  for (int i = 0; i < count; ++i)
    check.equal("a whole number", double{values[size_t(i)]} + rests[size_t(i)], double(whole[size_t(i * stride)]));
}

/** The same numbers whatever the order of items, from 0 to 1; a mean and a deviation that are those of the distribution. */
void check_random(Check& check, Random& random) {
  constexpr int kCount = 40000;
  ElementwiseParams p{};
  p.output_count = 1;
  p.instruction_count = 1;
  p.seed_low = static_cast<uint32_t>(random.bits());
  const bool normal = random.chance(50);
  p.instructions[0] = word_of(normal ? Opcode::normal : Opcode::uniform, 0, 0, 1, 0);
  for (int64_t& n : p.sizes) n = 1;
  p.sizes[kProgramDims - 1] = kCount;
  const Array<float> values(kCount);
  p.operands[0] = {values.data(), {0, 0, 0, 1}, DType::Float32, 0};
  const auto workspace = poisoned_workspace<ElementwiseWorkspace>();
  for (int item = elementwise_items(p) - 1; item >= 0; --item) elementwise_item(p, item, *workspace);
  double sum = 0, squares = 0;
  for (size_t at = 0; at < kCount; ++at) {
    sum += values[at];
    squares += double{values[at]} * values[at];
    if (!normal && !(values[at] >= 0 && values[at] < 1)) check.fail("a uniform number", values[at], 0.5);
  }
  const double mean = sum / kCount;
  check.near("a mean", mean, normal ? 0 : 0.5, 0.03, 0);
  check.near("a variance", squares / kCount - mean * mean, normal ? 1 : 1.0 / 12, 0.05, 0);
}

}  // namespace

bool elementwise_case(uint64_t seed) {
  Random random(seed);
  Check check({"elementwise", seed});
  for (int round = 0; round < 4; ++round) check_program(check, random);
  check_rests(check, random);
  if (seed % 8 == 0) check_random(check, random);
  return check.passed();
}

bool reduce_case(uint64_t seed) {
  Random random(seed);
  Check check({"reduce", seed});
  Index sizes(2 * kReduceDims, 1);
  for (int64_t& n : sizes)
    if (random.chance(60)) n = random.chance(20) ? random.integer(100, 600) : random.integer(1, 9);
  if (random.chance(20)) sizes[size_t(random.integer(0, 5))] = random.integer(4000, 9000);
  while (product(sizes) > 60000)
    for (int64_t& n : sizes)
      if (n < 4000 || product(sizes) > 600000) n = (n + 1) / 2;
  const Strided from(random, sizes, random_dtype(random), false);
  from.fill(random);
  ReduceParams p{};
  for (size_t axis = 0; axis < kReduceDims; ++axis) {
    p.kept[axis] = sizes[axis];
    p.kept_strides[axis] = from.strides[axis];
    p.reduced[axis] = sizes[kReduceDims + axis];
    p.reduced_strides[axis] = from.strides[kReduceDims + axis];
  }
  const int64_t kept = product({p.kept[0], p.kept[1], p.kept[2]}), length = product(sizes) / kept;
  const int64_t splits = (length + kReduceSplit - 1) / kReduceSplit;
  const DType dtype = random_dtype(random);
  const Array<uint8_t> to(size_t(kept) * element_size(dtype));
  const Array<float> partial(splits > 1 ? size_t(splits * kept) : 0);
  p.from = from.bytes.data();
  p.to = to.data();
  p.partial = splits > 1 ? partial.data() : nullptr;
  p.from_dtype = from.dtype;
  p.to_dtype = dtype;
  p.reduction = static_cast<Reduction>(random.integer(0, 2));
  p.scale = random.chance(50) ? 1 : 0.25f;
  const auto workspace = poisoned_workspace<RowWorkspace>();
  for (int item = reduce_items(p) - 1; item >= 0; --item) reduce_item(p, item, *workspace);
  for (int item = reduce_split_items(p) - 1; item >= 0; --item) reduce_split_item(p, item, *workspace);

  for (int64_t at = 0; at < kept; ++at) {
    double sum = 0, size = 0, most = -HUGE_VAL, least = HUGE_VAL;
    for (int64_t i = 0; i < length; ++i) {
      const double value = decode(from.at(index_at(at * length + i, sizes)), from.dtype);
      sum += value;
      size += std::fabs(value);
      most = std::fmax(most, value);
      least = std::fmin(least, value);
    }
    const bool is_sum = p.reduction == Reduction::Sum;
    const double wanted = is_sum ? sum * p.scale : p.reduction == Reduction::Maximum ? most : least;
    const double got = decode(to.data() + at * element_size(dtype), dtype);
    check.near(is_sum ? "a sum" : "an extreme", got, wanted, is_sum ? size * 0x1p-22 : 0,
               rounding(dtype) + (is_sum ? 0x1p-23 : 0));
  }
  return check.passed();
}

}  // namespace flashattn::test
