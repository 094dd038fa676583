// The recurrence a position at a time, on states where they lie: what decoding needs. A state is read and written once, or
// read twice by the delta rule, and nothing else takes time.
#pragma once
#include "linear/chunk.h"

namespace flashattn {

struct alignas(kCacheLine) StepWorkspace {
  float key[kMaxDim + kLanes], decay[kMaxDim + kLanes];
  float query[kMaxDim + kLanes];
  float write[kMaxDim + kLanes];  // of Update::LowRank
  float update[kRowStride], seen[kRowStride], out[kRowStride];
};

/** Sequences of so few positions are not worth a chunk. */
inline constexpr int kMostSteps = 4;

/** Rows of a state that share each access to what they are added up in. */
inline constexpr int kStepRows = 4;

/** Whether a state's rows are whole vectors. */
inline bool takes_steps(const RecurrenceParams& p, int length) {
  return length > 0 && length <= kMostSteps && p.group() == 1 && p.state_columns() % kLanes == 0;
}

namespace detail {

/** seen += sum over kRows rows d of key_d decay_d S[d] */
template <int kRows>
FLASHATTN_CALLED void look_up_rows(float* seen /* [columns] */, const float* state /* [kRows][columns] */,
                                   const float* key, const float* decay /* both [kRows] */, int columns) {
  Vec k[kRows];
  for (int d = 0; d < kRows; ++d) k[d] = splat(key[d] * decay[d]);
  for (int c = 0; c < columns; c += kLanes) {
    Vec sum = load(seen + c);
    for (int d = 0; d < kRows; ++d) sum = multiply_add(load(state + size_t(d) * columns + c), k[d], sum);
    store(seen + c, sum);
  }
}

FLASHATTN_CALLED void look_up(float* seen /* [columns] */, const float* state /* [key dim][columns] */,
                              const float* key, const float* decay /* both [key dim] */, int key_dim, int columns) {
  fill(seen, 0, columns);
  if (state == nullptr) return;
  int d = 0;
  for (; d + kStepRows <= key_dim; d += kStepRows)
    look_up_rows<kStepRows>(seen, state + size_t(d) * columns, key + d, decay + d, columns);
  for (; d < key_dim; ++d) look_up_rows<1>(seen, state + size_t(d) * columns, key + d, decay + d, columns);
}

/** What the product of q with the state is of, and what is added to it besides k u^T. */
enum class Step {
  After,
  Before,  // the state before the position
  Write,   // after it; write seen^T is added
};

/** to = decay from + k u^T and ws.out += q . it, for kRows rows from d on. */
template <int kRows, Step kStep>
FLASHATTN_CALLED void step_rows(float* to, const float* from /* both [kRows][columns]; from may be null */, int d,
                                StepWorkspace& ws, int columns) {
  Vec k[kRows], w[kRows], q[kRows], write[kRows];
  for (int r = 0; r < kRows; ++r) {
    k[r] = splat(ws.key[d + r]);
    w[r] = splat(ws.decay[d + r]);
    q[r] = splat(ws.query[d + r]);
    if constexpr (kStep == Step::Write) write[r] = splat(ws.write[d + r]);
  }
  for (int c = 0; c < columns; c += kLanes) {
    const Vec update = load(ws.update + c);
    Vec out = load(ws.out + c);
    for (int r = 0; r < kRows; ++r) {
      const size_t at = size_t(r) * columns + c;
      const Vec before = from ? load(from + at) : Vec{};
      Vec after = multiply_add(k[r], update, before * w[r]);
      if constexpr (kStep == Step::Write) after = multiply_add(write[r], load(ws.seen + c), after);
      out = multiply_add(q[r], kStep == Step::Before ? before : after, out);
      store(to + at, after);
    }
    store(ws.out + c, out);
  }
}

template <Step kStep>
FLASHATTN_CALLED void step_state(float* to, const float* from /* both [key dim][columns]; from may be null */,
                                 StepWorkspace& ws, int key_dim, int columns) {
  fill(ws.out, 0, columns);
  const auto row = [&](int d) { return from ? from + size_t(d) * columns : nullptr; };
  int d = 0;
  for (; d + kStepRows <= key_dim; d += kStepRows)
    step_rows<kStepRows, kStep>(to + size_t(d) * columns, row(d), d, ws, columns);
  for (; d < key_dim; ++d) step_rows<1, kStep>(to + size_t(d) * columns, row(d), d, ws, columns);
}

inline float dot(const float* a, const float* b /* both [n], padded with zeros */, int n) {
  Vec sum{};
  for (int i = 0; i < n; i += kLanes) sum = multiply_add(load(a + i), load(b + i), sum);
  return sum_lanes(sum);
}

FLASHATTN_CALLED void load_step(const StateItem& at, int position, StepWorkspace& ws) {
  const RecurrenceParams& p = at.p;
  const int b = at.sequence.batch, row = at.row(position);
  load_row(ws.query, p.query.row(b, row, at.query_head(0)), p.query.dtype, p.key_dim);
  load_row(ws.key, p.key.row(b, row, at.head_of(p.key_heads)), p.key.dtype, p.key_dim);
  for (int d = 0; d < p.key_dim; d += kLanes) store(ws.query + d, load(ws.query + d) * splat(p.scale));
  load_values(ws.update, at, position, 1);
  const int head = at.head_of(p.decay_heads);
  if (p.decay_kind == Decay::Channel) {
    load_row(ws.decay, p.decay.row(b, row, head), p.decay.dtype, p.key_dim);
    for (int d = 0; d < p.key_dim; d += kLanes) store(ws.decay + d, natural_exp(load(ws.decay + d)));
  } else {
    const float g = p.decay_kind == Decay::Head       ? load_scalar(p.decay, 0, 0, head)
                    : p.decay_kind == Decay::Position ? load_scalar(p.decay, b, row, head)
                                                      : 0;
    fill(ws.decay, natural_exp(splat(g))[0], p.key_dim);
  }
}

FLASHATTN_CALLED void recurrence_step(const StateItem& at, int position, float* to, const float* from,
                                      StepWorkspace& ws) {
  const RecurrenceParams& p = at.p;
  const int columns = p.state_columns();
  load_step(at, position, ws);
  if (p.update == Update::Delta) {
    look_up(ws.seen, from, ws.key, ws.decay, p.key_dim, columns);
    const float beta = load_scalar(p.beta, at.sequence.batch, at.row(position), at.head_of(p.beta_heads));
    for (int c = 0; c < columns; c += kLanes)
      store(ws.update + c, (load(ws.update + c) - load(ws.seen + c)) * splat(beta));
  }
  if (p.update == Update::LowRank) {
    const int b = at.sequence.batch, row = at.row(position);
    float read[kMaxDim + kLanes];
    load_row(read, p.read.row(b, row, at.head_of(p.read_heads)), p.read.dtype, p.key_dim);
    fill(ws.write, 1, p.key_dim);
    look_up(ws.seen, from, read, ws.write, p.key_dim, columns);
    load_row(ws.write, p.write.row(b, row, at.head_of(p.write_heads)), p.write.dtype, p.key_dim);
    step_state<Step::Write>(to, from, ws, p.key_dim, columns);
  } else if (p.bonus) {
    step_state<Step::Before>(to, from, ws, p.key_dim, columns);
    load_row(ws.decay, p.bonus + size_t(at.h) * p.key_dim, DType::Float32, p.key_dim);
    for (int d = 0; d < p.key_dim; d += kLanes) store(ws.key + d, load(ws.key + d) * load(ws.decay + d));
    const Vec own = splat(dot(ws.query, ws.key, p.key_dim));
    for (int c = 0; c < columns; c += kLanes)
      store(ws.out + c, multiply_add(own, load(ws.update + c), load(ws.out + c)));
  } else {
    step_state<Step::After>(to, from, ws, p.key_dim, columns);
  }
}

}  // namespace detail

}  // namespace flashattn
