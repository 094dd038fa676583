// Attention of few queries over many keys, as in decoding: its time is that of reading K and V.
//
// So K and V are read once for all query heads that share them, straight from the tensor and in the order in which they
// lie there: an item is a split of the keys of as many kv heads as lie side by side in memory and whose queries fit into
// one score tile. Splits have a fixed number of keys, so that few heads fill many threads. decode_item leaves the state of
// each row after each split, finish_decode_item merges them in their order.
//
// Keys in pages are met the same way. There, bits of a row depend on its own query and keys alone, not on how many rows or
// sequences there are, on threads, or on whether an item merges its splits itself: sums have one order everywhere.
#pragma once
#include "attention/decode_products.h"
#include "attention/forward.h"

namespace flashattn {

inline constexpr int kSplitKeys = 256;
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

inline bool heads_differ(const AttentionParams& p) {
  return p.bias.data || p.alibi.slopes || p.relative.table || p.score_mod.program || p.dropout.threshold;
}

inline DecodeColumns decode_columns(const AttentionParams& p) { return {p.group(), p.query_length, heads_differ(p)}; }

/** Floats of a row's state after a split: sums of probability * value, then the sum of probabilities and its reference. */
inline int decode_state(int value_dim) { return round_up(value_dim, kLanes) + 4; }

/** Heads of a group that fit into a score tile: an item has no more of them. */
inline int decode_group(int group, int query_length, bool heads_differ) {
  int heads = group;
  while (heads > 1 && DecodeColumns(heads, query_length, heads_differ).count() > kQueryTile)
    heads = divide_up(heads, 2);
  return heads;
}

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

/** Some heads of a few kv heads. Where the group is not whole, it is one kv head. */
struct DecodeHeads {
  Range kv_heads;
  Range group;  // of each of them
};

/** Row sums over all splits so far: what they lack, and their weights relative to e^reference. */
struct MergedRow {
  float* out;   // [value dim]
  float* rest;  // [value dim]: what rounding has cut off
  double sum = 0;
  float reference = -kInfinity;

  /** Adds the state of the next split. */
  void add(const float* state /* [value dim] */, float weights, float level, int value_dim) {
    if (weights == 0) return;
    const float next = level <= reference ? reference : level;  // a NaN is kept
    const Vec before = natural_exp(splat(reference - next)), weight = natural_exp(splat(level - next));
    sum = sum * double(before[0]) + double(weight[0]) * weights;
    reference = next;
    for (int d = 0; d < value_dim; d += kLanes) {
      Vec total = load(out + d) * before;
      store(rest + d, load(rest + d) * before + add_exactly(total, weight * load(state + d)));
      store(out + d, total);
    }
  }

  /** Writes out and lse. Returns whether sums have overflowed that fit once values are shrunk. */
  bool finish(const AttentionParams& p, const Sequence& s, int b, int h, int i) {
    for (int d = 0; d < p.value_dim; d += kLanes) store(out + d, load(out + d) + load(rest + d));
    const bool finite = finish_row(out, static_cast<float>(sum), 1, p.value_dim);
    store_row(p.out.row(b, s.query_begin + i, h), p.out.dtype, out, p.value_dim);
    p.lse[p.lse_row(b, h, s.query_begin + i)] = sum > 0    ? static_cast<float>(reference + ln(static_cast<float>(sum)))
                                                : sum == 0 ? -kInfinity
                                                           : static_cast<float>(sum);
    return !finite && sum > 0;
  }
};

/** Some heads over one split of their keys after another. */
class Decoder {
 public:
  Decoder(const AttentionParams& p, const Sequence& s, int b, DecodeHeads heads, ForwardWorkspace& ws)
      : p_(p),
        s_(s),
        kv_heads_(heads.kv_heads),
        group_(heads.group),
        at_(p, s, b, kv_heads_.begin * p.group() + group_.begin),
        columns_(group_.end - group_.begin, p.query_length, heads_differ(p)),
        head_vectors_(divide_up(p.head_dim, kLanes)),
        value_vectors_(divide_up(p.value_dim, kLanes)),
        tile_(ws.tiles[0]),
        ws_(ws) {
    at_.queries = {0, s.query_length};
    for_each_row([&](int run, int in_run, int h, int i) {
      Place row = at_;
      row.h = h;
      row.queries = {i, i + 1};
      load_query_rows(ws_.rows, row, s_);
      for (int v = 0; v < head_vectors_; ++v)
        store(run_query(queries(run), in_run, columns_.length, head_vectors_, v),
              load(ws_.rows + v * kLanes) * splat(query_factor(p_)));
    });
  }

  /** Meets the keys of a split; the sinks are seen with the first keys. */
  void meet_split(int split) {
    fill(tile_.softmax.reference, -kInfinity, kQueryTile);
    fill(tile_.softmax.sum, 0.0f, kQueryTile);
    fill(tile_.softmax.rest, 0.0f, kQueryTile);
    clear_rows(tile_.total, count(), p_.value_dim);
    if (split == 0 && p_.sink)
      for_each_row([&](int run, int in_run, int h, int) {
        if (p_.sink[h] == -kInfinity) return;
        tile_.softmax.reference[run + in_run] = p_.sink[h];
        tile_.softmax.sum[run + in_run] = 1;
      });
    const int begin = split * kSplitKeys, end = min(begin + kSplitKeys, s_.key_length);
    for (int j = begin; j < end; j += kKeyTile) meet({j, min(j + kKeyTile, end)});
  }

  /** f(column, query head, query) */
  template <class F>
  void for_each_row(F f) const {
    for (int kv_head = kv_heads_.begin; kv_head < kv_heads_.end; ++kv_head)
      for (int g = group_.begin; g < group_.end; ++g)
        for (int i = 0; i < s_.query_length; ++i)
          f(first_column(kv_head) + columns_.run(g - group_.begin), columns_.in_run(g - group_.begin, i),
            kv_head * p_.group() + g, i);
  }

  const float* sums(int column) const { return tile_.total + column * kRowStride; }  // [value dim]
  float weights(int column) const { return tile_.softmax.sum[column] + tile_.softmax.rest[column]; }
  float reference(int column) const { return tile_.softmax.reference[column]; }

 private:
  void meet(Range keys) {
    at_.keys = keys;
    at_.keys = at_.narrowed().keys;
    if (at_.key_count() <= 0) return;
    find_rows(p_.key, key_rows_);
    const auto turn = [&] { turn_key_rows(ws_.key, at_); };
    const bool turned = p_.rotary.pairs && p_.rotary.key.cos;
    for_each_source(p_.key, key_rows_, p_.head_dim, ws_.key, turned, turn,
                    [&](auto elements, auto source, Range heads) {
                      in_order(heads, [&](int kv_head, int j, int step) {
                        for_each_run(kv_head, [&](int column) {
                          dot_run<decltype(elements)>(source(kv_head), j, step, queries(column), columns_.length,
                                                      head_vectors_, ws_.scores + j * kQueryTile + column);
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
    find_rows(p_.value, value_rows_);
    for_each_source(
        p_.value, value_rows_, p_.value_dim, ws_.value, hides, [] {},
        [&](auto elements, auto source, Range heads) {
          if (hides && !all_finite(ws_.value, at_.key_count(), p_.value_dim)) return weigh_visible(heads.begin);
          in_order(heads, [&](int kv_head, int j, int step) {
            for_each_run(kv_head, [&](int column) {
              weigh_run<decltype(elements)>(source(kv_head), j, step, ws_.scores + j * kQueryTile + column,
                                            columns_.length, value_vectors_, tile_.out + column * kRowStride, j == 0);
            });
          });
          const size_t rows = first_column(heads.begin) * kRowStride;
          add_rows(tile_.total + rows, tile_.out + rows, (heads.end - heads.begin) * columns_.count(), p_.value_dim);
        });
  }

  int count() const { return (kv_heads_.end - kv_heads_.begin) * columns_.count(); }
  int first_column(int kv_head) const { return (kv_head - kv_heads_.begin) * columns_.count(); }
  float* queries(int column) const { return tile_.query + column * head_vectors_ * kLanes; }

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

  /** Addresses of the rows of at_.keys, of the first kv head. */
  void find_rows(const TensorRef& from, const uint8_t** rows /* [key] */) const {
    const PageParams& pages = p_.pages;
    for (int r = 0, j = at_.keys.begin; r < at_.key_count(); ++r, ++j)
      rows[r] = pages.size ? from.row(0, pages.row(at_.b, s_.key_begin + j), kv_heads_.begin)
                           : from.row(at_.b, s_.key_begin + j, kv_heads_.begin);
  }

  /**
   * f(elements, kv head -> the rows of at_.keys, kv heads): the rows where they are, of all heads at once; or a copy in
   * float32, one head after the other, if that is wanted or rows do not end with a vector; `finish` is told of each copy.
   */
  template <class Finish, class F>
  void for_each_source(const TensorRef& from, const uint8_t* const* rows, int dim, float* copy, bool wanted,
                       Finish finish, F f) const {
    const size_t head = static_cast<size_t>(from.head) * element_size(from.dtype);
    const auto offset = [=, this](int kv_head) { return (kv_head - kv_heads_.begin) * head; };
    if (!wanted && dim % kLanes == 0)
      return with_elements(from.dtype, [&](auto elements) {
        f(
            elements,
            [=](int kv_head) {
              return SourceRows{rows, offset(kv_head)};
            },
            kv_heads_);
      });
    const uint8_t* copies[kKeyTile];
    for (int r = 0; r < at_.key_count(); ++r) copies[r] = reinterpret_cast<const uint8_t*>(copy + r * kRowStride);
    for (int kv_head = kv_heads_.begin; kv_head < kv_heads_.end; ++kv_head) {
      for (int r = 0; r < at_.key_count(); ++r)
        load_row(copy + r * kRowStride, rows[r] + offset(kv_head), from.dtype, dim);
      finish();
      f(
          Elements<DType::Float32>{},
          [&](int) {
            return SourceRows{copies, 0};
          },
          Range{kv_head, kv_head + 1});
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
  Range kv_heads_, group_;
  Place at_;
  DecodeColumns columns_;
  int head_vectors_, value_vectors_;
  ForwardTile& tile_;
  ForwardWorkspace& ws_;
  const uint8_t *key_rows_[kKeyTile], *value_rows_[kKeyTile];
};

}  // namespace detail

namespace detail {

/** Leaves the state of every row after a split. */
inline void decode_split(const AttentionParams& p, const Sequence& s, int b, DecodeHeads heads, int split,
                         ForwardWorkspace& ws) {
  Decoder decoder(p, s, b, heads, ws);
  decoder.meet_split(split);
  decoder.for_each_row([&](int run, int in_run, int h, int i) {
    const int column = run + in_run;
    float* state = decode_state_at(p, split, p.lse_row(b, h, s.query_begin + i));
    for (int d = 0; d < p.value_dim; d += kLanes) store(state + d, load(decoder.sums(column) + d));
    float* ends = state + round_up(p.value_dim, kLanes);
    ends[0] = decoder.weights(column);
    ends[1] = decoder.reference(column);
  });
}

/** Rows whose sums have overflowed, again: from sums over shrunken values. */
inline void decode_restored(const AttentionParams& p, const Sequence& s, int b, int h, ForwardWorkspace& ws) {
  Place at(p, s, b, h);
  const QueryTiles tiles{{0, s.query_length}};
  bool overflowed[kQueryTile];
  __builtin_memcpy(overflowed, ws.tiles[0].overflowed, sizeof overflowed);
  attend<false>(at, s, tiles, kShrunk, ws);
  at.queries = tiles[0];
  __builtin_memcpy(ws.tiles[0].overflowed, overflowed, sizeof overflowed);
  restore_tile(at, s, ws.tiles[0]);
}

}  // namespace detail

FLASHATTN_CALLED void decode_item(const AttentionParams& p, int item, ForwardWorkspace& ws) {
  const int splits = decode_splits(p.key_length), heads = decode_heads(p), groups = divide_up(p.kv_heads, heads);
  const int split = item / groups % splits, b = item / groups / splits;
  const Range kv_heads{item % groups * heads, min((item % groups + 1) * heads, p.kv_heads)};
  const Sequence s = p.sequence(b);
  if (s.query_length > 0) detail::decode_split(p, s, b, {kv_heads, {0, p.group()}}, split, ws);
}

/** Merges the states of the splits, for the queries of one head. */
FLASHATTN_CALLED void finish_decode_item(const AttentionParams& p, int item, ForwardWorkspace& ws) {
  const int h = item % p.heads, b = item / p.heads, splits = decode_splits(p.sequence(b).key_length);
  const int ends = round_up(p.value_dim, kLanes);
  const Sequence s = p.sequence(b);
  bool overflowed = false;
  for (int i = 0; i < s.query_length; ++i) {
    detail::MergedRow row{ws.rows, ws.rows + kRowStride};
    clear_rows(ws.rows, 2, p.value_dim);
    for (int split = 0; split < splits; ++split) {
      const float* state = detail::decode_state_at(p, split, p.lse_row(b, h, s.query_begin + i));
      row.add(state, state[ends], state[ends + 1], p.value_dim);
    }
    ws.tiles[0].overflowed[i] = row.finish(p, s, b, h, i);
    overflowed |= ws.tiles[0].overflowed[i];
  }
  if (overflowed) detail::decode_restored(p, s, b, h, ws);
}

// The launch `Forward`: decoding where the host has made room for it.

inline int attention_items(const AttentionParams& p) { return p.decode_states ? decode_items(p) : forward_items(p); }

inline void attention_item(const AttentionParams& p, int item, ForwardWorkspace& ws) {
  p.decode_states ? decode_item(p, item, ws) : forward_item(p, item, ws);
}

// The launch `pagedAttention`.

/** How heads are shared out among items. */
struct PagedHeads {
  int group, parts;     // heads of a group in an item; items that share a group
  int kv_heads, items;  // kv heads of an item; items of a sequence and split

  explicit PagedHeads(const AttentionParams& p) {
    group = decode_group(p.group(), p.query_length, heads_differ(p));
    parts = divide_up(p.group(), group);
    kv_heads = parts > 1 ? 1 : decode_heads(p);
    items = parts * divide_up(p.kv_heads, kv_heads);
  }

  detail::DecodeHeads operator()(const AttentionParams& p, int item) const {
    const int kv_head = item / parts * kv_heads, first = item % parts * group;
    return {{kv_head, min(kv_head + kv_heads, p.kv_heads)}, {first, min(first + group, p.group())}};
  }
};

inline int paged_items(const AttentionParams& p) {
  return p.batch * PagedHeads(p).items * (p.decode_states ? decode_splits(p.key_length) : 1);
}

/** A split of the keys of some heads where there is room for its states; otherwise all of them, merged. */
FLASHATTN_CALLED void paged_item(const AttentionParams& p, int item, ForwardWorkspace& ws) {
  using namespace detail;
  const PagedHeads heads(p);
  const int splits = p.decode_states ? decode_splits(p.key_length) : 1;
  const int b = item / heads.items / splits;
  const Sequence s = p.sequence(b);
  const DecodeHeads own = heads(p, item % heads.items);
  if (s.query_length == 0) return;
  if (p.decode_states) {
    const int split = item / heads.items % splits;
    if (split < decode_splits(s.key_length)) decode_split(p, s, b, own, split, ws);
    return;
  }
  Decoder decoder(p, s, b, own, ws);
  ForwardTile& merged = ws.tiles[1];
  MergedRow rows[kQueryTile];
  decoder.for_each_row([&](int run, int in_run, int, int) {
    const int at = (run + in_run) * kRowStride;
    rows[run + in_run] = {merged.out + at, merged.total + at};
    clear_rows(merged.out + at, 1, p.value_dim);
    clear_rows(merged.total + at, 1, p.value_dim);
  });
  for (int split = 0; split < decode_splits(s.key_length); ++split) {
    decoder.meet_split(split);
    decoder.for_each_row([&](int run, int in_run, int, int) {
      const int column = run + in_run;
      rows[column].add(decoder.sums(column), decoder.weights(column), decoder.reference(column), p.value_dim);
    });
  }
  bool overflowed[kQueryTile] = {}, any_overflowed = false;
  decoder.for_each_row([&](int run, int in_run, int h, int i) {
    overflowed[run + in_run] = rows[run + in_run].finish(p, s, b, h, i);
    any_overflowed |= overflowed[run + in_run];
  });
  if (!any_overflowed) return;
  for (int kv_head = own.kv_heads.begin; kv_head < own.kv_heads.end; ++kv_head)
    for (int g = own.group.begin; g < own.group.end; ++g) {
      const int head = kv_head * p.group() + g;
      decoder.for_each_row([&](int run, int in_run, int h, int i) {
        if (h == head) ws.tiles[0].overflowed[i] = overflowed[run + in_run];
      });
      decode_restored(p, s, b, head, ws);
    }
}

}  // namespace flashattn
