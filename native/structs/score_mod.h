// What the scores of attention are replaced by: a program of the instructions of elementwise.h, one pair of query and key at
// a time, and its derivative.
#pragma once
#include "elementwise.h"

namespace flashattn {

/** The inputs of the program, which are its first registers. */
enum class ScoreInput : int32_t { score, batch, head, query, key };
inline constexpr int kScoreInputs = 5;
inline constexpr int kScoreTables = 4;
/** As kProgramTemporaries: fewer, since threads of a GPU keep them in memory that they reserve for as long as they live. */
inline constexpr int kScoreTemporaries = 12;

/** Registers are numbered as in ElementwiseParams; a lookup has in b which of the tables it reads. */
struct ScoreProgram {
  uint32_t instructions[kProgramInstructions];  // those that the value needs come first
  float constants[kProgramConstants];
  int32_t value_count, count;  // of the instructions that the value needs; of all, which make its slope too
  int32_t constant_count;
  int32_t value, slope;  // registers of the result, and of its derivative by the score
  int32_t reads;         // bit r: input r is read
};
FLASHATTN_FIELDS(ScoreProgram, instructions, constants, value_count, count, constant_count, value, slope, reads);

/** What lookups read; indices are clamped. */
struct ScoreTable {
  Pointer<const void> data;  // [count], float32 or int32
  int32_t count;
  DType dtype;
};
FLASHATTN_FIELDS(ScoreTable, data, count, dtype);

struct ScoreModParams {
  Pointer<const ScoreProgram> program;  // null: scores stay as they are
  ScoreTable tables[kScoreTables];
};
FLASHATTN_FIELDS(ScoreModParams, program, tables);

}  // namespace flashattn
