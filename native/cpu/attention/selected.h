// Attention in which every query has a list of key blocks of its own: the selected branch of Yuan et al., "Native Sparse
// Attention" (2025).
//
// The query heads that share a kv head share the list of their position, so a position with these heads is what meets a
// block: they are neighbouring lanes of a score tile, and a tile holds as many positions as fit. An item is a range of
// neighbouring positions, whose queries and sums stay in the cache while it walks over all blocks that any of them has
// selected: each block is loaded once and meets those positions, a tile of them at a time.
#pragma once
#include "attention/forward.h"
#include "attention/sums.h"
#include "structs/selected_attention.h"

namespace flashattn {

inline constexpr int kRangePositions = 64;  // at most: they are the bits of a word
inline constexpr int kRangeRows = kRangePositions * kQueryTile;
inline constexpr int kRangeFloats = 1 << 16;   // of the queries of a range, and of their sums
inline constexpr int kListedBlocks = 1 << 11;  // that are looked for at a time

/** A set of positions of a range. */
using Positions = uint64_t;

/** Sums over the keys that a range meets, rows of whole vectors. Where a row may meet many, older ones have a total. */
struct alignas(kCacheLine) RangeSums {
  float block[kRangeFloats], total[kRangeFloats];
  int floats, keys;  // of the range; met since the block was begun
  bool many, carried;

  void begin(const SelectedAttentionParams& p, int count) {
    floats = count;
    keys = 0;
    many = int64_t{p.slots} * p.block_size > kBlockTiles * kKeyTile;
    carried = false;
    fill(block, 0.0f, floats);
  }
  /** Before sums over so many more keys are added. */
  void meet(int count) {
    if (!many) return;
    if (keys += count; keys <= kBlockTiles * kKeyTile) return;
    if (!carried) fill(total, 0.0f, floats);
    carry(total, block, floats);
    carried = true;
    keys = count;
  }
  void finish() {
    if (!carried) return;
    for (int i = 0; i < floats; i += kLanes) store(block + i, load(block + i) + load(total + i));
  }
};

struct alignas(kCacheLine) SelectedWorkspace {
  float query[kRangeFloats];  // [position][head dim][lane], times query_factor
  RangeSums out;              // [position][lane][value dim]: sums of probability * value
  float reference[kRangeRows], sum[kRangeRows], rest[kRangeRows];  // RunningSoftmax
  bool overflowed[kRangeRows];
  KeyRows key, value;
  QueryColumns columns;
  QueryRows rows;
  ScoreTile scores;
  uint32_t hidden[kKeyTile * kQueryTile];
  RunningSoftmax softmax;
  float shrink[kQueryTile];
  Positions selecting[kListedBlocks];
  Finite value_finite;
  TileAhead ahead;
};

/** How the query heads of a kv head and the positions of the sequence are cut. */
struct SelectedGrid {
  int head_parts, lanes;  // query heads that a position has in a tile
  int positions;          // of a range

  explicit SelectedGrid(const SelectedAttentionParams& p)
      : head_parts(divide_up(p.group(), kQueryTile)),
        lanes(divide_up(p.group(), head_parts)),
        positions(min(kRangePositions, kRangeFloats / (lanes * round_up(max(p.head_dim, p.value_dim), kLanes)))) {}
};

static_assert(kRangeFloats >= kQueryTile * kMaxDim);

inline int selected_items(const SelectedAttentionParams& p) {
  const SelectedGrid grid(p);
  return p.batch * p.kv_heads * grid.head_parts * divide_up(p.seq, grid.positions);
}

namespace detail {

/** Neighbouring positions, with some query heads of a kv head. */
struct SelectedRange {
  const SelectedAttentionParams& p;
  int b, kv_head;
  Range heads, positions;

  int lanes() const { return heads.end - heads.begin; }
  int position_count() const { return positions.end - positions.begin; }
  int own_block(int position) const { return position / p.block_size; }

  static Range heads_of(const SelectedAttentionParams& p, const SelectedGrid& grid, int kv_head, int part) {
    const int first = kv_head * p.group();
    return {first + part * grid.lanes, first + min((part + 1) * grid.lanes, p.group())};
  }

  /** Which of the positions have selected each of `count` blocks from `first` on. */
  void find_selecting(int first, int count, Positions* selecting /* [count] */) const {
    for (int block = 0; block < count; ++block) selecting[block] = 0;
    for (int i = positions.begin; i < positions.end; ++i) {
      const int32_t* const list = p.blocks + ((size_t(b) * p.seq + i) * p.kv_heads + kv_head) * p.slots;
      const Positions bit = Positions{1} << (i - positions.begin);
      const uint32_t seen = static_cast<uint32_t>(max(0, min(own_block(i) + 1 - first, count)));
      for (int slot = 0; slot < p.slots; ++slot)
        if (const uint32_t block = static_cast<uint32_t>(list[slot]) - static_cast<uint32_t>(first); block < seen)
          selecting[block] |= bit;
    }
  }
};

/** f(keys, positions that see some of them), for tiles of keys in their order; a tile lies within a block. */
template <class F>
inline void for_selected_keys(const SelectedRange& range, Positions* selecting /* [kListedBlocks] */, F f) {
  const int blocks = range.own_block(range.positions.end - 1) + 1, size = range.p.block_size;
  for (int first = 0; first < blocks; first += kListedBlocks) {
    const int count = min(kListedBlocks, blocks - first);
    range.find_selecting(first, count, selecting);
    for (int block = 0; block < count; ++block) {
      Positions seeing = selecting[block];
      if (!seeing) continue;
      const int begin = (first + block) * size, end = min(begin + size, range.positions.end);
      for (int j = begin; j < end; j += kKeyTile) {
        if (const int before = j - range.positions.begin; before > 0) seeing = seeing >> before << before;
        if (seeing) f(Range{j, min(j + kKeyTile, end)}, seeing);
      }
    }
  }
}

/** Positions of a range that meet the same keys, side by side in a score tile. */
struct SelectedTile {
  int count = 0;
  int at[kQueryTile];  // positions, from that of the range on

  int lanes(const SelectedRange& range) const { return count * range.lanes(); }
};

/** f(tile) for as many positions at a time as fit. */
template <class F>
inline void for_tiles(const SelectedRange& range, Positions seeing, F f) {
  const int most = kQueryTile / range.lanes();
  while (seeing) {
    SelectedTile tile;
    for (; seeing && tile.count < most; seeing &= seeing - 1) tile.at[tile.count++] = __builtin_ctzll(seeing);
    f(tile);
  }
}

/** to[i] = from[i] for the lanes of a position. */
FLASHATTN_INLINE void copy_lanes(float* to, const float* from, int lanes) {
  if (lanes % kLanes == 0) {
    for (int l = 0; l < lanes; l += kLanes) store(to + l, load(from + l));
  } else if (lanes % 4 == 0) {
    for (int l = 0; l < lanes; l += 4) __builtin_memcpy(to + l, from + l, 4 * sizeof(float));
  } else {
    for (int l = 0; l < lanes; ++l) to[l] = from[l];
  }
}

/** Columns of a tile, zero up to a whole vector. */
FLASHATTN_CALLED void compose_columns(float* to /* [dim][kQueryTile] */, const float* from /* [position][dim][lane] */,
                                      const SelectedTile& tile, int lanes, int dim) {
  const int used = tile.count * lanes, padded = round_up(used, kLanes);
  if (used < padded)
    for (int d = 0; d < dim; ++d) store(to + d * kQueryTile + padded - kLanes, Vec{});
  for (int n = 0; n < tile.count; ++n) {
    const float* columns = from + size_t(tile.at[n]) * dim * lanes;
    for (int d = 0; d < dim; ++d) copy_lanes(to + d * kQueryTile + n * lanes, columns + d * lanes, lanes);
  }
}

/** Something that each row of a range has, for the rows of a tile. */
inline void compose_rows(float* to /* [kQueryTile] */, const float* from /* [position][lane] */,
                         const SelectedTile& tile, int lanes, float padding) {
  const int used = tile.count * lanes;
  for (int n = 0; n < tile.count; ++n)
    __builtin_memcpy(to + n * lanes, from + tile.at[n] * lanes, lanes * sizeof(float));
  for (int lane = used; lane < round_up(used, kLanes); ++lane) to[lane] = padding;
}
inline void decompose_rows(float* to /* [position][lane] */, const float* from /* [kQueryTile] */,
                           const SelectedTile& tile, int lanes) {
  for (int n = 0; n < tile.count; ++n)
    __builtin_memcpy(to + tile.at[n] * lanes, from + n * lanes, lanes * sizeof(float));
}

/** The rows of a position, one for each lane. */
inline void load_heads(float* rows /* [lane][kRowStride] */, const SelectedRange& range, TensorRef from, int i,
                       int dim) {
  const int64_t seq = from.seq;
  from.seq = from.head;
  from.head = seq;
  load_rows(rows, from, range.b, range.heads.begin, range.lanes(), i, dim);
}

/** Rows are stored in many places: once is enough for the code that each dtype takes. */
FLASHATTN_CALLED void store_head(const TensorRef& to, int b, int i, int h, const float* row, int dim) {
  store_row(to.row(b, i, h), to.dtype, row, dim);
}

/** The rows of all positions of a range, as columns: [position][dim][lane]. */
FLASHATTN_CALLED void load_columns(float* to, const SelectedRange& range, const TensorRef& from, int dim, float factor,
                                   float* rows /* [kQueryTile][kRowStride] */, float* columns /* [dim][kQueryTile] */) {
  const int lanes = range.lanes();
  for (int i = range.positions.begin; i < range.positions.end; ++i, to += dim * lanes) {
    load_heads(rows, range, from, i, dim);
    transpose_rows(columns, rows, lanes, dim, factor);
    for (int d = 0; d < dim; ++d) __builtin_memcpy(to + d * lanes, columns + d * kQueryTile, lanes * sizeof(float));
  }
}

/** Scores of keys that lie behind a position become -Infinity. Returns whether there are any. */
FLASHATTN_CALLED bool hide_behind(const SelectedRange& range, const SelectedTile& tile, Range keys,
                                  float* scores /* [key][query] */) {
  const int lanes = range.lanes();
  bool hides = false;
  for (int n = 0; n < tile.count; ++n) {
    for (int j = max(range.positions.begin + tile.at[n] + 1, keys.begin); j < keys.end; ++j) {
      hides = true;
      for (int l = 0; l < lanes; ++l) scores[(j - keys.begin) * kQueryTile + n * lanes + l] = -kInfinity;
    }
  }
  return hides;
}

/** Logits of a tile. Returns whether some are hidden. */
FLASHATTN_CALLED bool selected_scores(const SelectedRange& range, const SelectedTile& tile, Range keys,
                                      const float* key /* [key][kRowStride] */, const float* columns, float* scores,
                                      TileAhead& ahead) {
  const int count = keys.end - keys.begin, vectors = divide_up(tile.lanes(range), kLanes);
  product<KeyRowsTimesQueryColumns, Accumulate::No>(count, vectors, range.p.head_dim, key, columns, scores, kQueryTile,
                                                    nullptr, ahead);
  if (const float factor = product_factor(range.p.scale); factor != 1) scale_scores(count, vectors, scores, factor);
  return hide_behind(range, tile, keys, scores);
}

/** Keys that the last of these positions sees. */
inline Range keys_of(const SelectedRange& range, const SelectedTile& tile, Range keys) {
  return {keys.begin, min(keys.end, range.positions.begin + tile.at[tile.count - 1] + 1)};
}

inline void shrink_rows(float* rows /* [lanes][width] */, const float* shrink /* [lanes] */, int lanes, int width) {
  for (int l = 0; l < lanes; ++l, rows += width)
    for (int d = 0; d < width; d += kLanes) store(rows + d, load(rows + d) * load_splat(shrink + l));
}

/** Some positions of a range meet the keys that were loaded. */
FLASHATTN_CALLED void meet_selected(const SelectedRange& range, const SelectedTile& tile, Range loaded,
                                    SelectedWorkspace& ws) {
  const int lanes = range.lanes(), rows = tile.lanes(range), vectors = divide_up(rows, kLanes);
  const int dim = range.p.value_dim, width = round_up(dim, kLanes);
  const Range keys = keys_of(range, tile, loaded);
  const int count = keys.end - keys.begin;
  compose_columns(ws.columns, ws.query, tile, lanes, range.p.head_dim);
  compose_rows(ws.softmax.reference, ws.reference, tile, lanes, -kInfinity);
  compose_rows(ws.softmax.sum, ws.sum, tile, lanes, 0);
  compose_rows(ws.softmax.rest, ws.rest, tile, lanes, 0);
  const bool hides = selected_scores(range, tile, keys, ws.key, ws.columns, ws.scores, ws.ahead);
  const bool guarded = hides && !ws.value_finite.check(ws.value, loaded.end - loaded.begin, dim);
  if (guarded) mark_hidden(count, vectors, ws.scores, ws.hidden);
  const bool raised = online_softmax(count, vectors, ws.softmax, ws.scores, ws.shrink);
  for (int n = 0; n < tile.count; ++n) {
    const size_t row = size_t(tile.at[n]) * lanes * width;
    const int column = n * lanes;
    const float* shrink = ws.shrink + column;
    float* out = ws.out.block + row;
    product<ScoresTimesKeyRows, Accumulate::Scaled>(lanes, width / kLanes, guarded ? 0 : count, ws.scores + column,
                                                    ws.value, out, width, shrink, ws.ahead);
    if (guarded)
      product_visible<ScoresTimesKeyRows>(lanes, width / kLanes, count, ws.scores + column, ws.hidden + column,
                                          ws.value, out, width);
    if (raised && ws.out.carried) shrink_rows(ws.out.total + row, shrink, lanes, width);
  }
  decompose_rows(ws.reference, ws.softmax.reference, tile, lanes);
  decompose_rows(ws.sum, ws.softmax.sum, tile, lanes);
  decompose_rows(ws.rest, ws.softmax.rest, tile, lanes);
}

/** All that the positions see, with values times `shrunk`. */
FLASHATTN_CALLED void attend_selected(const SelectedRange& range, float shrunk, SelectedWorkspace& ws) {
  const SelectedAttentionParams& p = range.p;
  const int rows = range.position_count() * range.lanes(), padded = round_up(rows, kLanes);
  load_columns(ws.query, range, p.query, p.head_dim, query_factor(p.scale), ws.rows, ws.columns);
  fill(ws.reference, -kInfinity, padded);
  fill(ws.sum, 0.0f, padded);
  fill(ws.rest, 0.0f, padded);
  ws.ahead = {};
  ws.out.begin(p, rows * round_up(p.value_dim, kLanes));
  for_selected_keys(range, ws.selecting, [&](Range keys, Positions seeing) {
    const int count = keys.end - keys.begin;
    load_rows(ws.key, p.key, range.b, keys.begin, count, range.kv_head, p.head_dim);
    load_rows(ws.value, p.value, range.b, keys.begin, count, range.kv_head, p.value_dim);
    if (shrunk != 1) scale_rows(ws.value, count, p.value_dim, shrunk);
    ws.value_finite = {};
    ws.out.meet(count);
    for_tiles(range, seeing, [&](const SelectedTile& tile) { meet_selected(range, tile, keys, ws); });
  });
  ws.out.finish();
}

/** Writes out, lse and what backward needs. Returns whether sums have overflowed that fit once values are shrunk. */
FLASHATTN_CALLED bool finish_selected(const SelectedRange& range, SelectedWorkspace& ws) {
  const SelectedAttentionParams& p = range.p;
  const int width = round_up(p.value_dim, kLanes);
  bool any = false;
  for (int i = range.positions.begin, r = 0; i < range.positions.end; ++i) {
    for (int h = range.heads.begin; h < range.heads.end; ++h, ++r) {
      float* out = ws.out.block + size_t(r) * width;
      const float sum = ws.sum[r] + ws.rest[r];
      ws.overflowed[r] = !finish_row(out, sum, 1, p.value_dim) && sum > 0;
      any |= ws.overflowed[r];
      store_head(p.out, range.b, i, h, out, p.value_dim);
      const size_t row = p.lse_row(range.b, h, i);
      const double log_sum = sum > 0 ? ln(sum) : 0;
      // Without keys every probability is 0; NaN stays NaN.
      const float reference = sum > 0 ? ws.reference[r] : sum == 0 ? kInfinity : sum;
      p.lse[row] = sum == 0 ? -kInfinity : static_cast<float>(reference + log_sum);
      if (!p.row_terms) continue;
      p.row_terms[row] = reference;
      p.row_terms[p.lse_rows() + row] = static_cast<float>(log_sum);
    }
  }
  return any;
}

/** Writes again the rows that have overflowed, from sums over shrunken values. */
FLASHATTN_CALLED void restore_selected(const SelectedRange& range, SelectedWorkspace& ws) {
  const SelectedAttentionParams& p = range.p;
  for (int i = range.positions.begin, r = 0; i < range.positions.end; ++i) {
    for (int h = range.heads.begin; h < range.heads.end; ++h, ++r) {
      if (!ws.overflowed[r]) continue;
      float* out = ws.out.block + size_t(r) * round_up(p.value_dim, kLanes);
      if (finish_row(out, ws.sum[r] + ws.rest[r], kRestored, p.value_dim)) clamp_row(out, p.value_dim);
      store_head(p.out, range.b, i, h, out, p.value_dim);
    }
  }
}

}  // namespace detail

FLASHATTN_CALLED void selected_item(const SelectedAttentionParams& p, int item, SelectedWorkspace& ws) {
  const SelectedGrid grid(p);
  const int ranges = divide_up(p.seq, grid.positions), part = item / ranges % grid.head_parts;
  const int kv_head = item / ranges / grid.head_parts % p.kv_heads, b = item / ranges / grid.head_parts / p.kv_heads;
  // The last positions have filled most of their slots: they go first.
  const int begin = (ranges - 1 - item % ranges) * grid.positions;
  const detail::SelectedRange range{p,
                                    b,
                                    kv_head,
                                    detail::SelectedRange::heads_of(p, grid, kv_head, part),
                                    {begin, min(begin + grid.positions, p.seq)}};
  detail::attend_selected(range, 1, ws);
  if (!detail::finish_selected(range, ws)) return;
  detail::attend_selected(range, detail::kShrunk, ws);
  detail::restore_selected(range, ws);
}

}  // namespace flashattn
