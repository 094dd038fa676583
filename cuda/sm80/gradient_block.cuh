// Logits of one tile of queries by keys, and dS = P * (dP - delta), recomputed from the inputs: what row weights and the
// gradients of bias and relative positions are sums of. The gradients are formed apart from backward.cuh, at the cost of two more products, so that they
// need no atomics: every sum has a fixed order.
#pragma once
#include "../scores.cuh"
#include "../walk.cuh"
#include "tiles.cuh"

namespace flashattn {

template <class Element, int HeadDim>
class GradientBlock {
 public:
  using Tiles = GradientTiles<Element, HeadDim>;
  using ScoreTile = Scores<1, Tiles::kKeyTile / 8>;  // of a warp: 16 queries

  FLASHATTN_DEVICE explicit GradientBlock(const AttentionParams& p)
      : p_(p),
        lane_(ptx::thread()),
        warp_row_(ptx::thread() / kWarpSize * 16),
        query_{ptx::shared_base()},
        d_out_{query_.base + Tiles::QueryTile::kBytes},
        key_{d_out_.base + Tiles::QueryTile::kBytes},
        value_{key_.base + Tiles::KeyTile::kBytes} {}

  FLASHATTN_DEVICE Positions<RowsAre::Queries> positions(int first_query, int first_key) const {
    return {first_query + warp_row_, first_key, lane_};
  }
  FLASHATTN_DEVICE int warp_row() const { return warp_row_; }
  FLASHATTN_DEVICE Lane lane() const { return lane_; }

  /** Between `load_queries` and `finish_queries` come any number of `score` and `score_gradients`. */
  FLASHATTN_DEVICE void load_queries(const Head& head, int first) {
    const Sequence& s = head.sequence;
    load_rows<Tiles::kThreads>(query_, rows(p_.query, head, s.query_begin, head.h, p_.head_dim), first, s.query_length,
                               ptx::thread());
    load_rows<Tiles::kThreads>(d_out_, rows(p_.d_out, head, s.query_begin, head.h, p_.value_dim), first, s.query_length,
                               ptx::thread());
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      const int i = first + warp_row_ + lower * 8 + lane_.group;
      const bool exists = i < s.query_length;
      rows_[lower] = exists ? SavedRow::load(head, i) : SavedRow{kInfinity, 1.0f, 0.0f};
    }
  }

  /** Logits of the loaded queries and the keys from `first_key` on, -Infinity where hidden. The whole block takes part. */
  template <bool HasMod>
  FLASHATTN_DEVICE ScoreTile score(const Head& head, int first_query, int first_key, const uint32_t* bits) {
    load_keys(head, first_key);
    ScoreTile score = product(query_, key_);
    ptx::sync_threads();  // the tiles may be loaded again
    const auto at = positions(first_query, first_key);
    finish_scores<SlopesBy::Score, HasMod>(head, at, score);
    hide_scores(head, bits, at, score);
    return score;
  }

  /** e^(logit - lse) of a logit in row group + 8 `lower` of the warp. */
  FLASHATTN_DEVICE float weight(float logit, int lower) const { return ptx::exp2((logit - rows_[lower].lse) * kLog2E); }

  /** dS of the loaded queries and the keys from `first_key` on, by what score_mod is given; 0 where hidden. The whole block takes part. */
  FLASHATTN_DEVICE ScoreTile score_gradients(const Head& head, int first_query, int first_key, const uint32_t* bits) {
    load_keys(head, first_key);
    ScoreTile score = product(query_, key_), d_score = product(d_out_, value_);
    ptx::sync_threads();  // the tiles may be loaded again
    const auto at = positions(first_query, first_key);
    if (p_.dropout.threshold) drop_out(head, at, d_score);
#pragma unroll
    for (int n = 0; n < Tiles::kKeyTile / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) d_score.s[0][n][e] -= rows_[e / 2].delta;
    // Slopes have no place of their own: dP - delta is multiplied by them as they are made.
    finish_scores<SlopesBy::Score>(head, at, score, &d_score);
    hide_scores(head, bits, at, score);
#pragma unroll
    for (int n = 0; n < Tiles::kKeyTile / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float logit = score.s[0][n][e];
        d_score.s[0][n][e] = logit == -kInfinity ? 0.0f : rows_[e / 2].probability(logit) * d_score.s[0][n][e];
      }
    return d_score;
  }

  /** Copies of queries that met no key are still under way. */
  FLASHATTN_DEVICE void finish_queries() const {
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    ptx::sync_threads();
  }

 private:
  FLASHATTN_DEVICE void load_keys(const Head& head, int first) const {
    const Sequence& s = head.sequence;
    load_rows<Tiles::kThreads>(key_, rows(p_.key, head, s.key_begin, head.kv_head(), p_.head_dim), first, s.key_length,
                               ptx::thread());
    load_rows<Tiles::kThreads>(value_, rows(p_.value, head, s.key_begin, head.kv_head(), p_.value_dim), first,
                               s.key_length, ptx::thread());
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    ptx::sync_threads();
  }

  FLASHATTN_DEVICE static Rows rows(const TensorRef& t, const Head& head, int first, int h, int dim) {
    return Rows::of<Element>(t, head.b, first, h, dim);
  }

  FLASHATTN_DEVICE ScoreTile product(typename Tiles::QueryTile a_tile, typename Tiles::KeyTile b_tile) const {
    ScoreTile result;
    result.clear();
    const RowsAsA<typename Tiles::QueryTile> a(a_tile, warp_row_, lane_);
    const RowsAsB<typename Tiles::KeyTile> b(b_tile, 0, lane_);
#pragma unroll(unrolled <Element>(HeadDim / 16))
    for (int d = 0; d < HeadDim; d += 16) {
      const FragmentA<Element> fragment = a.load(0, d);
#pragma unroll
      for (int n = 0; n < Tiles::kKeyTile / 16; ++n)
        multiply(result.s[0][2 * n], result.s[0][2 * n + 1], fragment, b.load(n * 16, d));
    }
    return result;
  }

  const AttentionParams& p_;
  Lane lane_;
  int warp_row_;
  typename Tiles::QueryTile query_, d_out_;
  typename Tiles::KeyTile key_, value_;
  SavedRow rows_[2];  // of this lane
};

}  // namespace flashattn
