// The instructions of programs of arithmetic, on rows of numbers: those of elements (ops/elementwise.h) and of scores
// (attention/score_mod.h).
#pragma once
#include "simd/functions.h"
#include "structs/elementwise.h"

namespace flashattn::detail {

constexpr int kProgramRegisters = kProgramOperands + kProgramConstants + kProgramTemporaries;

/** Where the row of each register lies now: in the workspace, or in a tensor itself. */
struct ProgramRows {
  float* row[kProgramRegisters];
};

template <class F>
FLASHATTN_INLINE void map1(float* to, const float* a, int n, F f) {
  for (int i = 0; i < n; i += kLanes) store(to + i, f(load(a + i)));
}
template <class F>
FLASHATTN_INLINE void map2(float* to, const float* a, const float* b, int n, F f) {
  for (int i = 0; i < n; i += kLanes) store(to + i, f(load(a + i), load(b + i)));
}

FLASHATTN_INLINE Vec one_where(IntVec mask) { return (Vec)((IntVec)splat(1.0f) & mask); }

/** What every instruction but those of random numbers and lookups does. */
FLASHATTN_CALLED void run_instruction(const Instruction& in, const ProgramRows& rows, int n) {
  float* to = rows.row[in.to];
  const float *a = rows.row[in.a], *b = rows.row[in.b], *c = rows.row[in.c];
  switch (in.opcode) {
    case Opcode::add: return map2(to, a, b, n, [](Vec x, Vec y) { return x + y; });
    case Opcode::sub: return map2(to, a, b, n, [](Vec x, Vec y) { return x - y; });
    case Opcode::mul: return map2(to, a, b, n, [](Vec x, Vec y) { return x * y; });
    case Opcode::div: return map2(to, a, b, n, [](Vec x, Vec y) { return x / y; });
    case Opcode::minimum: return map2(to, a, b, n, [](Vec x, Vec y) { return select((x < y) | is_nan(x), x, y); });
    case Opcode::maximum: return map2(to, a, b, n, [](Vec x, Vec y) { return select((x > y) | is_nan(x), x, y); });
    case Opcode::pow: return map2(to, a, b, n, [](Vec x, Vec y) { return pow(x, y); });
    case Opcode::less: return map2(to, a, b, n, [](Vec x, Vec y) { return one_where(x < y); });
    case Opcode::lessEqual: return map2(to, a, b, n, [](Vec x, Vec y) { return one_where(x <= y); });
    case Opcode::equal: return map2(to, a, b, n, [](Vec x, Vec y) { return one_where(x == y); });
    case Opcode::neg: return map1(to, a, n, [](Vec x) { return -x; });
    case Opcode::abs: return map1(to, a, n, [](Vec x) { return (Vec)((UintVec)x & 0x7fffffffu); });
    case Opcode::sign:
      return map1(to, a, n, [](Vec x) {
        const Vec sign = one_where(x > splat(0.0f)) - one_where(x < splat(0.0f));
        return select(is_nan(x), x, sign);
      });
    case Opcode::sqrt: return map1(to, a, n, [](Vec x) { return square_root(x); });
    case Opcode::rsqrt: return map1(to, a, n, [](Vec x) { return splat(1.0f) / square_root(x); });
    case Opcode::exp: return map1(to, a, n, [](Vec x) { return full_exp(x); });
    case Opcode::expm1: return map1(to, a, n, [](Vec x) { return expm1(x); });
    case Opcode::log: return map1(to, a, n, [](Vec x) { return log(x); });
    case Opcode::log1p: return map1(to, a, n, [](Vec x) { return log1p(x); });
    case Opcode::sin: return map1(to, a, n, [](Vec x) { return sin(x); });
    case Opcode::cos: return map1(to, a, n, [](Vec x) { return cos(x); });
    case Opcode::tanh: return map1(to, a, n, [](Vec x) { return tanh(x); });
    case Opcode::sigmoid: return map1(to, a, n, [](Vec x) { return sigmoid(x); });
    case Opcode::erf: return map1(to, a, n, [](Vec x) { return erf(x); });
    case Opcode::normalCdf: return map1(to, a, n, [](Vec x) { return normal_cdf(x); });
    case Opcode::floor: return map1(to, a, n, [](Vec x) { return floor(x); });
    case Opcode::round: return map1(to, a, n, [](Vec x) { return round_even(x); });
    case Opcode::where:
      for (int i = 0; i < n; i += kLanes) store(to + i, select(load(a + i) != splat(0.0f), load(b + i), load(c + i)));
      return;
    case Opcode::multiplyAdd:
      for (int i = 0; i < n; i += kLanes) store(to + i, multiply_add(load(a + i), load(b + i), load(c + i)));
      return;
    case Opcode::uniform:
    case Opcode::normal:
    case Opcode::lookup: return;
  }
}

}  // namespace flashattn::detail
