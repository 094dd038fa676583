// outputs[k][i...] = a program of the inputs' elements at i..., as far as they reach; for chains of arithmetic that memory
// would otherwise see once an operation.
#pragma once
#include "types.h"

namespace flashattn {

inline constexpr int kProgramDims = 4, kProgramOperands = 12, kProgramConstants = 24, kProgramInstructions = 72;
/** Rows of intermediate results that are alive at one time, besides inputs and constants. */
inline constexpr int kProgramTemporaries = 20;

/**
 * What an instruction does with a and b (and c). Comparisons give 1 or 0; lib/kernels/expression.ts has the same names.
 * Lookups are for the programs of score_mod.h alone.
 */
enum class Opcode : uint32_t {
  add,
  sub,
  mul,
  div,
  minimum,
  maximum,
  pow,
  less,
  lessEqual,
  equal,
  neg,
  abs,
  sign,
  sqrt,
  rsqrt,
  exp,
  expm1,
  log,
  log1p,
  sin,
  cos,
  tanh,
  sigmoid,
  erf,
  normalCdf,
  floor,
  round,
  where,
  multiplyAdd,
  uniform,
  normal,
  lookup,
};

inline constexpr const char* kOpcodeNames[] = {
    "add",       "sub",   "mul",   "div",   "minimum",     "maximum", "pow",     "less",
    "lessEqual", "equal", "neg",   "abs",   "sign",        "sqrt",    "rsqrt",   "exp",
    "expm1",     "log",   "log1p", "sin",   "cos",         "tanh",    "sigmoid", "erf",
    "normalCdf", "floor", "round", "where", "multiplyAdd", "uniform", "normal",  "lookup",
};
static_assert(sizeof(kOpcodeNames) / sizeof(char*) == static_cast<size_t>(Opcode::lookup) + 1);

/** Of an input alone: int32, of which is read what the float nearest to each number is short of. No other kernel knows it. */
inline constexpr DType kInt32Rest{5};

/** An array that takes part, aligned with the program's sizes; 0 strides where it broadcasts. */
struct ProgramOperand {
  Pointer<void> data;  // [sizes...]
  int64_t strides[kProgramDims];
  DType dtype;
  int32_t result;  // of an output: the register that it is made of
};
FLASHATTN_FIELDS(ProgramOperand, data, strides, dtype, result);

/**
 * Registers are numbered: inputs, constants, temporaries. An instruction is opcode | to << 8 | a << 14 | b << 20 | c << 26;
 * that of a random number has in b which of the numbers of its element it is.
 */
struct ElementwiseParams {
  ProgramOperand operands[kProgramOperands];  // inputs, then outputs
  int64_t sizes[kProgramDims];                // dims that are not needed are 1 and come first
  uint32_t instructions[kProgramInstructions];
  float constants[kProgramConstants];
  Pointer<const int32_t> seed;  // [4], 16 bits each, the lowest first; or null: seed_low, seed_high
  int32_t input_count, output_count, constant_count, instruction_count;
  uint32_t seed_low, seed_high;
};
FLASHATTN_FIELDS(ElementwiseParams, operands, sizes, instructions, constants, seed, input_count, output_count,
                 constant_count, instruction_count, seed_low, seed_high);

struct Instruction {
  Opcode opcode;
  int to, a, b, c;

  constexpr explicit Instruction(uint32_t word)
      : opcode(static_cast<Opcode>(word & 255)),
        to(static_cast<int>(word >> 8 & 63)),
        a(static_cast<int>(word >> 14 & 63)),
        b(static_cast<int>(word >> 20 & 63)),
        c(static_cast<int>(word >> 26)) {}
};

static_assert(kProgramOperands + kProgramConstants + kProgramTemporaries <= 64);

}  // namespace flashattn
