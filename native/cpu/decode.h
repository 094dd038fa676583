// Attention of few queries over many keys, as in decoding: its time is that of reading K and V.
//
// So K and V are read once for all query heads that share them, straight from the tensor. An item is a split of the keys
// of a few kv heads, which lie side by side in memory; splits have a fixed number of keys, so that few heads fill many
// threads and the bits do not depend on how many there are. decode_item leaves the state of each row after each split,
// finish_decode_item merges them in their order.
#pragma once
#include "forward.h"

namespace flashattn {

inline constexpr int kSplitKeys = 256;
inline constexpr int kMaxDecodeQueries = 8;

/**
 * Where the rows of a kv head's group lie among the columns of a score tile: in `runs` of `length`, `stride` apart. What
 * differs between heads is applied to whole vectors of one head, so each is a run; without that, heads with one query
 * each lie side by side as if they were queries.
 */
struct DecodeColumns {
  bool side_by_side;
  int runs, length, stride;

  DecodeColumns(int group, int query_length, bool heads_differ)
      : side_by_side(query_length == 1 && !heads_differ),
        runs(side_by_side ? 1 : group),
        length(side_by_side ? group : query_length),
        stride(round_up(length, kLanes)) {}

  int count() const { return runs * stride; }
  int vectors() const { return count() / kLanes; }
  int column(int head, int i) const { return side_by_side ? head : head * stride + i; }
};

inline DecodeColumns decode_columns(const AttentionParams& p) {
  return {p.group(), p.query_length, p.bias.data || p.alibi.slopes || p.relative.table || p.dropout.threshold};
}

/** Floats of a row's state after a split: sums of probability * value, then the sum of probabilities and its reference. */
inline int decode_state(int value_dim) { return round_up(value_dim, kLanes) + 4; }

inline int decode_splits(int key_length) { return max(1, divide_up(key_length, kSplitKeys)); }

/** Floats that each row of lse needs in decode_states; 0: the problem is none of few queries. */
inline int decode_floats(const DecodeColumns& columns, int query_length, int key_length, int value_dim,
                         bool block_mask) {
  if (block_mask || query_length > kMaxDecodeQueries || columns.count() > kQueryTile) return 0;
  return decode_splits(key_length) * decode_state(value_dim);
}

/** kv heads of an item: as many as make whole pages where heads lie side by side. */
inline int decode_heads(const AttentionParams& p) { return p.key.head < p.key.seq ? kMaxTilesPerItem : 1; }

inline int decode_items(const AttentionParams& p) {
  return p.batch * decode_splits(p.key_length) * divide_up(p.kv_heads, decode_heads(p));
}

inline int finish_decode_items(const AttentionParams& p) { return p.decode_states ? p.batch * p.heads : 0; }

namespace detail {

/** How rows of a dtype are read: kLanes elements from the d-th of a row on. */
template <DType kDType>
struct Elements {
  static constexpr size_t kSize = element_size(kDType);

  FLASHATTN_INLINE Vec read(const uint8_t* row, int d) {
    if constexpr (kDType == DType::Float32) {
      return load(reinterpret_cast<const float*>(row) + d);
    } else {
      const UintVec bits = load_halves(reinterpret_cast<const uint16_t*>(row) + d);
      return kDType == DType::Float16 ? widen_half(bits) : widen_bfloat(bits);
    }
  }
};

/** Rows of keys or values, `stride` bytes apart. */
struct SourceRows {
  const uint8_t* data;
  size_t stride;
  DType dtype;

  const uint8_t* operator[](int j) const { return data + j * stride; }
};

/** Calls f with the Elements of a dtype. */
template <class F>
FLASHATTN_INLINE void with_elements(DType dtype, F f) {
  if (dtype == DType::Float32)
    f(Elements<DType::Float32>{});
  else if (dtype == DType::Float16)
    f(Elements<DType::Float16>{});
  else
    f(Elements<DType::BFloat16>{});
}

/** scores[k][c] = key k . query c for kKeys x kColumns of them. */
template <class E, int kKeys, int kColumns>
FLASHATTN_INLINE void dot_block(const SourceRows& keys, int j, const float* queries /* [column][kMaxDim] */, int dim,
                                float* scores /* [key][kQueryTile] */) {
  Vec sum[kKeys][kColumns] = {};
  const uint8_t* row[kKeys];
#pragma clang loop unroll(full)
  for (int k = 0; k < kKeys; ++k) row[k] = keys[j + k];
#pragma clang loop unroll(disable)
  for (int d = 0; d < dim; d += kLanes) {
    Vec query[kColumns];
#pragma clang loop unroll(full)
    for (int c = 0; c < kColumns; ++c) query[c] = load(queries + c * kMaxDim);
    queries += kLanes;
    keep_as_pointer(queries);
#pragma clang loop unroll(full)
    for (int k = 0; k < kKeys; ++k) {
      const Vec key = E::read(row[k], 0);
      row[k] += kLanes * E::kSize;
      keep_as_pointer(row[k]);
#pragma clang loop unroll(full)
      for (int c = 0; c < kColumns; ++c) sum[k][c] = multiply_add(query[c], key, sum[k][c]);
    }
  }
#pragma clang loop unroll(full)
  for (int c = 0; c < kColumns; ++c) {
    if constexpr (kKeys % kLanes == 0) {
#pragma clang loop unroll(full)
      for (int k = 0; k < kKeys; k += kLanes) {
        Vec lanes[kLanes];
#pragma clang loop unroll(full)
        for (int l = 0; l < kLanes; ++l) lanes[l] = sum[k + l][c];
        transpose_lanes(lanes);
        Vec total{};
#pragma clang loop unroll(full)
        for (int l = 0; l < kLanes; ++l) total += lanes[l];
#pragma clang loop unroll(full)
        for (int l = 0; l < kLanes; ++l) scores[(k + l) * kQueryTile + c] = total[l];
      }
    } else {
#pragma clang loop unroll(full)
      for (int k = 0; k < kKeys; ++k) scores[k * kQueryTile + c] = sum_lanes(sum[k][c]);
    }
  }
}

/** Scores of kKeys keys with all queries of a run. */
template <class E, int kKeys>
FLASHATTN_INLINE void dot_keys(const SourceRows& keys, int j, const float* queries, int columns, int dim,
                               float* scores) {
  int c = 0;
  if constexpr (kKeys == 4)
    for (; c + 2 <= columns; c += 2) dot_block<E, kKeys, 2>(keys, j, queries + c * kMaxDim, dim, scores + c);
  for (; c < columns; ++c) dot_block<E, kKeys, 1>(keys, j, queries + c * kMaxDim, dim, scores + c);
}

template <class E>
FLASHATTN_CALLED void dot_rows(const SourceRows& keys, int count, const float* queries /* [column][kMaxDim] */,
                               const DecodeColumns& columns, int dim, float* scores /* [key][kQueryTile] */) {
  // One query keeps eight keys in flight; more queries share each element of four.
  const int most = columns.length == 1 ? 8 : 4;
  for (int j = 0; j < count;) {
    const int step = count - j >= most ? most : 1;
    for (int run = 0; run < columns.runs; ++run) {
      const int first = run * columns.stride;
      const float* q = queries + first * kMaxDim;
      float* to = scores + j * kQueryTile + first;
      if (step == 8)
        dot_keys<E, 8>(keys, j, q, columns.length, dim, to);
      else if (step == 4)
        dot_keys<E, 4>(keys, j, q, columns.length, dim, to);
      else
        dot_keys<E, 1>(keys, j, q, columns.length, dim, to);
    }
    j += step;
  }
}

/** out[c][d] += sum_k weights[k][c] * value k[d] for kColumns x kVecs vectors of `out`. */
template <class E, int kColumns, int kVecs>
FLASHATTN_INLINE void weigh_block(const SourceRows& values, int j, int count, int d,
                                  const float* weights /* [key][kQueryTile] */, float* out /* [column][kRowStride] */) {
  Vec sum[kColumns][kVecs] = {};
  const uint8_t* row = values[j] + d * E::kSize;
#pragma clang loop unroll(disable)
  for (int k = 0; k < count; ++k) {
    Vec value[kVecs];
#pragma clang loop unroll(full)
    for (int v = 0; v < kVecs; ++v) value[v] = E::read(row, v * kLanes);
    row += values.stride;
    keep_as_pointer(row);
#pragma clang loop unroll(full)
    for (int c = 0; c < kColumns; ++c) {
      const Vec weight = load_splat(weights + c);
#pragma clang loop unroll(full)
      for (int v = 0; v < kVecs; ++v) sum[c][v] = multiply_add(weight, value[v], sum[c][v]);
    }
    weights += kQueryTile;
    keep_as_pointer(weights);
  }
#pragma clang loop unroll(full)
  for (int c = 0; c < kColumns; ++c) {
#pragma clang loop unroll(full)
    for (int v = 0; v < kVecs; ++v) {
      float* to = out + c * kRowStride + d + v * kLanes;
      store(to, load(to) + sum[c][v]);
    }
  }
}

template <class E, int kVecs>
FLASHATTN_INLINE void weigh_vectors(const SourceRows& values, int j, int count, int d, const float* weights, float* out,
                                    int columns) {
  constexpr int kMost = kVecs == 8 ? 1 : kVecs == 4 ? 2 : 4;
  int c = 0;
  for (; c + kMost <= columns; c += kMost)
    weigh_block<E, kMost, kVecs>(values, j, count, d, weights + c, out + c * kRowStride);
  for (; c < columns; ++c) weigh_block<E, 1, kVecs>(values, j, count, d, weights + c, out + c * kRowStride);
}

template <class E>
FLASHATTN_CALLED void weigh_rows(const SourceRows& values, int count, const float* weights /* [key][kQueryTile] */,
                                 const DecodeColumns& columns, int dim, float* out /* [column][kRowStride] */) {
  constexpr int kKeysInCache = 8;  // rows of different keys may fall into the same few sets
  const int most = columns.length == 1 ? 8 : columns.length < 4 ? 4 : 2;
  for (int j = 0; j < count; j += kKeysInCache) {
    const int keys = min(kKeysInCache, count - j);
    for (int run = 0; run < columns.runs; ++run) {
      const float* w = weights + j * kQueryTile + run * columns.stride;
      float* to = out + run * columns.stride * kRowStride;
      int d = 0;
      for (; d + most * kLanes <= dim; d += most * kLanes) {
        if (most == 8) weigh_vectors<E, 8>(values, j, keys, d, w, to, columns.length);
        if (most == 4) weigh_vectors<E, 4>(values, j, keys, d, w, to, columns.length);
        if (most == 2) weigh_vectors<E, 2>(values, j, keys, d, w, to, columns.length);
      }
      for (; d < dim; d += kLanes) weigh_vectors<E, 1>(values, j, keys, d, w, to, columns.length);
    }
  }
}

/** One kv head of an item, with the split that the item is. */
class Decoder {
 public:
  Decoder(const AttentionParams& p, const Sequence& s, int b, int kv_head, ForwardTile& tile, ForwardWorkspace& ws)
      : p_(p),
        s_(s),
        kv_head_(kv_head),
        at_(p, s, b, kv_head * p.group()),
        columns_(decode_columns(p)),
        tile_(tile),
        ws_(ws) {
    at_.queries = {0, s.query_length};
  }

  /** Loads the queries; the sinks are seen with the first keys. */
  void start(bool with_sinks) {
    fill(tile_.softmax.reference, -kInfinity, kQueryTile);
    fill(tile_.softmax.sum, 0.0f, kQueryTile);
    fill(tile_.softmax.rest, 0.0f, kQueryTile);
    clear_rows(tile_.out, columns_.count(), p_.value_dim);
    for_each_row([&](int column, int h, int i) {
      float* query = tile_.query + column * kMaxDim;
      load_row(query, p_.query.row(at_.b, s_.query_begin + i, h), p_.query.dtype, p_.head_dim);
      for (int d = 0; d < p_.head_dim; d += kLanes) store(query + d, load(query + d) * splat(query_factor(p_)));
      if (!with_sinks || !p_.sink || p_.sink[h] == -kInfinity) return;
      tile_.softmax.reference[column] = p_.sink[h];
      tile_.softmax.sum[column] = 1;
    });
  }

  void meet(Range keys) {
    at_.keys = keys;
    at_.keys = at_.narrowed().keys;
    const int count = at_.key_count();
    if (count <= 0) return;
    const SourceRows key = source(p_.key, p_.head_dim, ws_.key, false);
    with_elements(key.dtype, [&](auto elements) {
      dot_rows<decltype(elements)>(key, count, tile_.query, columns_, p_.head_dim, ws_.scores);
    });
    // A hidden value may be NaN, which a weight of 0 does not hide.
    const bool partial = at_.cover() == Cover::Partial, hides = partial || p_.bias.data;
    for_each_run([&](const Place& at, int column) {
      finish_scores(at, ws_.scores + column);
      if (partial) hide_scores(at, ws_.scores + column);
      if (hides) mark_hidden(at, ws_.scores + column, ws_.hidden + column);
    });
    if (online_softmax(count, columns_.vectors(), tile_.softmax, ws_.scores, ws_.shrink))
      multiply_rows(tile_.out, ws_.shrink, columns_.count(), p_.value_dim);
    if (p_.dropout.threshold)
      for_each_run([&](const Place& at, int column) {
        dropout_factors(at, ws_.factors + column);
        multiply_scores(at, ws_.scores + column, ws_.factors + column);
      });
    const SourceRows value = source(p_.value, p_.value_dim, ws_.value, hides);
    if (hides && !all_finite(ws_.value, count, p_.value_dim)) return weigh_visible();
    with_elements(value.dtype, [&](auto elements) {
      weigh_rows<decltype(elements)>(value, count, ws_.scores, columns_, p_.value_dim, tile_.out);
    });
  }

  /** f(column, query head, query) */
  template <class F>
  void for_each_row(F f) const {
    const int first = kv_head_ * p_.group();
    for (int g = 0; g < p_.group(); ++g)
      for (int i = 0; i < s_.query_length; ++i) f(columns_.column(g, i), first + g, i);
  }

 private:
  /** The rows of at_.keys where they are, or as a copy in float32: if wanted, or if they do not end with a vector. */
  SourceRows source(const TensorRef& from, int dim, float* copy, bool wanted) const {
    const int begin = s_.key_begin + at_.keys.begin;
    if (!wanted && dim % kLanes == 0)
      return {from.row(at_.b, begin, kv_head_), static_cast<size_t>(from.seq * element_size(from.dtype)), from.dtype};
    load_rows(copy, from, at_.b, begin, at_.key_count(), kv_head_, dim);
    return {reinterpret_cast<const uint8_t*>(copy), kRowStride * sizeof(float), DType::Float32};
  }

  /** f(place, first column): a place for each head, or one for all when the heads lie side by side like queries. */
  template <class F>
  void for_each_run(F f) const {
    Place at = at_;
    if (columns_.side_by_side) {
      at.queries = {0, columns_.length};
      return f(at, 0);
    }
    for (int run = 0; run < columns_.runs; ++run, ++at.h) f(at, run * columns_.stride);
  }

  void weigh_visible() {
    for_each_run([&](const Place& at, int column) {
      product_visible<ScoresTimesKeyRows>(at.query_count(), divide_up(p_.value_dim, kLanes), at.key_count(),
                                          ws_.scores + column, ws_.hidden + column, ws_.value,
                                          tile_.out + column * kRowStride, kRowStride);
    });
  }

  const AttentionParams& p_;
  const Sequence& s_;
  int kv_head_;
  Place at_;
  DecodeColumns columns_;
  ForwardTile& tile_;
  ForwardWorkspace& ws_;
};

/** The state of a row after a split: [value dim], sum, reference. */
inline float* decode_state_at(const AttentionParams& p, int split, size_t lse_row) {
  return p.decode_states + (split * size_t(p.lse_rows) + lse_row) * decode_state(p.value_dim);
}

}  // namespace detail

FLASHATTN_CALLED void decode_item(const AttentionParams& p, int item, ForwardWorkspace& ws) {
  const int splits = decode_splits(p.key_length), heads = decode_heads(p), groups = divide_up(p.kv_heads, heads);
  const int split = item / groups % splits, b = item / groups / splits;
  const Range kv_heads{item % groups * heads, min((item % groups + 1) * heads, p.kv_heads)};
  const Sequence s = p.sequence(b);
  if (s.query_length == 0) return;
  const int begin = split * kSplitKeys, end = min(begin + kSplitKeys, s.key_length);
  const auto decoder = [&](int kv_head) {
    return detail::Decoder(p, s, b, kv_head, ws.tiles[kv_head - kv_heads.begin], ws);
  };
  for (int kv_head = kv_heads.begin; kv_head < kv_heads.end; ++kv_head) decoder(kv_head).start(split == 0);
  for (int j = begin; j < end; j += kKeyTile)
    for (int kv_head = kv_heads.begin; kv_head < kv_heads.end; ++kv_head)
      decoder(kv_head).meet({j, min(j + kKeyTile, end)});
  for (int kv_head = kv_heads.begin; kv_head < kv_heads.end; ++kv_head) {
    const ForwardTile& tile = ws.tiles[kv_head - kv_heads.begin];
    decoder(kv_head).for_each_row([&](int column, int h, int i) {
      float* state = detail::decode_state_at(p, split, p.lse_row(b, h, s.query_begin + i));
      for (int d = 0; d < p.value_dim; d += kLanes) store(state + d, load(tile.out + column * kRowStride + d));
      float* ends = state + round_up(p.value_dim, kLanes);
      ends[0] = tile.softmax.sum[column] + tile.softmax.rest[column];
      ends[1] = tile.softmax.reference[column];
    });
  }
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
