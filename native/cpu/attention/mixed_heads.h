// All heads of a tile of pairs, and how they are mixed: sums over heads of whole vectors of queries.
//
// Tiles of pairs are transposed as those of attention, [key][query], one behind the other for each head.
#pragma once
#include "attention/band.h"
#include "attention/tile.h"
#include "simd/transpose.h"
#include "structs/head_mixing.h"

namespace flashattn {

static_assert(kMixedQueries == kQueryTile && kMixedKeys <= kKeyTile);

// From one head to the next; the extra line spreads heads over the sets of the cache.
inline constexpr int kHeadTile = kMixedKeys * kQueryTile + 16;

/** A tile of pairs of one batch entry. */
struct MixedPlace {
  const HeadMixingParams& p;
  int b;
  Band band;
  Range queries, keys;

  MixedPlace(const HeadMixingParams& params, int batch) : p(params), b(batch), queries{}, keys{} {
    const int diagonal = p.keys - p.queries;
    band = {p.window_left == kUnbounded ? -kUnbounded : diagonal - p.window_left,
            p.window_right == kUnbounded ? kUnbounded : diagonal + p.window_right};
  }

  int query_count() const { return queries.end - queries.begin; }
  int key_count() const { return keys.end - keys.begin; }
  int vectors() const { return divide_up(query_count(), kLanes); }
  bool partial() const { return band.cover(queries, keys) == Cover::Partial; }
};

/** One of the two mixtures, with the matrices of a query tile. */
struct Mixture {
  const HeadMix& mix;
  int in, out;  // heads
  float* own;   // [out * in][kQueryTile], of the queries of the tile, where they have matrices of their own

  bool exists() const { return mix.matrix != nullptr; }
  int elements() const { return in * out; }
  /** Gradients of what each key is mixed by. */
  int key_elements() const { return mix.rank * (in + out) + (mix.diagonal ? out : 0); }
};

/** Which pairs the mask hides, [key][query]. */
FLASHATTN_CALLED void mark_hidden(const MixedPlace& at, uint32_t* hidden) {
  for (int j = at.keys.begin; j < at.keys.end; ++j, hidden += kQueryTile)
    for (int v = 0; v < at.vectors(); ++v) {
      const IntVec distance = j - iota(at.queries.begin + v * kLanes);
      store_bits(hidden + v * kLanes, (UintVec)((distance < at.band.low) | (distance > at.band.high)));
    }
}

/** Hidden pairs become `value`, whatever they were. */
FLASHATTN_CALLED void hide(const MixedPlace& at, const uint32_t* hidden, float* tiles, int heads, float value) {
  for (int h = 0; h < heads; ++h, tiles += kHeadTile)
    for (int row = 0; row < at.key_count() * kQueryTile; row += kQueryTile)
      for (int v = row; v < row + at.vectors() * kLanes; v += kLanes)
        store(tiles + v, select((IntVec)load_bits(hidden + v), splat(value), load(tiles + v)));
}

namespace detail {

// Outputs and keys, or outputs and inputs, whose sums stay in registers.
inline constexpr int kMixedRows = 4;
inline constexpr int kMixedColumns = block_rows(1) >= 16 ? 4 : 2;

/** kOwn: factors are vectors of queries; otherwise single numbers. */
template <bool kOwn, int kRows>
FLASHATTN_INLINE void mix_block(int inner, const float* a, size_t a_row, size_t a_inner, const float* bias,
                                const float* in /* [inner][kHeadTile] */, float* out /* [kRows][kHeadTile] */) {
  Vec acc[kRows][kMixedColumns];
#pragma clang loop unroll(full)
  for (int r = 0; r < kRows; ++r) {
#pragma clang loop unroll(full)
    for (int c = 0; c < kMixedColumns; ++c) acc[r][c] = bias ? load_splat(bias + r) : Vec{};
  }
#pragma clang loop unroll(disable)
  for (int k = 0; k < inner; ++k) {
    Vec x[kMixedColumns];
#pragma clang loop unroll(full)
    for (int c = 0; c < kMixedColumns; ++c) x[c] = load(in + c * kQueryTile);
#pragma clang loop unroll(full)
    for (int r = 0; r < kRows; ++r) {
      const Vec factor = kOwn ? load(a + r * a_row) : load_splat(a + r * a_row);
#pragma clang loop unroll(full)
      for (int c = 0; c < kMixedColumns; ++c) acc[r][c] = multiply_add(factor, x[c], acc[r][c]);
    }
    a += a_inner;
    in += kHeadTile;
  }
#pragma clang loop unroll(full)
  for (int r = 0; r < kRows; ++r) {
#pragma clang loop unroll(full)
    for (int c = 0; c < kMixedColumns; ++c) store(out + r * kHeadTile + c * kQueryTile, acc[r][c]);
  }
}

/** out[r] = bias[r] + sum over k of A[r, k] in[k], with A[r, k] at a + r * a_row + k * a_inner. */
template <bool kOwn>
FLASHATTN_CALLED void mix_tiles(int keys, int vectors, int rows, int inner, const float* a, size_t a_row,
                                size_t a_inner, const float* bias, const float* in, float* out) {
  for (int v = 0; v < vectors * kLanes; v += kLanes) {
    const float* const factors = kOwn ? a + v : a;
    // Tiles are whole blocks of keys: what lies behind the last key is mixed too, and read by nobody.
    for (int key = 0; key < keys; key += kMixedColumns) {
      const size_t at = size_t(key) * kQueryTile + v;
      int r = 0;
      for (; r + kMixedRows <= rows; r += kMixedRows)
        mix_block<kOwn, kMixedRows>(inner, factors + r * a_row, a_row, a_inner, bias ? bias + r : nullptr, in + at,
                                    out + size_t(r) * kHeadTile + at);
      for (; r < rows; ++r)
        mix_block<kOwn, 1>(inner, factors + r * a_row, a_row, a_inner, bias ? bias + r : nullptr, in + at,
                           out + size_t(r) * kHeadTile + at);
    }
  }
}

/** out += up_j (down_j in) of kRanks ranks of one key and one vector of queries. */
template <int kRanks>
FLASHATTN_INLINE void add_ranks(int ins, int outs, const float* down /* [kRanks][ins] */,
                                const float* up /* [kRanks][outs] */, const float* in, float* out) {
  Vec part[kRanks] = {};
  for (int h = 0; h < ins; ++h) {
    const Vec x = load(in + size_t(h) * kHeadTile);
#pragma clang loop unroll(full)
    for (int r = 0; r < kRanks; ++r) part[r] = multiply_add(load_splat(down + r * ins + h), x, part[r]);
  }
  for (int g = 0; g < outs; ++g) {
    float* const to = out + size_t(g) * kHeadTile;
    Vec sum = load(to);
#pragma clang loop unroll(full)
    for (int r = 0; r < kRanks; ++r) sum = multiply_add(load_splat(up + r * outs + g), part[r], sum);
    store(to, sum);
  }
}

}  // namespace detail

/** What keys add to a mixture. `back`: the transposed, from gradients of outputs to those of inputs. */
FLASHATTN_CALLED void add_key_mixtures(const MixedPlace& at, const Mixture& m, bool back, const float* in, float* out) {
  const HeadMix& mix = m.mix;
  const int ins = back ? m.out : m.in, outs = back ? m.in : m.out, rank = mix.rank;
  for (int j = 0; j < at.key_count(); ++j) {
    const size_t key = size_t(at.b) * at.p.keys + at.keys.begin + j;
    const float* const down = (back ? mix.up : mix.down) + key * rank * ins;
    const float* const up = (back ? mix.down : mix.up) + key * rank * outs;
    for (int v = 0; v < at.vectors() * kLanes; v += kLanes) {
      const size_t tile = size_t(j) * kQueryTile + v;
      int r = 0;
      for (; r + 2 <= rank; r += 2)
        detail::add_ranks<2>(ins, outs, down + r * ins, up + r * outs, in + tile, out + tile);
      if (r < rank) detail::add_ranks<1>(ins, outs, down + r * ins, up + r * outs, in + tile, out + tile);
      if (!mix.diagonal) continue;
      const float* const diagonal = mix.diagonal + key * outs;
      for (int g = 0; g < outs; ++g) {
        float* const to = out + size_t(g) * kHeadTile + tile;
        store(to, multiply_add(load_splat(diagonal + g), load(in + size_t(g) * kHeadTile + tile), load(to)));
      }
    }
  }
}

/** out = the mixture of in, tiles of all heads. */
FLASHATTN_CALLED void mix_heads(const MixedPlace& at, const Mixture& m, const float* in, float* out) {
  if (m.mix.own)
    detail::mix_tiles<true>(at.key_count(), at.vectors(), m.out, m.in, m.own, size_t(m.in) * kQueryTile, kQueryTile,
                            m.mix.bias, in, out);
  else
    detail::mix_tiles<false>(at.key_count(), at.vectors(), m.out, m.in, m.mix.matrix, m.in, 1, m.mix.bias, in, out);
  if (m.mix.rank || m.mix.diagonal) add_key_mixtures(at, m, false, in, out);
}

/** d_in = what gradients of a mixture are of what was mixed. */
FLASHATTN_CALLED void mix_heads_back(const MixedPlace& at, const Mixture& m, const float* d_out, float* d_in) {
  if (m.mix.own)
    detail::mix_tiles<true>(at.key_count(), at.vectors(), m.in, m.out, m.own, kQueryTile, size_t(m.in) * kQueryTile,
                            nullptr, d_out, d_in);
  else
    detail::mix_tiles<false>(at.key_count(), at.vectors(), m.in, m.out, m.mix.matrix, 1, m.in, nullptr, d_out, d_in);
  if (m.mix.rank || m.mix.diagonal) add_key_mixtures(at, m, true, d_out, d_in);
}

namespace detail {

template <int kRows, int kColumns>
FLASHATTN_INLINE void outer_block(int keys, int columns, const float* d_out, const float* in, float* sums) {
  Vec acc[kRows][kColumns] = {};
#pragma clang loop unroll(disable)
  for (int j = 0; j < keys; ++j) {
    Vec x[kColumns];
#pragma clang loop unroll(full)
    for (int c = 0; c < kColumns; ++c) x[c] = load(in + c * kHeadTile);
#pragma clang loop unroll(full)
    for (int r = 0; r < kRows; ++r) {
      const Vec d = load(d_out + r * kHeadTile);
#pragma clang loop unroll(full)
      for (int c = 0; c < kColumns; ++c) acc[r][c] = multiply_add(d, x[c], acc[r][c]);
    }
    d_out += kQueryTile;
    in += kQueryTile;
  }
#pragma clang loop unroll(full)
  for (int r = 0; r < kRows; ++r) {
#pragma clang loop unroll(full)
    for (int c = 0; c < kColumns; ++c) {
      float* const to = sums + (size_t(r) * columns + c) * kQueryTile;
      store(to, load(to) + acc[r][c]);
    }
  }
}

template <int kRows>
FLASHATTN_INLINE void outer_rows(int keys, int columns, const float* d_out, const float* in, float* sums) {
  int c = 0;
  for (; c + kMixedColumns <= columns; c += kMixedColumns)
    outer_block<kRows, kMixedColumns>(keys, columns, d_out, in + size_t(c) * kHeadTile, sums + c * kQueryTile);
  for (; c < columns; ++c)
    outer_block<kRows, 1>(keys, columns, d_out, in + size_t(c) * kHeadTile, sums + c * kQueryTile);
}

}  // namespace detail

/** The gradient of the matrix of each query: sums[g, h] += sum over keys of d_out[g] in[h]. */
FLASHATTN_CALLED void add_matrix_gradients(const MixedPlace& at, const Mixture& m, const float* d_out, const float* in,
                                           float* sums /* [out * in][kQueryTile] */) {
  for (int v = 0; v < at.vectors() * kLanes; v += kLanes) {
    int r = 0;
    for (; r + detail::kMixedRows <= m.out; r += detail::kMixedRows)
      detail::outer_rows<detail::kMixedRows>(at.key_count(), m.in, d_out + size_t(r) * kHeadTile + v, in + v,
                                             sums + size_t(r) * m.in * kQueryTile + v);
    for (; r < m.out; ++r)
      detail::outer_rows<1>(at.key_count(), m.in, d_out + size_t(r) * kHeadTile + v, in + v,
                            sums + size_t(r) * m.in * kQueryTile + v);
  }
}

namespace detail {

/** The gradients of what one key is mixed by, of kVectors vectors of queries. */
template <int kVectors>
FLASHATTN_INLINE void add_key_gradient(const Mixture& m, size_t key, const float* d_out, const float* in, float* sums) {
  const HeadMix& mix = m.mix;
  // A sum over heads of numbers of the key times those of its pairs.
  const auto read = [](Vec(&sum)[kVectors], const float* factors, int heads, const float* tiles) {
    for (int h = 0; h < heads; ++h)
#pragma clang loop unroll(full)
      for (int v = 0; v < kVectors; ++v)
        sum[v] = multiply_add(load_splat(factors + h), load(tiles + size_t(h) * kHeadTile + v * kLanes), sum[v]);
  };
  const auto write = [&](const Vec(&sum)[kVectors], int heads, const float* tiles) {
    for (int h = 0; h < heads; ++h, sums += kLanes) {
      Vec total = load(sums);
#pragma clang loop unroll(full)
      for (int v = 0; v < kVectors; ++v)
        total = multiply_add(sum[v], load(tiles + size_t(h) * kHeadTile + v * kLanes), total);
      store(sums, total);
    }
  };
  for (int r = 0; r < mix.rank; ++r) {
    Vec sum[kVectors] = {};
    read(sum, mix.up + (key * mix.rank + r) * m.out, m.out, d_out);
    write(sum, m.in, in);
  }
  for (int r = 0; r < mix.rank; ++r) {
    Vec sum[kVectors] = {};
    read(sum, mix.down + (key * mix.rank + r) * m.in, m.in, in);
    write(sum, m.out, d_out);
  }
  if (!mix.diagonal) return;
  for (int g = 0; g < m.out; ++g, sums += kLanes) {
    Vec total = load(sums);
#pragma clang loop unroll(full)
    for (int v = 0; v < kVectors; ++v)
      total = multiply_add(load(d_out + size_t(g) * kHeadTile + v * kLanes),
                           load(in + size_t(g) * kHeadTile + v * kLanes), total);
    store(sums, total);
  }
}

}  // namespace detail

/** The gradients of what the keys of a tile are mixed by, in order: down, up, diagonal. */
FLASHATTN_CALLED void add_key_gradients(const MixedPlace& at, const Mixture& m, const float* d_out, const float* in,
                                        float* sums /* [key][key elements][kLanes] */) {
  for (int j = 0; j < at.key_count(); ++j, sums += size_t(m.key_elements()) * kLanes) {
    const size_t key = size_t(at.b) * at.p.keys + at.keys.begin + j, row = size_t(j) * kQueryTile;
    int v = 0;
    for (; v + 2 <= at.vectors(); v += 2)
      detail::add_key_gradient<2>(m, key, d_out + row + v * kLanes, in + row + v * kLanes, sums);
    if (v < at.vectors()) detail::add_key_gradient<1>(m, key, d_out + row + v * kLanes, in + row + v * kLanes, sums);
  }
}

/** columns[e][q] = rows[q][e] of `count` rows; queries past them are zero up to a whole vector. */
FLASHATTN_CALLED void load_matrices(float* columns /* [elements][kQueryTile] */, const float* rows, int count,
                                    int elements) {
  for (int e = 0; e < elements; e += kLanes) {
    const int width = min(kLanes, elements - e);
    for (int q = 0; q < count; q += kLanes) {
      Vec m[kLanes];
      for (int r = 0; r < kLanes; ++r) {
        m[r] = Vec{};
        if (q + r >= count) continue;
        const float* const row = rows + size_t(q + r) * elements + e;
        if (width == kLanes)
          m[r] = load(row);
        else
          for (int lane = 0; lane < width; ++lane) m[r][lane] = row[lane];
      }
      detail::transpose_lanes(m);
      for (int r = 0; r < width; ++r) store(columns + size_t(e + r) * kQueryTile + q, m[r]);
    }
  }
}

/** rows[q][e] = columns[e][q] */
FLASHATTN_CALLED void store_matrices(float* rows, const float* columns /* [elements][kQueryTile] */, int count,
                                     int elements) {
  for (int e = 0; e < elements; e += kLanes) {
    const int width = min(kLanes, elements - e);
    for (int q = 0; q < count; q += kLanes) {
      Vec m[kLanes];
      for (int r = 0; r < kLanes; ++r) m[r] = r < width ? load(columns + size_t(e + r) * kQueryTile + q) : Vec{};
      detail::transpose_lanes(m);
      for (int r = 0; r < kLanes && q + r < count; ++r) {
        float* const row = rows + size_t(q + r) * elements + e;
        if (width == kLanes)
          store(row, m[r]);
        else
          for (int lane = 0; lane < width; ++lane) row[lane] = m[r][lane];
      }
    }
  }
}

}  // namespace flashattn
