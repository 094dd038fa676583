// Linear and recurrent attention: a state S [key dim, value dim] per head that decays, is corrected and added to.
//
//   S_t = decay_t S_{t-1} + k_t u_t^T      out_t = scale q_t^T S_t
//
// with u_t = v_t, or by the delta rule u_t = beta_t (v_t - (decay_t S_{t-1})^T k_t) (Yang et al. 2024, "Parallelizing Linear
// Transformers with the Delta Rule over Sequence Length"; 2025, "Gated Delta Networks"). An item walks over the chunks of one
// state (chunk.h), in the chunked form of Hua et al. 2022 and Sun et al. 2023:
//
//   out_t = q~_t S + sum_{s <= t} D_ts (q_t . k_s) u_s,     S <- D S + sum_s k~_s u_s^T
//
// D_ts is the product of the decays of s + 1 .. t. It is always made as a product and never as the exponential of a
// difference: no exponent leaves its range, and decays of e^-50 lose nothing beside decays of 1. With decays by channel D_ts
// stands within the product of q and k: earlier keys of the chunk are kept decayed up to the block of queries at hand, and
// within the block a lane of queries is decayed key by key.
#pragma once
#include "linear/channel.h"
#include "linear/delta.h"
#include "linear/low_rank.h"

namespace flashattn {

namespace detail {

/** What the state is added to with: values, or what the delta rule makes of them. */
inline float* updates_of(const RecurrenceParams& p, RecurrenceWorkspace& ws) {
  return p.update == Update::Delta ? ws.update : ws.value;
}

inline void load_bonus(const StateItem& at, RecurrenceWorkspace& ws) {
  const RecurrenceParams& p = at.p;
  if (p.bonus) load_row(ws.bonus, p.bonus + size_t(at.h) * p.key_dim, DType::Float32, p.key_dim);
}

/** What a chunk begins with, in forward as in backward: its keys, values and decays. */
FLASHATTN_CALLED void load_chunk(const StateItem& at, int begin, int count, RecurrenceWorkspace& ws) {
  const RecurrenceParams& p = at.p;
  load_linear_rows(ws.key, p.key, at, begin, count, at.head_of(p.key_heads), p.key_dim);
  load_values(ws.value, at, begin, count);
  if (p.decay_kind == Decay::Channel) {
    load_linear_rows(ws.decay_rows, p.decay, at, begin, count, at.head_of(p.decay_heads), p.key_dim);
    for (int r = 0; r < count; ++r)
      for (int d = r * kRowStride; d < r * kRowStride + p.key_dim; d += kLanes)
        store(ws.decay_rows + d, natural_exp(load(ws.decay_rows + d)));
    // Reached by whole blocks, and not to become NaN.
    for (int r = count; r <= round_up(count, kLinearBlock) && r < kLinearChunk + 1; ++r)
      fill(ws.decay_rows + r * kRowStride, 0, p.key_dim);
    for (int r = count; r < round_up(count, kLinearBlock); ++r) fill(ws.key + r * kRowStride, 0, p.key_dim);
  } else {
    load_scalar_decay(at, begin, count, ws.decay);
  }
  if (p.update == Update::LowRank) {
    load_keys_and_writes(at, begin, count, ws);
    solve_low_rank(at, begin, count, ws);
    load_keys_and_writes(at, begin, count, ws);
  }
  if (p.update != Update::Delta) return;
  for (int i = 0; i < kLinearChunk; i += kLanes) store(ws.beta + i, Vec{});
  for (int i = 0; i < count; ++i)
    ws.beta[i] = load_scalar(p.beta, at.sequence.batch, at.row(begin + i), at.head_of(p.beta_heads));
  delta_scores(count, p.key_dim, ws);
  solve_delta(count, p.key_dim, p.state_columns(), ws);
}

/** Scores of a block of queries, which are in ws.query, and ws.reaching: what they meet the chunk's first state with. */
FLASHATTN_CALLED void linear_scores(const StateItem& at, LinearBlock block, RecurrenceWorkspace& ws) {
  const RecurrenceParams& p = at.p;
  constexpr int kVectors = kLinearBlock / kLanes;
  transpose_block(ws.query_columns, ws.query, block.count, p.key_dim, p.scale);
  if (p.decay_kind != Decay::Channel) {
    product<KeyRowsTimesBlock, Accumulate::No>(ws.ahead, block.keys(), kVectors, p.key_dim, ws.key, ws.query_columns,
                                               ws.scores, kLinearBlock);
    decay_scores(ws.scores, kLinearBlock, block, ws.decay.position);
    for (int r = 0; r < block.count; ++r) {
      const Vec reach = splat(p.scale * ws.decay.before[block.first + r]);
      for (int d = r * kRowStride; d < r * kRowStride + p.key_dim; d += kLanes)
        store(ws.reaching + d, load(ws.query + d) * reach);
    }
    return;
  }
  const BlockDecay decay = block_decay(p, ws, block, p.bonus != nullptr);
  decay_forwards(ws.reaching, ws.query, decay, p.scale, ws.block_decay);
  transpose_block(ws.reaching_columns, ws.reaching, block.count, p.key_dim, 1);
  channel_scores(ws.scores, ws.query, ws.key, block, decay, p.scale, ws);
  if (p.update == Update::LowRank) channel_scores(ws.write_scores, ws.query, ws.write, block, decay, p.scale, ws);
  if (p.bonus)
    add_bonus(ws.scores + block.first * kLinearBlock, kLinearBlock, ws.query, ws.key + block.first * kRowStride,
              ws.bonus, block.count, p.key_dim, p.scale);
  multiply_columns(ws.reaching, ws.chunk_decay, block.count, p.key_dim);
}

/** Keys become what the state gets of them, ws.row_scale what is left of it. */
FLASHATTN_CALLED void decay_keys(const RecurrenceParams& p, int count, RecurrenceWorkspace& ws) {
  if (p.decay_kind == Decay::Channel) return copy_floats(ws.row_scale, ws.chunk_decay, p.key_dim);
  multiply_rows(ws.key, ws.decay.after, count, p.key_dim);
  fill(ws.row_scale, ws.decay.all, p.key_dim);
}

/** The state after a chunk. */
FLASHATTN_CALLED void pass_state(const RecurrenceParams& p, int count, RecurrenceWorkspace& ws) {
  const int vectors = divide_up(p.state_columns(), kLanes);
  product<KeysTransposedTimesValues, Accumulate::Scaled>(ws.ahead, p.key_dim, vectors, count, ws.key, updates_of(p, ws),
                                                         ws.state, kRowStride, ws.row_scale);
  if (p.update == Update::LowRank)
    product<KeysTransposedTimesValues, Accumulate::Yes>(ws.ahead, p.key_dim, vectors, count, ws.write, ws.update,
                                                        ws.state, kRowStride);
}

FLASHATTN_CALLED void store_out(const StateItem& at, int position, int count, int g, const float* out) {
  const RecurrenceParams& p = at.p;
  for (int r = 0; r < count; ++r) {
    const float* const row = out + r * kRowStride;
    store_row(p.out.row(at.sequence.batch, at.row(position + r), at.out_head(g)), p.out.dtype, row, p.value_dim);
    if (p.normalizer) p.normalizer[at.scalar(position + r, at.out_head(g), p.out_heads())] = row[p.value_dim];
  }
}

/** Keys, values and decays of positions that will be loaded soon. */
inline void ask_for_keys(const StateItem& at, int begin, int end, LinearAhead& ahead) {
  const RecurrenceParams& p = at.p;
  ahead.add(p.key, at, begin, end, at.head_of(p.key_heads), p.key_dim);
  ahead.add(p.value, at, begin, end, at.head_of(p.value_heads), p.value_dim);
  if (p.decay_kind == Decay::Channel) ahead.add(p.decay, at, begin, end, at.head_of(p.decay_heads), p.key_dim);
  if (p.update != Update::LowRank) return;
  ahead.add(p.read, at, begin, end, at.head_of(p.read_heads), p.key_dim);
  ahead.add(p.write, at, begin, end, at.head_of(p.write_heads), p.key_dim);
}

/** While the queries of a head and block are at hand: those that come next, and the part of the next chunk that is its turn. */
inline void ask_for_next(const StateItem& at, int begin, LinearBlock block, int g, LinearAhead& ahead) {
  const RecurrenceParams& p = at.p;
  ahead.begin();
  const int first = begin + block.first, last = first + kLinearBlock;
  if (g + 1 < p.group()) {
    ahead.add(p.query, at, first, last, at.query_head(g + 1), p.key_dim);
    ahead.add(p.out, at, first, last, at.out_head(g + 1), p.value_dim);
  } else {
    ahead.add(p.query, at, last, last + kLinearBlock, at.query_head(0), p.key_dim);
    ahead.add(p.out, at, last, last + kLinearBlock, at.out_head(0), p.value_dim);
  }
  if (g == 0) ask_for_keys(at, first + kLinearChunk, last + kLinearChunk, ahead);
}

FLASHATTN_CALLED void recurrence_chunk(const StateItem& at, int begin, int count, RecurrenceWorkspace& ws) {
  const RecurrenceParams& p = at.p;
  const int columns = p.state_columns(), vectors = divide_up(columns, kLanes);
  load_chunk(at, begin, count, ws);
  const float* const updates = updates_of(p, ws);
  const bool low_rank = p.update == Update::LowRank;
  const bool finite = all_finite(updates, count, columns) && !(low_rank && !all_finite(ws.update, count, columns));
  fill(ws.chunk_decay, 1, p.key_dim);
  for (int first = 0; first < count; first += kLinearBlock) {
    const LinearBlock block{first, min(kLinearBlock, count - first)};
    for (int g = 0; g < p.group(); ++g) {
      load_linear_rows(ws.query, p.query, at, begin + first, block.count, at.query_head(g), p.key_dim);
      ask_for_next(at, begin, block, g, ws.ahead);
      linear_scores(at, block, ws);
      product<RowsTimesState, Accumulate::No>(ws.ahead, block.count, vectors, p.key_dim, ws.reaching, ws.state, ws.out,
                                              kRowStride);
      add_values(ws.ahead, ws.out, ws.scores, updates, block, columns, finite);
      if (low_rank) add_values(ws.ahead, ws.out, ws.write_scores, ws.update, block, columns, finite);
      store_out(at, begin + first, block.count, g, ws.out);
    }
    if (p.decay_kind == Decay::Channel) pass_block(p, block, ws);
  }
  decay_keys(p, count, ws);
  pass_state(p, count, ws);
}

}  // namespace detail

inline int recurrence_items(const RecurrenceParams& p) { return p.batch * p.heads; }

FLASHATTN_CALLED void recurrence_item(const RecurrenceParams& p, int item, RecurrenceWorkspace& ws) {
  const StateItem at(p, item);
  const float* const initial = p.initial ? p.initial + at.state_begin() : nullptr;
  if (p.final_state && takes_steps(p, at.sequence.length)) {
    float* const state = p.final_state + at.state_begin();
    for (int t = 0; t < at.sequence.length; ++t) {
      detail::recurrence_step(at, t, state, t == 0 ? initial : state, ws.step);
      detail::store_out(at, t, 1, 0, ws.step.out);
    }
    return;
  }
  ws.ahead = {};
  detail::load_state(ws.state, initial, p.key_dim, p.state_columns());
  detail::load_bonus(at, ws);
  for (int begin = 0; begin < at.sequence.length; begin += kLinearChunk)
    detail::recurrence_chunk(at, begin, min(kLinearChunk, at.sequence.length - begin), ws);
  if (p.final_state) detail::store_state(p.final_state + at.state_begin(), ws.state, p.key_dim, p.state_columns());
}

}  // namespace flashattn
