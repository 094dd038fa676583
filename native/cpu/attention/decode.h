// Attention of few queries over many keys, as in decoding: its time is that of reading K and V.
//
// So K and V are read once for all query heads that share them, straight from the tensor and in the order in which they
// lie there: an item is a split of the keys of as many kv heads as lie side by side in memory and whose queries fit into
// one score tile. Splits have a fixed number of keys, so that few heads fill many threads and the bits do not depend on
// how many there are. decode_item leaves the state of each row after each split, finish_decode_item merges them in their
// order.
#pragma once
#include "attention/decode_products.h"
#include "attention/forward.h"

namespace flashattn {

inline constexpr int kSplitKeys = 512;
inline constexpr int kMaxDecodeQueries = 8;

/**
 * Where the rows of a kv head's group lie among its columns of a score tile: in `runs` of `length`, `stride` apart. What
 * differs between heads is applied to whole vectors of one head, so each is a run; without that, heads with one query
 * each lie side by side as if they were queries, and after them those of the next kv head.
 */
struct DecodeColumns {
  bool side_by_side;
  int runs, length, stride;

  DecodeColumns(int group, int query_length, bool heads_differ)
      : side_by_side(query_length == 1 && !heads_differ),
        runs(side_by_side ? 1 : group),
        length(side_by_side ? group : query_length),
        stride(side_by_side ? group : round_up(query_length, kLanes)) {}

  int count() const { return runs * stride; }
  int run(int head) const { return side_by_side ? 0 : head * stride; }
  int in_run(int head, int i) const { return side_by_side ? head : i; }
};

inline DecodeColumns decode_columns(const AttentionParams& p) {
  return {p.group(), p.query_length,
          p.bias.data || p.alibi.slopes || p.relative.table || p.score_mod.program || p.dropout.threshold};
}

/** Floats of a row's state after a split: sums of probability * value, then the sum of probabilities and its reference. */
inline int decode_state(int value_dim) { return round_up(value_dim, kLanes) + 4; }

inline int decode_splits(int key_length) { return max(1, divide_up(key_length, kSplitKeys)); }

/** Floats that each row of lse needs in decode_states; 0: the problem is none of few queries. */
inline int decode_floats(const DecodeColumns& columns, int query_length, int key_length, int value_dim,
                         bool block_mask) {
  const bool fits = columns.count() > 0 && columns.count() <= kQueryTile && query_length <= kMaxDecodeQueries;
  return fits && !block_mask ? decode_splits(key_length) * decode_state(value_dim) : 0;
}

/**
 * kv heads that an item is asked to have, as its tiles_per_item: all that fit into a tile, unless each of the threads
 * would have few items.
 */
inline int decode_heads(const AttentionShape& p, const DecodeColumns& columns, int threads) {
  const int pieces = p.batch * decode_splits(p.key_length) * p.kv_heads;
  return max(1, min(pieces / (4 * threads), kQueryTile / columns.count()));
}

/**
 * kv heads of an item: as many as fill a vector, and where heads lie side by side in memory as many as it was asked to
 * have. No bit of the result depends on it.
 */
inline int decode_heads(const DecodeColumns& columns, int kv_heads, int wanted) {
  return min(max(min(wanted, kQueryTile / columns.count()), divide_up(kLanes, columns.count())), kv_heads);
}
inline int decode_heads(const AttentionParams& p) {
  return decode_heads(decode_columns(p), p.kv_heads, p.key.head < p.key.seq ? p.tiles_per_item : 1);
}

inline int decode_items(const AttentionParams& p) {
  return p.batch * decode_splits(p.key_length) * divide_up(p.kv_heads, decode_heads(p));
}
/** The same of a problem whose heads lie side by side. */
inline int64_t decode_items(const AttentionShape& p, const DecodeColumns& columns, int wanted) {
  const int heads = decode_heads(columns, p.kv_heads, wanted);
  return int64_t{p.batch} * decode_splits(p.key_length) * divide_up(p.kv_heads, heads);
}

inline int finish_decode_items(const AttentionParams& p) { return p.decode_states ? p.batch * p.heads : 0; }

namespace detail {

/** The state of a row after a split: [value dim], sum, reference. */
inline float* decode_state_at(const AttentionParams& p, int split, size_t lse_row) {
  return p.decode_states + (split * size_t(p.lse_rows) + lse_row) * decode_state(p.value_dim);
}

/** A few kv heads over one split of their keys. */
class Decoder {
 public:
  Decoder(const AttentionParams& p, const Sequence& s, int b, Range kv_heads, ForwardWorkspace& ws)
      : p_(p),
        s_(s),
        kv_heads_(kv_heads),
        at_(p, s, b, kv_heads.begin * p.group()),
        columns_(decode_columns(p)),
        head_vectors_(divide_up(p.head_dim, kLanes)),
        value_vectors_(divide_up(p.value_dim, kLanes)),
        tile_(ws.tiles[0]),
        ws_(ws) {
    at_.queries = {0, s.query_length};
  }

  /** Loads the queries; the sinks are seen with the first keys. */
  void start(bool with_sinks) {
    fill(tile_.softmax.reference, -kInfinity, kQueryTile);
    fill(tile_.softmax.sum, 0.0f, kQueryTile);
    fill(tile_.softmax.rest, 0.0f, kQueryTile);
    clear_rows(tile_.total, count(), p_.value_dim);
    for_each_row([&](int run, int in_run, int h, int i) {
      load_row(ws_.rows, p_.query.row(at_.b, s_.query_begin + i, h), p_.query.dtype, p_.head_dim);
      for (int v = 0; v < head_vectors_; ++v)
        store(run_query(queries(run), in_run, columns_.length, head_vectors_, v),
              load(ws_.rows + v * kLanes) * splat(query_factor(p_)));
      if (!with_sinks || !p_.sink || p_.sink[h] == -kInfinity) return;
      tile_.softmax.reference[run + in_run] = p_.sink[h];
      tile_.softmax.sum[run + in_run] = 1;
    });
  }

  void meet(Range keys) {
    at_.keys = keys;
    at_.keys = at_.narrowed().keys;
    if (at_.key_count() <= 0) return;
    for_each_source(p_.key, p_.head_dim, ws_.key, false, [&](auto elements, const auto& source, Range heads) {
      in_order(heads, [&](int kv_head, int j, int step) {
        for_each_run(kv_head, [&](int column) {
          dot_run<decltype(elements)>(source(kv_head), j, step, queries(column), columns_.length, head_vectors_,
                                      ws_.scores + j * kQueryTile + column);
        });
      });
    });
    // A hidden value may be NaN, which a weight of 0 does not hide.
    const bool partial = at_.cover() == Cover::Partial, hides = partial || scores_hide(p_);
    for_each_place([&](const Place& at, int column) {
      finish_scores(at, ws_.scores + column, product_factor(at.p), ws_.score_rows);
      if (partial) hide_scores(at, ws_.scores + column);
      if (hides) mark_hidden(at, ws_.scores + column, ws_.hidden + column);
    });
    if (online_softmax(at_.key_count(), divide_up(count(), kLanes), tile_.softmax, ws_.scores, ws_.shrink))
      multiply_rows(tile_.total, ws_.shrink, count(), p_.value_dim);
    if (p_.dropout.threshold)
      for_each_place([&](const Place& at, int column) {
        dropout_factors(at, ws_.factors + column);
        multiply_scores(at, ws_.scores + column, ws_.factors + column);
      });
    for_each_source(p_.value, p_.value_dim, ws_.value, hides, [&](auto elements, const auto& source, Range heads) {
      if (hides && !all_finite(ws_.value, at_.key_count(), p_.value_dim)) return weigh_visible(heads.begin);
      in_order(heads, [&](int kv_head, int j, int step) {
        for_each_run(kv_head, [&](int column) {
          weigh_run<decltype(elements)>(source(kv_head), j, step, ws_.scores + j * kQueryTile + column, columns_.length,
                                        value_vectors_, tile_.out + column * kRowStride, j == 0);
        });
      });
      const size_t rows = first_column(heads.begin) * kRowStride;
      add_rows(tile_.total + rows, tile_.out + rows, (heads.end - heads.begin) * columns_.count(), p_.value_dim);
    });
  }

  void store_states(int split) const {
    for_each_row([&](int run, int in_run, int h, int i) {
      const int column = run + in_run;
      float* state = decode_state_at(p_, split, p_.lse_row(at_.b, h, s_.query_begin + i));
      for (int d = 0; d < p_.value_dim; d += kLanes) store(state + d, load(tile_.total + column * kRowStride + d));
      float* ends = state + value_vectors_ * kLanes;
      ends[0] = tile_.softmax.sum[column] + tile_.softmax.rest[column];
      ends[1] = tile_.softmax.reference[column];
    });
  }

 private:
  int count() const { return (kv_heads_.end - kv_heads_.begin) * columns_.count(); }
  int first_column(int kv_head) const { return (kv_head - kv_heads_.begin) * columns_.count(); }
  float* queries(int column) const { return tile_.query + column * head_vectors_ * kLanes; }

  /** f(first column of its run, column of the run, query head, query) */
  template <class F>
  void for_each_row(F f) const {
    for (int kv_head = kv_heads_.begin; kv_head < kv_heads_.end; ++kv_head)
      for (int g = 0; g < p_.group(); ++g)
        for (int i = 0; i < s_.query_length; ++i)
          f(first_column(kv_head) + columns_.run(g), columns_.in_run(g, i), kv_head * p_.group() + g, i);
  }

  /** f(first column) for the runs of a kv head */
  template <class F>
  void for_each_run(int kv_head, F f) const {
    for (int run = 0; run < columns_.runs; ++run) f(first_column(kv_head) + run * columns_.stride);
  }

  /** f(place, first column): a place for each head, or one for all when the heads lie side by side like queries. */
  template <class F>
  void for_each_place(F f) const {
    Place at = at_;
    if (columns_.side_by_side) {
      at.queries = {0, count()};
      return f(at, 0);
    }
    for (int kv_head = kv_heads_.begin; kv_head < kv_heads_.end; ++kv_head)
      for_each_run(kv_head, [&](int column) {
        f(at, column);
        ++at.h;
      });
  }

  /** f(kv head, first key, keys) in the order in which the rows lie in memory. */
  template <class F>
  void in_order(Range heads, F f) const {
    for (int j = 0; j < at_.key_count(); j += kStepKeys)
      for (int kv_head = heads.begin; kv_head < heads.end; ++kv_head)
        f(kv_head, j, min(kStepKeys, at_.key_count() - j));
  }

  /**
   * f(elements, kv head -> the rows of at_.keys, kv heads): the rows where they are, of all heads at once; or as a copy in
   * float32, one head after the other, if that is wanted or rows do not end with a vector.
   */
  template <class F>
  void for_each_source(const TensorRef& from, int dim, float* copy, bool wanted, F f) const {
    const int begin = s_.key_begin + at_.keys.begin;
    if (!wanted && dim % kLanes == 0) {
      const uint8_t* const first = from.row(at_.b, begin, kv_heads_.begin);
      const auto bytes = [&](int64_t elements) { return static_cast<size_t>(elements) * element_size(from.dtype); };
      const size_t head = bytes(from.head), stride = bytes(from.seq);
      const auto rows = [=, this](int kv_head) {
        return SourceRows{first + (kv_head - kv_heads_.begin) * head, stride};
      };
      return with_elements(from.dtype, [&](auto elements) { f(elements, rows, kv_heads_); });
    }
    const auto rows = [&](int) {
      return SourceRows{reinterpret_cast<const uint8_t*>(copy), kRowStride * sizeof(float)};
    };
    for (int kv_head = kv_heads_.begin; kv_head < kv_heads_.end; ++kv_head) {
      load_rows(copy, from, at_.b, begin, at_.key_count(), kv_head, dim);
      f(Elements<DType::Float32>{}, rows, Range{kv_head, kv_head + 1});
    }
  }

  void weigh_visible(int kv_head) {
    for_each_run(kv_head, [&](int column) {
      product_visible<ScoresTimesKeyRows>(columns_.length, value_vectors_, at_.key_count(), ws_.scores + column,
                                          ws_.hidden + column, ws_.value, tile_.total + column * kRowStride,
                                          kRowStride);
    });
  }

  const AttentionParams& p_;
  const Sequence& s_;
  Range kv_heads_;
  Place at_;
  DecodeColumns columns_;
  int head_vectors_, value_vectors_;
  ForwardTile& tile_;
  ForwardWorkspace& ws_;
};

}  // namespace detail

FLASHATTN_CALLED void decode_item(const AttentionParams& p, int item, ForwardWorkspace& ws) {
  const int splits = decode_splits(p.key_length), heads = decode_heads(p), groups = divide_up(p.kv_heads, heads);
  const int split = item / groups % splits, b = item / groups / splits;
  const Range kv_heads{item % groups * heads, min((item % groups + 1) * heads, p.kv_heads)};
  const Sequence s = p.sequence(b);
  if (s.query_length == 0) return;
  detail::Decoder decoder(p, s, b, kv_heads, ws);
  decoder.start(split == 0);
  const int begin = split * kSplitKeys, end = min(begin + kSplitKeys, s.key_length);
  for (int j = begin; j < end; j += kKeyTile) decoder.meet({j, min(j + kKeyTile, end)});
  decoder.store_states(split);
}

/** Merges the states of the splits, for the queries of one head. */
FLASHATTN_CALLED void finish_decode_item(const AttentionParams& p, int item, ForwardWorkspace& ws) {
  const int h = item % p.heads, b = item / p.heads, splits = decode_splits(p.key_length);
  const int ends = round_up(p.value_dim, kLanes);
  const Sequence s = p.sequence(b);
  float *out = ws.rows, *rest = ws.rows + kRowStride;  // [value dim]
  bool overflowed = false;
  for (int i = 0; i < s.query_length; ++i) {
    const size_t lse_row = p.lse_row(b, h, s.query_begin + i);
    const auto state = [&](int split) { return detail::decode_state_at(p, split, lse_row); };
    float reference = -kInfinity;
    for (int split = 0; split < splits; ++split) {
      const float* of = state(split) + ends;
      if (of[0] != 0 && !(of[1] <= reference)) reference = of[1];  // a NaN is kept
    }
    double sum = 0;
    clear_rows(out, 2, p.value_dim);
    for (int split = 0; split < splits; ++split) {
      const float* of = state(split);
      if (of[ends] == 0) continue;
      const Vec weight = natural_exp(splat(of[ends + 1] - reference));
      sum += double(weight[0]) * of[ends];
      for (int d = 0; d < p.value_dim; d += kLanes) {
        Vec total = load(out + d);
        store(rest + d, load(rest + d) + add_exactly(total, weight * load(of + d)));
        store(out + d, total);
      }
    }
    for (int d = 0; d < p.value_dim; d += kLanes) store(out + d, load(out + d) + load(rest + d));
    overflowed |= !detail::finish_row(out, static_cast<float>(sum), 1, p.value_dim) && sum > 0;
    store_row(p.out.row(b, s.query_begin + i, h), p.out.dtype, out, p.value_dim);
    p.lse[lse_row] = sum > 0    ? static_cast<float>(reference + ln(static_cast<float>(sum)))
                     : sum == 0 ? -kInfinity
                                : static_cast<float>(sum);
  }
  if (overflowed) attend_and_finish(Place(p, s, b, h), s, {0, s.query_length}, ws);
}

// The launch `Forward`: decoding where the host has made room for it.

inline int attention_items(const AttentionParams& p) { return p.decode_states ? decode_items(p) : forward_items(p); }

inline void attention_item(const AttentionParams& p, int item, ForwardWorkspace& ws) {
  p.decode_states ? decode_item(p, item, ws) : forward_item(p, item, ws);
}

}  // namespace flashattn
