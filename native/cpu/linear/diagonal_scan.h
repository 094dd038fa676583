// A linear system with a diagonal matrix of complex numbers, a block of positions at a time, once for each
// kDiagonalChunk elements of the state.
//
// With h = x + i y, a = r + i s, w = p + i q and (X, Y) the gradient of (x, y) at a position:
//   out = the sum of p x - q y, so X += d p, Y -= d q, dp += d x, dq -= d y
//   x_t = r x - s y + u and y_t = r y + s x of those before, so du = the sum of X, dr += X x + Y y, ds += Y x - X y,
//   and to the position before go r X + s Y and r Y - s X
#pragma once
#include "linear/scan.h"
#include "structs/diagonal_scan.h"

namespace flashattn {

/** Complex elements of the state that fit the registers with their factors. */
inline constexpr int kDiagonalChunk = 4;

/** [state, 2, kScanChannels] */
using ComplexStates = float[kMostScanState * kScanChannels];

struct alignas(kCacheLine) DiagonalScanWorkspace {
  ScanTile u, out, d_out, d_u;
  float h[kScanBlock * 2 * kDiagonalChunk * kLanes];  // [positions, kDiagonalChunk, 2, kLanes], those before each
  float h_first[2 * kDiagonalChunk * kLanes];
  ComplexStates a, w, state;  // backward: `state` is its gradient
  ComplexStates d_a, d_a_rest, d_w, d_w_rest;
};

namespace detail {

struct ComplexVec {
  Vec re, im;

  void read(const float* from, int stride = kScanChannels) { re = load(from), im = load(from + stride); }
  void write(float* to, int stride = kScanChannels) const { store(to, re), store(to + stride, im); }
};

/** a h + u */
FLASHATTN_INLINE ComplexVec advance(ComplexVec a, ComplexVec h, Vec u) {
  return {multiply_add(a.re, h.re, multiply_add(-a.im, h.im, u)), multiply_add(a.re, h.im, a.im * h.re)};
}

FLASHATTN_INLINE float* complex_place(float* states, int n, int v) { return states + n * 2 * kScanChannels + v; }

/** Elements [n, n + count) of the state, channels [v, v + kLanes); out += what they add. */
template <class Count>
FLASHATTN_CALLED void walk_diagonal(DiagonalScanWorkspace& ws, int positions, int n, Count count, int v) {
  ComplexVec a[kDiagonalChunk], w[kDiagonalChunk], h[kDiagonalChunk];
  for (int j = 0; j < count; ++j) {
    a[j].read(complex_place(ws.a, n + j, v));
    w[j].read(complex_place(ws.w, n + j, v));
    h[j].read(complex_place(ws.state, n + j, v));
  }
  for (int i = v; i < positions * kScanChannels; i += kScanChannels) {
    const Vec u = load(ws.u + i);
    Vec sum = load(ws.out + i);
    each(count, [&](int j) {
      h[j] = advance(a[j], h[j], u);
      sum = multiply_add(w[j].re, h[j].re, multiply_add(-w[j].im, h[j].im, sum));
    });
    store(ws.out + i, sum);
  }
  for (int j = 0; j < count; ++j) h[j].write(complex_place(ws.state, n + j, v));
}

/** The states from ws.h_first on. */
template <class Count>
FLASHATTN_CALLED void walk_diagonal_again(DiagonalScanWorkspace& ws, int positions, int n, Count count, int v) {
  ComplexVec a[kDiagonalChunk], h[kDiagonalChunk];
  for (int j = 0; j < count; ++j) {
    a[j].read(complex_place(ws.a, n + j, v));
    h[j].read(ws.h_first + 2 * j * kLanes, kLanes);
  }
  float* to = ws.h;
  for (int i = v; i < positions * kScanChannels; i += kScanChannels, to += 2 * kDiagonalChunk * kLanes) {
    const Vec u = load(ws.u + i);
    each(count, [&](int j) {
      h[j].write(to + 2 * j * kLanes, kLanes);
      h[j] = advance(a[j], h[j], u);
    });
  }
}

template <class Count>
FLASHATTN_CALLED void walk_diagonal_back(DiagonalScanWorkspace& ws, int positions, int n, Count count, int v) {
  ComplexVec a[kDiagonalChunk], w[kDiagonalChunk], g[kDiagonalChunk], d_a[kDiagonalChunk] = {},
                                                                      d_w[kDiagonalChunk] = {};
  for (int j = 0; j < count; ++j) {
    a[j].read(complex_place(ws.a, n + j, v));
    w[j].read(complex_place(ws.w, n + j, v));
    g[j].read(complex_place(ws.state, n + j, v));
  }
  for (int t = positions - 1; t >= 0; --t) {
    const int i = t * kScanChannels + v;
    const Vec u = load(ws.u + i), d = load(ws.d_out + i);
    Vec d_u = load(ws.d_u + i);
    each(count, [&](int j) {
      ComplexVec before;
      before.read(ws.h + (t * kDiagonalChunk + j) * 2 * kLanes, kLanes);
      const ComplexVec h = advance(a[j], before, u);
      const Vec x = multiply_add(d, w[j].re, g[j].re), y = multiply_add(-d, w[j].im, g[j].im);
      d_w[j] = {multiply_add(d, h.re, d_w[j].re), multiply_add(-d, h.im, d_w[j].im)};
      d_a[j] = {multiply_add(x, before.re, multiply_add(y, before.im, d_a[j].re)),
                multiply_add(y, before.re, multiply_add(-x, before.im, d_a[j].im))};
      d_u += x;
      g[j] = {multiply_add(a[j].re, x, a[j].im * y), multiply_add(a[j].re, y, -a[j].im * x)};
    });
    store(ws.d_u + i, d_u);
  }
  const auto add = [](float* total, float* rest, Vec block) {
    Vec sum = load(total);
    store(rest, load(rest) + add_exactly(sum, block));
    store(total, sum);
  };
  for (int j = 0; j < count; ++j) {
    g[j].write(complex_place(ws.state, n + j, v));
    for (int part = 0; part < 2; ++part) {
      const int at = ((n + j) * 2 + part) * kScanChannels + v;
      add(ws.d_a + at, ws.d_a_rest + at, part == 0 ? d_a[j].re : d_a[j].im);
      add(ws.d_w + at, ws.d_w_rest + at, part == 0 ? d_w[j].re : d_w[j].im);
    }
  }
}

}  // namespace detail

inline int diagonal_scan_items(const DiagonalScanParams& p) { return detail::scan_items(p.batch, p.channels, 1); }

FLASHATTN_CALLED void diagonal_scan_item(const DiagonalScanParams& p, int item, DiagonalScanWorkspace& ws) {
  using namespace detail;
  const ScanPart at(p.channels, 1, item);
  const int blocks = scan_blocks(p.length), rows = 2 * p.state;
  const int64_t states = int64_t{at.batch} * p.channels * rows;
  read_states(ws.a, p.a, at, rows);
  read_states(ws.w, p.w, at, rows);
  read_states(ws.state, p.initial ? p.initial + states : nullptr, at, rows);
  for (int k = 0; k < blocks; ++k) {
    const ScanBlock block(p.length, k);
    if (p.kept) keep_rows(p.kept + kept_row(at, blocks, k, rows, p.channels), p.channels, ws.state, rows, at.count);
    read_tile(ws.u, p.u, at, block, kScanBlock);
    clear(ws.out, block.count * kScanChannels);
    for_each_chunk<kDiagonalChunk>(p.state, [&](int n, auto count) {
      for (int v = 0; v < at.vectors * kLanes; v += kLanes) walk_diagonal(ws, block.count, n, count, v);
    });
    write_tile(p.out, ws.out, at, block);
  }
  if (p.final_state) write_states(p.final_state + states, ws.state, at, rows);
}

FLASHATTN_CALLED void diagonal_scan_backward_item(const DiagonalScanParams& p, int item, DiagonalScanWorkspace& ws) {
  using namespace detail;
  const ScanPart at(p.channels, 1, item);
  const int blocks = scan_blocks(p.length), rows = 2 * p.state;
  const int64_t states = int64_t{at.batch} * p.channels * rows;
  read_states(ws.a, p.a, at, rows);
  read_states(ws.w, p.w, at, rows);
  read_states(ws.state, p.d_final ? p.d_final + states : nullptr, at, rows);
  clear_all(rows * kScanChannels, ws.d_a, ws.d_a_rest, ws.d_w, ws.d_w_rest);
  for (int k = blocks - 1; k >= 0; --k) {
    const ScanBlock block(p.length, k);
    const float* const kept = p.kept + kept_row(at, blocks, k, rows, p.channels);
    read_tile(ws.u, p.u, at, block, -kScanBlock);
    read_tile(ws.d_out, p.d_out, at, block, -kScanBlock);
    clear(ws.d_u, block.count * kScanChannels);
    for_each_chunk<kDiagonalChunk>(p.state, [&](int n, auto count) {
      for (int v = 0; v < at.vectors * kLanes; v += kLanes) {
        for (int j = 0; j < 2 * count; ++j)
          load_row(ws.h_first + j * kLanes, kept + int64_t{2 * n + j} * p.channels + v, DType::Float32,
                   min(kLanes, at.count - v));
        walk_diagonal_again(ws, block.count, n, count, v);
        walk_diagonal_back(ws, block.count, n, count, v);
      }
    });
    write_tile(p.d_u, ws.d_u, at, block);
  }
  if (p.d_initial) write_states(p.d_initial + states, ws.state, at, rows);
  if (!p.of_sequences) return;
  for (int i = 0; i < rows * kScanChannels; i += kLanes) {
    store(ws.d_a + i, load(ws.d_a + i) + load(ws.d_a_rest + i));
    store(ws.d_w + i, load(ws.d_w + i) + load(ws.d_w_rest + i));
  }
  float* const sums = p.of_sequences + kept_row(at, 1, 0, 2 * rows, p.channels);
  keep_rows(sums, p.channels, ws.d_a, rows, at.count);
  keep_rows(sums + int64_t{rows} * p.channels, p.channels, ws.d_w, rows, at.count);
}

inline int finish_diagonal_items(const DiagonalScanParams& p) {
  return p.d_a || p.d_w ? divide_up(p.channels, kScanChannels) : 0;
}

FLASHATTN_CALLED void finish_diagonal_item(const DiagonalScanParams& p, int item) {
  using namespace detail;
  const int rows = 2 * p.state;
  for (int v = 0; v < kScanChannels; v += kLanes) {
    const int first = item * kScanChannels + v, count = min(kLanes, p.channels - first);
    if (count <= 0) return;
    for (int r = 0; r < 2 * rows; ++r) {
      float* const to = r < rows ? p.d_a : p.d_w;
      if (!to) continue;
      float lanes[kLanes];
      store(lanes, sum_of_sequences(p.of_sequences + int64_t{r} * p.channels + first, int64_t{2} * rows * p.channels,
                                    p.batch, count));
      for (int c = 0; c < count; ++c) to[int64_t{first + c} * rows + r % rows] = lanes[c];
    }
  }
}

}  // namespace flashattn
