// What the engine of linear and recurrent attention is told (lib/linear/recurrence.ts has the algebra), forward and backward.
#pragma once
#include "types.h"

namespace flashattn {

/** What the state is multiplied by before a position is added to it, as a logarithm. */
enum class Decay : int32_t {
  None,
  Head,      // [heads]
  Position,  // [batch, seq, heads]
  Channel,   // [batch, seq, heads, key dim]
};

/** What a position adds to the state. */
enum class Update : int32_t {
  Add,      // k v^T
  Delta,    // beta k (v - k^T S)^T, with the decayed S
  LowRank,  // k v^T + write (read^T S), with S before its decay; only with Decay::Channel
};

/**
 * Heads are those of the state. Each of query, key, value, decay and beta has its own number of heads, which divides theirs;
 * query may also have more, all of which read the state of their group. Gradients have the heads of the state, that of query
 * the heads of out. Float arrays without a TensorRef are contiguous.
 */
struct RecurrenceParams {
  TensorRef query, key, value;     // [batch, seq, heads, dim]
  TensorRef decay;                 // as Decay says; float32
  TensorRef beta;                  // [batch, seq, heads], of Update::Delta
  TensorRef read, write;           // [batch, seq, heads, key dim], of Update::LowRank
  TensorRef out;                   // [batch, seq, heads of query or of the state, value dim]
  Pointer<const float> bonus;      // [heads, key dim], or null: out reads the state before its own position, and
                                   // q . (bonus k) v besides
  Pointer<float> normalizer;       // [batch, seq, heads of out], or null: q times the decayed sum of keys, which is
                                   // then the last column of states
  Pointer<const int32_t> offsets;  // [batch + 1], or null: sequence b is rows [offsets[b], offsets[b + 1]) of batch
                                   // entry 0
  Pointer<const float> initial;    // [batch, heads, key dim, state columns], or null: zeros
  Pointer<float> final_state;      // the same, or null. May be `initial`

  // Backward only.
  TensorRef d_out, d_query, d_key, d_value;
  TensorRef d_decay;  // of the shape of decay; of Decay::Head [batch, heads, 1, 1], its sums by sequence
  TensorRef d_beta;
  TensorRef d_read, d_write;
  Pointer<float> d_bonus;              // [batch, heads, key dim], its sums by sequence
  Pointer<const float> d_normalizer;   // as normalizer
  Pointer<const float> d_final_state;  // as final_state, or null
  Pointer<float> d_initial;            // as initial, or null
  Pointer<float> chunk_states;  // [heads, chunk_rows, key dim, padded_columns]: the state before each chunk. GPUs
                                // keep more: cuda/sm80/recurrence_parts.h
  int64_t chunk_rows;           // chunks of all sequences, or a few more

  int32_t batch, length, heads;
  int32_t query_heads, key_heads, value_heads, decay_heads, beta_heads, read_heads, write_heads;
  int32_t key_dim, value_dim;
  Decay decay_kind;
  Update update;
  float scale;         // of query
  int32_t normalizes;  // 1: the last column of states is for the normalizer

  constexpr int out_heads() const { return query_heads > heads ? query_heads : heads; }
  constexpr int group() const { return out_heads() / heads; }
  constexpr int state_columns() const { return value_dim + normalizes; }
  /** Of states that are kept: whole vectors on every machine. */
  constexpr int padded_columns() const { return (state_columns() + 15) / 16 * 16; }
};
FLASHATTN_FIELDS(RecurrenceParams, query, key, value, decay, beta, read, write, out, bonus, normalizer, offsets,
                 initial, final_state, d_out, d_query, d_key, d_value, d_decay, d_beta, d_read, d_write, d_bonus,
                 d_normalizer, d_final_state, d_initial, chunk_states, chunk_rows, batch, length, heads, query_heads,
                 key_heads, value_heads, decay_heads, beta_heads, read_heads, write_heads, key_dim, value_dim,
                 decay_kind, update, scale, normalizes);

}  // namespace flashattn
