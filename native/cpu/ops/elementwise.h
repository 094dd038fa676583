// A program of arithmetic on elements: rows of 256 pass through all of its instructions while they stay in the first cache.
#pragma once
#include "ops/copy.h"
#include "simd/philox.h"
#include "simd/program.h"

namespace flashattn {

struct alignas(kCacheLine) ElementwiseWorkspace {
  float rows[detail::kProgramRegisters][kRowElements];
  float random[4 * kLanes];
};

namespace detail {

/** use(i, the words of elements first + i...): the element's place in the result is the counter, `which` the third word. */
template <class Use>
FLASHATTN_INLINE void random_rows(const ElementwiseParams& p, uint64_t first, int n, uint32_t which, Use use) {
  uint32_t seed_low = p.seed_low, seed_high = p.seed_high;
  if (const int32_t* halves = p.seed) {
    seed_low = static_cast<uint32_t>(halves[0] | halves[1] << 16);
    seed_high = static_cast<uint32_t>(halves[2] | halves[3] << 16);
  }
  for (int i = 0; i < n; i += kLanes) {
    UintVec low{}, high{};
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint64_t index = first + static_cast<uint64_t>(i + lane);
      low[lane] = static_cast<uint32_t>(index);
      high[lane] = static_cast<uint32_t>(index >> 32);
    }
    use(i, philox(low, high, UintVec{} + which, UintVec{}, seed_low, seed_high));
  }
}

/** [0, 1) in steps of 2^-24. */
FLASHATTN_INLINE Vec uniform_of(UintVec word) {
  return __builtin_convertvector((IntVec)(word >> 8), Vec) * splat(0x1p-24f);
}

/**
 * Box and Muller (1958): sqrt(-2 log u) cos(2 pi v). In single steps of arithmetic, none of them fused, so that every device
 * has the same bits.
 */
FLASHATTN_INLINE Vec normal_of(UintVec first, UintVec second) {
  const Vec u = __builtin_convertvector((IntVec)(first >> 8) + 1, Vec) * splat(0x1p-24f);  // (0, 1]
  const Split split(u);
  const Vec f = split.m - splat(1.0f), z = f * f;
  constexpr float kLog[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                            -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                            2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
  Vec p{};
  for (const float each : kLog) p = p * f + splat(each);
  const Vec k = __builtin_convertvector(split.k, Vec);
  Vec log_u = p * f * z;
  log_u = log_u + k * splat(kLn2Low);
  log_u = log_u - splat(0.5f) * z;
  log_u = log_u + f;
  log_u = log_u + k * splat(kLn2High);
  const Vec turns = uniform_of(second) * splat(4.0f), quarter = floor(turns + splat(0.5f));
  const Vec x = (turns - quarter) * splat(1.57079637f), w = x * x;
  constexpr float kSin[] = {-1.9515295891e-4f, 8.3321608736e-3f, -1.6666654611e-1f};
  constexpr float kCos[] = {2.443315711809948e-5f, -1.388731625493765e-3f, 4.166664568298827e-2f};
  Vec s{}, c{};
  for (const float each : kSin) s = s * w + splat(each);
  s = s * w * x + x;
  for (const float each : kCos) c = c * w + splat(each);
  c = c * w * w - splat(0.5f) * w + splat(1.0f);
  const IntVec quadrant = __builtin_convertvector(quarter, IntVec) & 3;  // of the cosine: c, -s, -c, s
  const Vec value = select((quadrant & 1) != 0, s, c);
  const IntVec negative = (quadrant == 1) | (quadrant == 2);
  const Vec cosine = (Vec)((UintVec)value ^ ((UintVec)negative & 0x80000000u));
  return square_root(splat(-2.0f) * log_u) * cosine;
}

FLASHATTN_CALLED void run_random(const ElementwiseParams& p, const Instruction& in, const ProgramRows& rows,
                                 uint64_t first, int n) {
  float* to = rows.row[in.to];
  random_rows(p, first, n, static_cast<uint32_t>(in.b), [&](int i, const Philox& words) {
    store(to + i, in.opcode == Opcode::normal ? normal_of(words.word[0], words.word[1]) : uniform_of(words.word[0]));
  });
}

inline int64_t program_count(const ElementwiseParams& p) {
  int64_t count = 1;
  for (int axis = 0; axis < kProgramDims; ++axis) count *= p.sizes[axis];
  return count;
}

/** What the floats nearest to n whole numbers are short of; the padding is zero. */
inline void load_rests(float* to, const void* from, int64_t stride, int n) {
  const auto* whole = static_cast<const int32_t*>(from);
  for (int i = 0; i < n; ++i) {
    const int32_t x = whole[i * stride];
    to[i] = static_cast<float>(int64_t{x} - static_cast<int64_t>(static_cast<float>(x)));
  }
  for (int i = n; i < n + (kLanes - n % kLanes) % kLanes; ++i) to[i] = 0;
}

inline CopySide side_of(const ProgramOperand& operand) {
  return {bytes_of(operand.data), operand.dtype, operand.strides[kProgramDims - 1]};
}

}  // namespace detail

inline int elementwise_items(const ElementwiseParams& p) { return chunks(detail::program_count(p)); }

FLASHATTN_CALLED void elementwise_item(const ElementwiseParams& p, int item, ElementwiseWorkspace& ws) {
  using namespace detail;
  constexpr int kInner = kProgramDims - 1;
  const int operands = p.input_count + p.output_count;
  ProgramRows rows;
  for (int r = 0; r < kProgramRegisters; ++r) rows.row[r] = ws.rows[r];
  for (int c = 0; c < p.constant_count; ++c) fill(ws.rows[p.input_count + c], p.constants[c], kRowElements);

  // An input that is a result too has a row of its own: another result may be stored where it lies.
  bool is_result[kProgramRegisters] = {};
  // A result that is computed is so in its place, unless instructions still read what lies there.
  bool has_place[kProgramOperands] = {};
  for (int k = p.input_count; k < operands; ++k) {
    const ProgramOperand& output = p.operands[k];
    has_place[k] = output.result >= p.input_count + p.constant_count && !is_result[output.result];
    for (int i = 0; i < p.input_count; ++i) has_place[k] &= p.operands[i].data != output.data;
    is_result[output.result] = true;
  }

  const int64_t begin = item * kChunk, end = begin + chunk_length(program_count(p), item);
  for (int64_t at = begin; at < end;) {
    int64_t offsets[kProgramOperands] = {}, outer = at / p.sizes[kInner];
    const int64_t inner = at % p.sizes[kInner];
    for (int k = 0; k < operands; ++k) offsets[k] = inner * p.operands[k].strides[kInner];
    for (int axis = kInner - 1; axis >= 0; --axis) {
      const int64_t index = outer % p.sizes[axis];
      outer /= p.sizes[axis];
      for (int k = 0; k < operands; ++k) offsets[k] += index * p.operands[k].strides[axis];
    }
    int64_t length = p.sizes[kInner] - inner;
    if (length > end - at) length = end - at;
    if (length > kRowElements) length = kRowElements;
    const int n = static_cast<int>(length);

    // Whole vectors of floats are read and written where they lie.
    const auto lies_in_place = [&](const ProgramOperand& operand) {
      return operand.dtype == DType::Float32 && operand.strides[kInner] == 1 && n % kLanes == 0;
    };
    for (int k = 0; k < p.input_count; ++k) {
      const CopySide side = side_of(p.operands[k]);
      if (!is_result[k] && lies_in_place(p.operands[k])) {
        rows.row[k] = reinterpret_cast<float*>(side.element(offsets[k]));
        continue;
      }
      rows.row[k] = ws.rows[k];
      if (side.dtype == kInt32Rest) {
        load_rests(ws.rows[k], side.element(offsets[k]), side.stride, n);
      } else if (side.stride == 0) {
        side.load(ws.random, offsets[k], 1);
        fill(ws.rows[k], ws.random[0], n);
      } else {
        side.load(ws.rows[k], offsets[k], n);
      }
    }
    for (int k = p.input_count; k < operands; ++k) {
      if (!has_place[k]) continue;
      const int result = p.operands[k].result;
      rows.row[result] = lies_in_place(p.operands[k])
                             ? reinterpret_cast<float*>(side_of(p.operands[k]).element(offsets[k]))
                             : ws.rows[result];
    }
    for (int i = 0; i < p.instruction_count; ++i) {
      const Instruction in(p.instructions[i]);
      if (in.opcode == Opcode::uniform || in.opcode == Opcode::normal)
        run_random(p, in, rows, static_cast<uint64_t>(at), n);
      else
        run_instruction(in, rows, n);
    }
    for (int k = p.input_count; k < operands; ++k)
      if (!has_place[k] || !lies_in_place(p.operands[k]))
        side_of(p.operands[k]).store(rows.row[p.operands[k].result], offsets[k], n);
    at += length;
  }
}

}  // namespace flashattn
