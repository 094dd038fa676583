// The program that replaces scores, and makes the slopes that their gradients are multiplied by: "Flex Attention", Dong et
// al. (2024). It is run on several keys of a tile at a time, whose rows stay in the first cache.
#pragma once
#include "attention/place.h"
#include "simd/program.h"

namespace flashattn {

inline constexpr int kScoreElements = 8 * kQueryTile;

/** What a thread keeps of the program's registers. */
struct alignas(kCacheLine) ScoreRows {
  float row[kScoreInputs + kProgramConstants + kScoreTemporaries][kScoreElements];
};

namespace detail {

/** Where an index is outside of the table, the nearest element is meant; that of NaN is NaN. */
FLASHATTN_CALLED void run_lookup(const Instruction& in, const ScoreTable& table, const ProgramRows& rows, int n) {
  const float* index = rows.row[in.a];
  float* to = rows.row[in.to];
  const void* const data = table.data;
  const float last = static_cast<float>(table.count - 1);
  for (int e = 0; e < n; ++e) {
    const float x = index[e];
    const int at = x > 0 ? x < last ? static_cast<int>(x) : table.count - 1 : 0;
    const float value = table.dtype == DType::Int32 ? static_cast<float>(static_cast<const int32_t*>(data)[at])
                                                    : static_cast<const float*>(data)[at];
    to[e] = x == x ? value : x;
  }
}

/** The program on the scores of some keys of one tile. */
class ScoreMod {
 public:
  ScoreMod(const Place& at, ScoreRows& ws) : at_(at), program_(*at.p.score_mod.program) {
    for (int r = 0; r < kProgramRegisters; ++r) rows_.row[r] = ws.row[r < kRegisters ? r : 0];
    if (reads(ScoreInput::batch)) fill(input(ScoreInput::batch), static_cast<float>(at.b), kScoreElements);
    if (reads(ScoreInput::head)) fill(input(ScoreInput::head), static_cast<float>(at.h), kScoreElements);
    for (int c = 0; c < program_.constant_count; ++c)
      fill(ws.row[kScoreInputs + c], program_.constants[c], kScoreElements);
    if (!reads(ScoreInput::query)) return;
    for (int e = 0; e < keys_at_once() * width(); e += kLanes)
      store(input(ScoreInput::query) + e, __builtin_convertvector(iota(at.queries.begin + e % width()), Vec));
  }

  int keys_at_once() const { return kScoreElements / width(); }

  /** Keys [first, first + count) of the tile, whose scores begin at `scores`. */
  void run(int first, int count, float* scores /* [key][query] */, float* slopes /* the same, or null */) {
    const int n = count * width();
    for (int j = 0; j < count; ++j) copy_row(input(ScoreInput::score) + j * width(), scores + j * kQueryTile);
    if (reads(ScoreInput::key))
      for (int j = 0; j < count; ++j)
        fill(input(ScoreInput::key) + j * width(), static_cast<float>(at_.keys.begin + first + j), width());
    const int instructions = slopes ? program_.count : program_.value_count;
    for (int i = 0; i < instructions; ++i) {
      const Instruction in(program_.instructions[i]);
      if (in.opcode == Opcode::lookup)
        run_lookup(in, at_.p.score_mod.tables[in.b], rows_, n);
      else
        run_instruction(in, rows_, n);
    }
    const float *value = rows_.row[program_.value], *slope = rows_.row[program_.slope];
    const Vec hidden = splat(-kInfinity);
    for (int j = 0; j < count; ++j)
      for (int v = 0; v < width(); v += kLanes) {
        float* score = scores + j * kQueryTile + v;
        const Vec result = select(load(score) == hidden, hidden, load(value + j * width() + v));
        store(score, result);
        if (slopes) store(slopes + j * kQueryTile + v, select(result == hidden, Vec{}, load(slope + j * width() + v)));
      }
  }

 private:
  static constexpr int kRegisters = sizeof(ScoreRows::row) / sizeof(ScoreRows::row[0]);

  int width() const { return at_.query_vectors() * kLanes; }
  bool reads(ScoreInput input) const { return program_.reads >> static_cast<int>(input) & 1; }
  float* input(ScoreInput input) const { return rows_.row[static_cast<int>(input)]; }
  void copy_row(float* to, const float* from) const {
    for (int v = 0; v < width(); v += kLanes) store(to + v, load(from + v));
  }

  const Place& at_;
  const ScoreProgram& program_;
  ProgramRows rows_;
};

}  // namespace detail

/** Scores that are -Infinity stay so. `slopes` (optional) receives the derivatives of the others, and 0 for what is hidden. */
FLASHATTN_CALLED void modify_scores(const Place& at, float* scores /* [key][query] */, ScoreRows& ws, float* slopes) {
  detail::ScoreMod mod(at, ws);
  for (int j = 0; j < at.key_count(); j += mod.keys_at_once())
    mod.run(j, min(mod.keys_at_once(), at.key_count() - j), scores + j * kQueryTile,
            slopes ? slopes + j * kQueryTile : nullptr);
}

/** Once the mask has hidden scores: slopes of hidden pairs are 0, whatever the program makes there. */
FLASHATTN_CALLED void hide_slopes(const Place& at, const float* scores, float* slopes /* both [key][query] */) {
  for (int row = 0; row < at.key_count() * kQueryTile; row += kQueryTile)
    for (int v = 0; v < at.query_vectors() * kLanes; v += kLanes)
      store(slopes + row + v, select(load(scores + row + v) == splat(-kInfinity), Vec{}, load(slopes + row + v)));
}

}  // namespace flashattn
