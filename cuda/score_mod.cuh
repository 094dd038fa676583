// The program that replaces scores, and makes the slopes that their gradients are multiplied by: "Flex Attention", Dong et
// al. (2024). Interpreted out of line, four scores of a lane at a time, so that kernels need no registers for it.
#pragma once
#include "functions.cuh"
#include "structs/attention.h"

namespace flashattn {

/** Of which pairs four scores of a lane are: the columns `column` and `column` + 1 of rows `row` and `row` + 8. */
struct ScorePlace {
  int b, h;
  int row, column;
  bool rows_are_keys;

  FLASHATTN_DEVICE float query(int e) const { return position(e, !rows_are_keys); }
  FLASHATTN_DEVICE float key(int e) const { return position(e, rows_are_keys); }

 private:
  FLASHATTN_DEVICE float position(int e, bool along_rows) const {
    return static_cast<float>(along_rows ? row + e / 2 * 8 : column + e % 2);
  }
};

/** Four scores, and the derivatives by what they were. */
struct ModifiedScores {
  float4 value, slope;
};

namespace detail {

/** Where an index is outside of the table, the nearest element is meant; that of NaN is NaN. */
FLASHATTN_DEVICE float look_up(const ScoreTable& table, float index) {
  const float last = static_cast<float>(table.count - 1);
  const int at = index > 0.0f ? index < last ? static_cast<int>(index) : table.count - 1 : 0;
  const void* const data = table.data;
  if (index != index) return index;
  return table.dtype == DType::Int32 ? static_cast<float>(ptx::load_global(static_cast<const int32_t*>(data) + at))
                                     : ptx::load_global(static_cast<const float*>(data) + at);
}

/** The registers of one thread for four scores. */
class ScoreRegisters {
 public:
  FLASHATTN_DEVICE ScoreRegisters(const ScoreProgram* program, float4 scores, const ScorePlace& place)
      : program_(program),
        first_(kScoreInputs + ptx::load_global(&program->constant_count)),
        scores_(scores),
        place_(place) {}

  FLASHATTN_DEVICE void load(float (&x)[4], int reg) const {
    if (reg >= first_)
      unpack(x, temporaries_[reg - first_]);
    else if (reg >= kScoreInputs)
      fill(x, ptx::load_global(program_->constants + (reg - kScoreInputs)));
    else
      load_input(x, static_cast<ScoreInput>(reg));
  }
  FLASHATTN_DEVICE void store(int reg, const float (&x)[4]) {
    temporaries_[reg - first_] = make_float4(x[0], x[1], x[2], x[3]);
  }

 private:
  FLASHATTN_DEVICE static void unpack(float (&x)[4], float4 quad) {
    x[0] = quad.x;
    x[1] = quad.y;
    x[2] = quad.z;
    x[3] = quad.w;
  }
  FLASHATTN_DEVICE static void fill(float (&x)[4], float value) {
    for (float& each : x) each = value;
  }
  FLASHATTN_DEVICE void load_input(float (&x)[4], ScoreInput input) const {
    switch (input) {
      case ScoreInput::score: return unpack(x, scores_);
      case ScoreInput::batch: return fill(x, static_cast<float>(place_.b));
      case ScoreInput::head: return fill(x, static_cast<float>(place_.h));
      case ScoreInput::query:
        for (int e = 0; e < 4; ++e) x[e] = place_.query(e);
        return;
      case ScoreInput::key:
        for (int e = 0; e < 4; ++e) x[e] = place_.key(e);
        return;
    }
  }

  const ScoreProgram* program_;
  int first_;  // temporary
  float4 scores_;
  const ScorePlace& place_;
  float4 temporaries_[kScoreTemporaries];
};

}  // namespace detail

/** Scores that are -Infinity stay so; slopes of those that are or become so are 0, and all where nobody wants them. */
FLASHATTN_CALLED ModifiedScores modify_scores(const AttentionParams& p, ScorePlace place, float4 scores,
                                              bool wants_slopes) {
  const ScoreProgram* program = p.score_mod.program;
  detail::ScoreRegisters registers(program, scores, place);
  const int count = ptx::load_global(wants_slopes ? &program->count : &program->value_count);
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const Instruction in(ptx::load_global(program->instructions + i));
    const int operands = operands_of(in.opcode);
    float to[4] = {}, x[4], y[4] = {}, z[4] = {};
    registers.load(x, in.a);
    if (in.opcode == Opcode::lookup) {
      for (int e = 0; e < 4; ++e) to[e] = detail::look_up(p.score_mod.tables[in.b], x[e]);
    } else {
      if (operands > 1) registers.load(y, in.b);
      if (operands > 2) registers.load(z, in.c);
      run_instruction(in.opcode, to, x, y, z);
    }
    registers.store(in.to, to);
  }
  float before[4] = {scores.x, scores.y, scores.z, scores.w}, value[4], slope[4] = {};
  registers.load(value, ptx::load_global(&program->value));
  if (wants_slopes) registers.load(slope, ptx::load_global(&program->slope));
  constexpr float kHidden = -__builtin_huge_valf();
  for (int e = 0; e < 4; ++e) {
    if (before[e] == kHidden) value[e] = kHidden;
    if (value[e] == kHidden) slope[e] = 0.0f;
  }
  return {make_float4(value[0], value[1], value[2], value[3]), make_float4(slope[0], slope[1], slope[2], slope[3])};
}

}  // namespace flashattn
