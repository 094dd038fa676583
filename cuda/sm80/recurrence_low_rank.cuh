// The gradients of a chunk with corrections of rank one (native/cpu/linear/low_rank_backward.h has the algebra): each set of
// queries, the heads of them and the reads, meets each set of keys, the keys and the writes, and what that gives is added up in
// shared memory.
//
//   d_q_t = sum_{s <= t} D_ts ((d_out_t . v_s) k_s + (d_out_t . p_s) w_s) + D_t (S d_out_t), and d_a_t likewise with d_p, s < t
//   d_k_s = sum_{t >= s} D_ts (d_out_t . v_s) q_t + sum_{t > s} D_ts (d_p_t . v_s) a_t + D_s (dS v_s), and d_w_s with p_s
#pragma once
#include "recurrence_gradients.cuh"

namespace flashattn {

class LowRankGradients : RecurrenceGradients<RecurrenceKind::LowRank> {
 public:
  FLASHATTN_DEVICE LowRankGradients(const RecurrenceLaunch& launch, int s, int h, int chunk)
      : RecurrenceGradients(launch, s, h, chunk),
        d_queries_{shared(Tiles::kErrorScores + Tiles::kKeyBytes)},
        d_keys_{shared(Tiles::kTable)},
        d_writes_{shared(Tiles::kTable + Tiles::kKeyBytes)} {}

  FLASHATTN_DEVICE void run() {
    if (chunk_ >= chunks()) return;
    for (int first = 0; first < p_.key_dim; first += kKeyTile) {
      for (int g = 0; g <= p_.group(); ++g) {
        const bool reads = g == p_.group();
        const int queries = reads ? RowSets::kReads : g;
        pass(first, {queries, false}, g == 0);
        pass(first, {queries, true}, g == 0);
        if (reads)
          store_tile(p_.d_read, h_, d_queries_, first, 1);
        else
          store_tile(p_.d_query, out_head(g), d_queries_, first, p_.scale);
      }
      store_tile(p_.d_key, h_, d_keys_, first, 1);
      store_tile(p_.d_write, h_, d_writes_, first, 1);
      store_gates(first);
    }
  }

 private:
  const KeyTileOfChunk d_queries_, d_keys_, d_writes_;

  /** `starts`: nothing has been added to the gradients of these keys yet. */
  FLASHATTN_DEVICE void pass(int first, RowSets sets, bool starts) {
    const bool reads = are_reads(sets), writes = are_writes(sets);
    make_scores(sets);
    d_query_.clear();
    d_key_.clear();
    if (!writes || starts) meet_states(first, sets, !writes, starts);
    load_rows(first, sets);
    meet_blocks(sets, !writes, starts);
    for_each(d_query_, [&](int t, int d, float sum) { first_.set(t, d, sum); });
    for_each(d_key_, [&](int s, int d, float sum) { second_.set(s, d, sum); });
    ptx::sync_threads();
    const int b = thread_ / kKeyTile, d = thread_ % kKeyTile;
    const bool has_channel = b < kRecurrenceBlocks;
    // A decay scales what keys up to the position before it give to queries from its own on, and to reads behind it: those
    // count as queries of the position before them. That may be another block's.
    if (has_channel)
      for_each_block_query(b * kRecurrenceBlock, d, reads, [&](int t, float, float sum) {
        d_queries_.set(t, d, writes ? d_queries_(t, d) + sum : sum);
        const float gate = t < rows() ? query_(t, d) * sum : 0.0f;
        const int at = reads ? t - 1 : t;
        if (at >= 0) gates_.set(at, d, starts && !writes ? gate : gates_(at, d) + gate);
      });
    ptx::sync_threads();
    if (has_channel) {
      const KeyTileOfChunk d_keys = writes ? d_writes_ : d_keys_;
      float product = 1;
      for_each_block_key(b * kRecurrenceBlock, d, reads, [&](int, int s, float, float sum) {
        sum += second_(s, d) * product;
        product *= decay_(s, d);
        d_keys.set(s, d, starts ? sum : d_keys(s, d) + sum);
        if (s < rows()) gates_.set(s, d, gates_(s, d) - key_(s, d) * sum);
      });
    }
    ptx::sync_threads();
  }

  /** Gates become gradients of decays: sums over what follows in the chunk, and of the state at its end. */
  FLASHATTN_DEVICE void store_gates(int first) {
    const int b = thread_ / kKeyTile, d = thread_ % kKeyTile;
    const bool has_channel = b < kRecurrenceBlocks;
    const FloatLine block_gates{state_.base};  // [block, channel]
    if (has_channel) {
      float sum = 0;
      for (int r = kRecurrenceBlock; r-- > 0;) sum += gates_(b * kRecurrenceBlock + r, d);
      block_gates.set(thread_, sum);
    }
    ptx::sync_threads();
    if (has_channel) {
      float sum = carry_(d);
      for (int i = kRecurrenceBlocks; i-- > b + 1;) sum += block_gates(i * kKeyTile + d);
      for (int r = kRecurrenceBlock; r-- > 0;) {
        const int t = b * kRecurrenceBlock + r;
        sum += gates_(t, d);
        gates_.set(t, d, sum);
      }
    }
    ptx::sync_threads();
    store_tile(p_.d_decay, h_, gates_, first, 1);
    ptx::sync_threads();
  }
};

}  // namespace flashattn
