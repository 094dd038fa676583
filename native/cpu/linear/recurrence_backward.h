// The gradients of the recurrence (recurrence.h). States are kept before each chunk, by a first walk; a second one goes back
// with the gradient of the state, and makes those of a chunk from the states at its two ends:
//
//   A_ts = d_out_t . u_s     d_q_t = sum_{s <= t} D_ts A_ts k_s + D_t (S d_out_t)     d_k_s = sum_{t >= s} D_ts A_ts q_t + D_s (dS u_s)
//
// and likewise d_u from the scores themselves. The logarithm of a decay of position t scales all that reaches beyond it, so
// its gradient is a sum over what follows in the chunk, of q_t d_q_t - k_t d_k_t, and of the state at its end times the
// state's gradient. It starts anew with every chunk: over a whole sequence rounding would add up where terms cancel.
#pragma once
#include "linear/channel_backward.h"
#include "linear/delta_backward.h"
#include "linear/low_rank_backward.h"

namespace flashattn {

namespace detail {

/** ws.key becomes what the state gets of it, by channel too, and ws.row_scale what is left of the state. */
FLASHATTN_CALLED void decay_all_keys(const RecurrenceParams& p, int count, RecurrenceWorkspace& ws) {
  if (p.decay_kind == Decay::Channel) {
    fill(ws.chunk_decay, 1, p.key_dim);
    for (int first = 0; first < count; first += kLinearBlock) {
      const LinearBlock block{first, min(kLinearBlock, count - first)};
      multiply_decays(ws.block_decay, block_decay(p, ws, block, false));
      pass_block(p, block, ws);
    }
  }
  decay_keys(p, count, ws);
}

FLASHATTN_CALLED void load_query_head(const StateItem& at, const LinearChunk& chunk, int g,
                                      RecurrenceBackwardWorkspace& ws) {
  const RecurrenceParams& p = at.p;
  load_linear_rows(ws.queries, p.query, at, chunk.begin, chunk.count, at.query_head(g), p.key_dim);
  load_linear_rows(ws.d_out, p.d_out, at, chunk.begin, chunk.count, at.out_head(g), p.value_dim);
  if (!p.normalizes) return;
  const int vector = p.value_dim / kLanes * kLanes;
  for (int r = 0; r < chunk.count; ++r) {
    float* const row = ws.d_out + r * kRowStride;
    if (vector == p.value_dim) store(row + vector, Vec{});
    row[p.value_dim] = p.d_normalizer ? p.d_normalizer[at.scalar(chunk.begin + r, at.out_head(g), p.out_heads())] : 0;
  }
}

/**
 * Gradients by the queries of a head where decays are of positions: adds to d_key and d_value, and to d_state, which the first
 * head decays.
 */
FLASHATTN_CALLED void scalar_gradients(const StateItem& at, const LinearChunk& chunk, bool is_first,
                                       const float* updates, RecurrenceBackwardWorkspace& ws) {
  const RecurrenceParams& p = at.p;
  const int n = chunk.count, columns = p.state_columns();
  const int key_vectors = divide_up(p.key_dim, kLanes), value_vectors = divide_up(columns, kLanes);
  product<RowsTimesState, Accumulate::No>(ws.ahead, n, key_vectors, columns, ws.d_out, ws.state_transposed, ws.d_query,
                                          kRowStride);
  multiply_rows_into(ws.d_query, ws.d_query, ws.decay.before, p.scale, n, p.key_dim);
  for (int first = 0; first < n; first += kLinearBlock) {
    const LinearBlock block = chunk.block(first);
    transpose_block(ws.query_columns, ws.queries + first * kRowStride, block.count, p.key_dim, p.scale);
    transpose_block(ws.d_out_columns, ws.d_out + first * kRowStride, block.count, columns, 1);
    block_products(ws.ahead, ws.chunk_scores, ws.key, ws.query_columns, block.keys(), first, p.key_dim);
    block_products(ws.ahead, ws.d_scores, updates, ws.d_out_columns, block.keys(), first, columns);
    decay_scores<true>(ws.chunk_scores + first, kLinearChunk, block, ws.decay.position, ws.d_scores + first, p.scale);
    add_past(ws.ahead, ws.d_query + first * kRowStride, ws.d_scores, ws.key, block, p.key_dim, chunk.finite);
  }
  add_future(ws.ahead, ws.d_key, ws.d_scores, ws.queries, chunk, p.key_dim);
  add_future(ws.ahead, ws.d_value, ws.chunk_scores, ws.d_out, chunk, columns);
  multiply_rows_into(ws.reaching_chunk, ws.queries, ws.decay.before, p.scale, n, p.key_dim);
  if (is_first)
    product<KeysTransposedTimesValues, Accumulate::Scaled>(ws.ahead, p.key_dim, value_vectors, n, ws.reaching_chunk,
                                                           ws.d_out, ws.d_state, kRowStride, ws.row_scale);
  else
    product<KeysTransposedTimesValues, Accumulate::Yes>(ws.ahead, p.key_dim, value_vectors, n, ws.reaching_chunk,
                                                        ws.d_out, ws.d_state, kRowStride);
  if (p.decay_kind != Decay::None) add_row_dots(ws.gate, ws.queries, ws.d_query, n, p.key_dim, 1);
}

inline void store_linear_rows(const TensorRef& to, const StateItem& at, int begin, int count, int head, int dim,
                              const float* rows /* [count][kRowStride] */) {
  for (int r = 0; r < count; ++r)
    store_row(to.row(at.sequence.batch, at.row(begin + r), head), to.dtype, rows + r * kRowStride, dim);
}

inline void store_scalar(const TensorRef& to, int b, int i, int h, float value) {
  static_cast<float*>(static_cast<void*>(to.row(b, i, h)))[0] = value;
}

/** Gates of a chunk, from ws.carry, and from what queries and keys say of each position. */
FLASHATTN_CALLED void store_decay_gradients(const StateItem& at, const LinearChunk& chunk,
                                            RecurrenceBackwardWorkspace& ws) {
  const RecurrenceParams& p = at.p;
  if (p.decay_kind == Decay::Channel) {
    for (int d = 0; d < p.key_dim; d += kLanes) {
      Vec sum = load(ws.carry + d);
      for (int t = chunk.count; t-- > 0;) {
        const int i = t * kRowStride + d;
        sum += load(ws.query_gate + i) - load(ws.key_gate + i);
        store(ws.query_gate + i, sum);
        sum += load(ws.read_gate + i);
      }
    }
    return store_linear_rows(p.d_decay, at, chunk.begin, chunk.count, at.h, p.key_dim, ws.query_gate);
  }
  float sum = 0;
  for (int d = 0; d < p.key_dim; ++d) sum += ws.carry[d];
  for (int t = chunk.count; t-- > 0;) {
    sum += ws.gate[t];
    if (p.decay_kind == Decay::Position) store_scalar(p.d_decay, at.sequence.batch, at.row(chunk.begin + t), at.h, sum);
    ws.d_head_decay += sum;
  }
}

/** What a chunk writes, and what the chunk before it reads; of queries those of the first head. */
inline void ask_for_chunk_before(const StateItem& at, int begin, int end, LinearAhead& ahead) {
  const RecurrenceParams& p = at.p;
  ahead.begin();
  ahead.add(p.d_query, at, begin, end, at.out_head(0), p.key_dim);
  ahead.add(p.d_key, at, begin, end, at.h, p.key_dim);
  ahead.add(p.d_value, at, begin, end, at.h, p.value_dim);
  if (p.decay_kind == Decay::Channel) ahead.add(p.d_decay, at, begin, end, at.h, p.key_dim);
  if (begin == 0) return;
  ask_for_keys(at, begin - kLinearChunk, begin, ahead);
  ahead.add(p.query, at, begin - kLinearChunk, begin, at.query_head(0), p.key_dim);
  ahead.add(p.d_out, at, begin - kLinearChunk, begin, at.out_head(0), p.value_dim);
}

FLASHATTN_CALLED void recurrence_backward_chunk(const StateItem& at, int begin, int count, const float* kept,
                                                RecurrenceBackwardWorkspace& ws) {
  const RecurrenceParams& p = at.p;
  const int columns = p.state_columns();
  const int key_vectors = divide_up(p.key_dim, kLanes), value_vectors = divide_up(columns, kLanes);
  if (p.decay_kind != Decay::None) {
    fill(ws.carry, 0, p.key_dim);
    add_row_dots(ws.carry, ws.state, ws.d_state, p.key_dim, columns, 1);
  }
  for (int k = 0; k < p.key_dim; ++k)
    copy_floats(ws.state + k * kRowStride, kept + size_t(k) * p.padded_columns(), columns);
  load_chunk(at, begin, count, ws);
  const float* const updates = updates_of(p, ws);
  transpose_state(ws.state_transposed, ws.state, p.key_dim, columns);
  transpose_state(ws.d_state_transposed, ws.d_state, p.key_dim, columns);

  ask_for_chunk_before(at, begin, begin + count, ws.ahead);

  // What the gradient of the state at the end says.
  const bool by_channel = p.decay_kind == Decay::Channel, low_rank = p.update == Update::LowRank;
  if (by_channel) {
    copy_rows(ws.decayed_key, ws.key, count, p.key_dim);
    if (low_rank) copy_rows(ws.decayed_write, ws.write, count, p.key_dim);
    decay_all_keys(p, count, ws);
  }
  product<RowsTimesState, Accumulate::No>(ws.ahead, count, value_vectors, p.key_dim, ws.key, ws.d_state, ws.d_value,
                                          kRowStride);
  if (by_channel) copy_rows(ws.key, ws.decayed_key, count, p.key_dim);
  if (low_rank) {
    product<RowsTimesState, Accumulate::No>(ws.ahead, count, value_vectors, p.key_dim, ws.write, ws.d_state,
                                            ws.d_update, kRowStride);
    copy_rows(ws.write, ws.decayed_write, count, p.key_dim);
    product<RowsTimesState, Accumulate::No>(ws.ahead, count, key_vectors, columns, ws.update, ws.d_state_transposed,
                                            ws.d_write_end, kRowStride);
    clear_rows(ws.d_write, count, p.key_dim);
  }
  float* const at_end = by_channel ? ws.d_key_end : ws.d_key;
  product<RowsTimesState, Accumulate::No>(ws.ahead, count, key_vectors, columns, updates, ws.d_state_transposed, at_end,
                                          kRowStride);
  if (by_channel) {
    multiply_rows(ws.d_state, ws.row_scale, p.key_dim, columns);
  } else {
    multiply_rows(ws.d_value, ws.decay.after, count, columns);
    multiply_rows(ws.d_key, ws.decay.after, count, p.key_dim);
    fill(ws.row_scale, ws.decay.all, p.key_dim);
  }

  for (int i = 0; i < kLinearChunk; i += kLanes) store(ws.gate + i, Vec{});
  if (by_channel) {
    clear_rows(ws.d_key, count, p.key_dim);
    clear_rows(ws.d_key_bonus, count, p.key_dim);
    clear_rows(ws.query_gate, count, p.key_dim);
    clear_rows(ws.key_gate, count, p.key_dim);
    clear_rows(ws.read_gate, count, p.key_dim);
  }
  const bool finite_keys =
      all_finite(ws.key, count, p.key_dim) && all_finite(updates, count, columns) &&
      !(low_rank && !(all_finite(ws.write, count, p.key_dim) && all_finite(ws.update, count, columns)));
  const KeySet sets[] = {key_set(updates, ws), write_set(ws)};
  for (int g = 0; g < p.group(); ++g) {
    LinearChunk chunk{begin, count, finite_keys};
    load_query_head(at, chunk, g, ws);
    chunk.finite = finite_keys && all_finite(ws.queries, count, p.key_dim) && all_finite(ws.d_out, count, columns);
    if (!by_channel) {
      scalar_gradients(at, chunk, g == 0, updates, ws);
    } else {
      scale_rows(ws.queries, count, p.key_dim, p.scale);
      if (g > 0) clear_rows(ws.d_key_end, count, p.key_dim);
      if (g > 0 && low_rank) clear_rows(ws.d_write_end, count, p.key_dim);
      channel_gradients(at, chunk, sets, low_rank ? 2 : 1, p.bonus != nullptr, p.bonus ? ws.read_gate : ws.query_gate,
                        ws);
      scale_rows(ws.d_query, count, p.key_dim, p.scale);
    }
    store_linear_rows(p.d_query, at, begin, count, at.out_head(g), p.key_dim, ws.d_query);
  }
  const LinearChunk chunk{begin, count, finite_keys};
  if (low_rank) {
    low_rank_gradients(at, chunk, finite_keys, ws);
    add_products(ws.key_gate, ws.write, ws.d_write, count, p.key_dim);
    store_linear_rows(p.d_read, at, begin, count, at.h, p.key_dim, ws.d_query);
    store_linear_rows(p.d_write, at, begin, count, at.h, p.key_dim, ws.d_write);
  }
  if (by_channel) {
    add_products(ws.key_gate, ws.key, ws.d_key, count, p.key_dim);
    if (p.bonus) add_rows(ws.d_key, ws.d_key_bonus, count, p.key_dim);
  } else if (p.decay_kind != Decay::None) {
    add_row_dots(ws.gate, ws.key, ws.d_key, count, p.key_dim, -1);
  }
  if (p.update == Update::Delta) {
    solve_delta_backward(count, columns, ws);
    delta_gradients(at, chunk, ws);
    for (int t = 0; t < count; ++t) store_scalar(p.d_beta, at.sequence.batch, at.row(begin + t), at.h, ws.d_beta[t]);
  }
  store_linear_rows(p.d_key, at, begin, count, at.h, p.key_dim, ws.d_key);
  store_linear_rows(p.d_value, at, begin, count, at.h, p.value_dim, ws.d_value);
  if (p.decay_kind != Decay::None) store_decay_gradients(at, chunk, ws);
}

}  // namespace detail

FLASHATTN_CALLED void recurrence_backward_item(const RecurrenceParams& p, int item, RecurrenceBackwardWorkspace& ws) {
  const StateItem at(p, item);
  const int columns = p.state_columns(), length = at.sequence.length, chunks = divide_up(length, kLinearChunk);
  const size_t kept_floats = size_t(p.key_dim) * p.padded_columns();
  float* const kept = p.chunk_states + (size_t(at.h) * p.chunk_rows + at.first_chunk()) * kept_floats;
  ws.ahead = {};
  detail::load_state(ws.state, p.initial ? p.initial + at.state_begin() : nullptr, p.key_dim, columns);
  for (int c = 0; c < chunks; ++c) {
    float* const to = kept + c * kept_floats;
    for (int k = 0; k < p.key_dim; ++k)
      detail::copy_floats(to + size_t(k) * p.padded_columns(), ws.state + k * kRowStride, columns);
    const int begin = c * kLinearChunk, count = min(kLinearChunk, length - begin);
    detail::load_chunk(at, begin, count, ws);
    ws.ahead.begin();
    detail::ask_for_keys(at, begin + kLinearChunk, begin + 2 * kLinearChunk, ws.ahead);
    detail::decay_all_keys(p, count, ws);
    detail::pass_state(p, count, ws);
  }
  detail::load_state(ws.d_state, p.d_final_state ? p.d_final_state + at.state_begin() : nullptr, p.key_dim, columns);
  detail::load_bonus(at, ws);
  fill(ws.d_bonus, 0, p.key_dim);
  ws.d_head_decay = 0;
  for (int c = chunks; c-- > 0;) {
    const int begin = c * kLinearChunk, count = min(kLinearChunk, length - begin);
    detail::recurrence_backward_chunk(at, begin, count, kept + c * kept_floats, ws);
  }
  if (p.d_initial) detail::store_state(p.d_initial + at.state_begin(), ws.d_state, p.key_dim, columns);
  if (p.d_bonus)
    store_row(p.d_bonus + (size_t(at.s) * p.heads + at.h) * p.key_dim, DType::Float32, ws.d_bonus, p.key_dim);
  if (p.decay_kind == Decay::Head) detail::store_scalar(p.d_decay, at.s, 0, at.h, ws.d_head_decay);
}

}  // namespace flashattn
