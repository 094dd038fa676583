// A linear system with a diagonal matrix of complex numbers, and its gradients (native/cpu/linear/diagonal_scan.h has their
// formulas). A lane is a channel; the warps take elements of its state, as in selective_scan.cu.
#include "launch.h"
#include "scan.cuh"

namespace flashattn {

namespace {

constexpr int kForwardStates = 2, kForwardPass = kForwardStates * kStateWarps;
constexpr int kBackwardPass = kStateWarps;  // one element a thread

struct Complex {
  float re = 0, im = 0;

  static FLASHATTN_DEVICE Complex load(const float* from, int64_t stride = 1) {
    return {ptx::load_global(from), ptx::load_global(from + stride)};
  }
  FLASHATTN_DEVICE void store(float* to, int64_t stride = 1) const {
    ptx::store_global(to, re), ptx::store_global(to + stride, im);
  }
};

/** a h + u */
FLASHATTN_DEVICE Complex advance(Complex a, Complex h, float u) {
  return {a.re * h.re - a.im * h.im + u, a.re * h.im + a.im * h.re};
}

FLASHATTN_DEVICE float* kept_state(const DiagonalScanParams& p, const ScanPart& at, int position, int n) {
  const int64_t block = int64_t{at.batch} * scan_blocks(p.length) + position / kScanBlock;
  return p.kept + (block * p.state + n) * 2 * p.channels + at.channel();
}

FLASHATTN_DEVICE float loaded_element(const TensorRef& tensor, const ScanPart& at, int position) {
  return at.exists ? load_scanned(tensor, scan_place(tensor, at.batch, position, 0, at.channel())) : 0.0f;
}

struct ForwardTiles {
  static constexpr int kU = 0, kSum = kTileFloats;                 // kSum: one for each warp
  static constexpr int kState = kSum + kStateWarps * kTileFloats;  // [state, 2, kScanChannels]
};

FLASHATTN_KERNEL(kStateThreads) diagonal_scan_kernel(DiagonalScanParams p) {
  using Tiles = ForwardTiles;
  const ScanPart at(p.channels, 1);
  const int64_t states = (int64_t{at.batch} * p.channels + at.channel()) * p.state * 2;
  const int64_t factors = int64_t{at.channel()} * p.state * 2;
  const auto is_own = [&](int n) { return n / kForwardStates % kStateWarps == at.warp; };
  const auto place = [&](int n, int part) { return tile_place(Tiles::kState, n * 2 + part, at.lane); };
  for (int n = 0; n < p.state; ++n) {
    if (!is_own(n)) continue;
    const Complex h = p.initial && at.exists ? Complex::load(p.initial + states + 2 * n) : Complex{};
    ptx::store_shared(place(n, 0), h.re);
    ptx::store_shared(place(n, 1), h.im);
  }
  for (int first = 0; first < p.length; first += kScanBlock) {
    const int count = p.length - first < kScanBlock ? p.length - first : kScanBlock;
    ptx::sync_threads();
    for (int t = at.warp; t < count; t += kStateWarps)
      ptx::store_shared(tile_place(Tiles::kU, t, at.lane), loaded_element(p.u, at, first + t));
    ptx::sync_threads();
    const int sum = Tiles::kSum + at.warp * kTileFloats;
    for (int n0 = 0; n0 < p.state; n0 += kForwardPass) {
      const int own = n0 + at.warp * kForwardStates;
      Complex a[kForwardStates], w[kForwardStates], h[kForwardStates];
#pragma unroll
      for (int j = 0; j < kForwardStates; ++j) {
        if (own + j >= p.state) continue;
        if (at.exists) a[j] = Complex::load(p.a + factors + 2 * (own + j));
        if (at.exists) w[j] = Complex::load(p.w + factors + 2 * (own + j));
        h[j] = {ptx::load_shared<float>(place(own + j, 0)), ptx::load_shared<float>(place(own + j, 1))};
        if (p.kept && at.exists) h[j].store(kept_state(p, at, first, own + j), p.channels);
      }
      for (int t = 0; t < count; ++t) {
        const float u = ptx::load_shared<float>(tile_place(Tiles::kU, t, at.lane));
        float y = n0 > 0 ? ptx::load_shared<float>(tile_place(sum, t, at.lane)) : 0.0f;
#pragma unroll
        for (int j = 0; j < kForwardStates; ++j) {
          if (own + j >= p.state) continue;
          h[j] = advance(a[j], h[j], u);
          y += w[j].re * h[j].re - w[j].im * h[j].im;
        }
        ptx::store_shared(tile_place(sum, t, at.lane), y);
      }
#pragma unroll
      for (int j = 0; j < kForwardStates; ++j) {
        if (own + j >= p.state) continue;
        ptx::store_shared(place(own + j, 0), h[j].re);
        ptx::store_shared(place(own + j, 1), h[j].im);
      }
    }
    ptx::sync_threads();
    for (int t = at.warp; t < count; t += kStateWarps) {
      float y = 0;
      for (int warp = 0; warp < kStateWarps; ++warp)
        y += ptx::load_shared<float>(tile_place(Tiles::kSum + warp * kTileFloats, t, at.lane));
      if (at.exists) store_scanned(p.out, scan_place(p.out, at.batch, first + t, 0, at.channel()), y);
    }
  }
  if (!p.final_state || !at.exists) return;
  for (int n = 0; n < p.state; ++n)
    if (is_own(n))
      Complex{ptx::load_shared<float>(place(n, 0)), ptx::load_shared<float>(place(n, 1))}.store(p.final_state + states +
                                                                                                2 * n);
}

struct BackwardTiles {
  static constexpr int kU = 0, kD = kTileFloats;
  static constexpr int kH = 2 * kTileFloats;                     // [positions, warps, 2, kScanChannels], before each
  static constexpr int kG = kH + 2 * kStateWarps * kTileFloats;  // [state, 2, kScanChannels]
};

FLASHATTN_KERNEL(kStateThreads) diagonal_scan_backward_kernel(DiagonalScanParams p) {
  using Tiles = BackwardTiles;
  const ScanPart at(p.channels, 1);
  const int64_t states = (int64_t{at.batch} * p.channels + at.channel()) * p.state * 2;
  const int64_t factors = int64_t{at.channel()} * p.state * 2, rows = int64_t{2} * p.state * p.channels;
  float* const d_a_sums = p.of_sequences + at.batch * 2 * rows + at.channel();
  const int64_t lost = p.batch * 2 * rows;
  const auto g_place = [&](int n, int part) { return tile_place(Tiles::kG, n * 2 + part, at.lane); };
  const auto h_place = [&](int t, int warp, int part) {
    return tile_place(Tiles::kH, (t * kStateWarps + warp) * 2 + part, at.lane);
  };
  for (int n = at.warp; n < p.state; n += kStateWarps) {
    const Complex g = p.d_final && at.exists ? Complex::load(p.d_final + states + 2 * n) : Complex{};
    ptx::store_shared(g_place(n, 0), g.re);
    ptx::store_shared(g_place(n, 1), g.im);
    if (!p.of_sequences || !at.exists) continue;
    for (int i = 0; i < 4; ++i)
      Complex{}.store(d_a_sums + i / 2 * rows + i % 2 * lost + int64_t{2 * n} * p.channels, p.channels);
  }
  for (int first = (scan_blocks(p.length) - 1) * kScanBlock; first >= 0; first -= kScanBlock) {
    const int count = p.length - first < kScanBlock ? p.length - first : kScanBlock;
    float d_u[kOwnPositions] = {};
    ptx::sync_threads();
    for (int t = at.warp; t < count; t += kStateWarps) {
      ptx::store_shared(tile_place(Tiles::kU, t, at.lane), loaded_element(p.u, at, first + t));
      ptx::store_shared(tile_place(Tiles::kD, t, at.lane), loaded_element(p.d_out, at, first + t));
    }
    for (int n0 = 0; n0 < p.state; n0 += kBackwardPass) {
      const int n = n0 + at.warp;
      ptx::sync_threads();
      if (n < p.state) {
        Complex a, w, h, g, d_a, d_w;
        if (at.exists) {
          a = Complex::load(p.a + factors + 2 * n);
          w = Complex::load(p.w + factors + 2 * n);
          h = Complex::load(kept_state(p, at, first, n), p.channels);
        }
        for (int t = 0; t < count; ++t) {
          ptx::store_shared(h_place(t, at.warp, 0), h.re);
          ptx::store_shared(h_place(t, at.warp, 1), h.im);
          h = advance(a, h, ptx::load_shared<float>(tile_place(Tiles::kU, t, at.lane)));
        }
        g = {ptx::load_shared<float>(g_place(n, 0)), ptx::load_shared<float>(g_place(n, 1))};
        for (int t = count - 1; t >= 0; --t) {
          const float d = ptx::load_shared<float>(tile_place(Tiles::kD, t, at.lane));
          const Complex before{ptx::load_shared<float>(h_place(t, at.warp, 0)),
                               ptx::load_shared<float>(h_place(t, at.warp, 1))};
          const float x = g.re + d * w.re, y = g.im - d * w.im;
          d_w = {d_w.re + d * h.re, d_w.im - d * h.im};
          d_a = {d_a.re + x * before.re + y * before.im, d_a.im + y * before.re - x * before.im};
          g = {a.re * x + a.im * y, a.re * y - a.im * x};
          h = before;
          ptx::store_shared(h_place(t, at.warp, 0), x);  // the state gives way to its gradient
        }
        ptx::store_shared(g_place(n, 0), g.re);
        ptx::store_shared(g_place(n, 1), g.im);
        if (p.of_sequences && at.exists) {
          float* const sum = d_a_sums + int64_t{2 * n} * p.channels;
          add_to_global(sum, sum + lost, d_a.re);
          add_to_global(sum + p.channels, sum + p.channels + lost, d_a.im);
          add_to_global(sum + rows, sum + rows + lost, d_w.re);
          add_to_global(sum + rows + p.channels, sum + rows + p.channels + lost, d_w.im);
        }
      }
      ptx::sync_threads();
#pragma unroll
      for (int i = 0; i < kOwnPositions; ++i) {
        const int t = at.warp + i * kStateWarps;
        for (int warp = 0; warp < kStateWarps && n0 + warp < p.state && t < count; ++warp)
          d_u[i] += ptx::load_shared<float>(h_place(t, warp, 0));
      }
    }
#pragma unroll
    for (int i = 0; i < kOwnPositions; ++i) {
      const int t = at.warp + i * kStateWarps;
      if (t < count && at.exists) store_scanned(p.d_u, scan_place(p.d_u, at.batch, first + t, 0, at.channel()), d_u[i]);
    }
  }
  if (!p.d_initial || !at.exists) return;
  for (int n = at.warp; n < p.state; n += kStateWarps)
    Complex{ptx::load_shared<float>(g_place(n, 0)), ptx::load_shared<float>(g_place(n, 1))}.store(p.d_initial + states +
                                                                                                  2 * n);
}

/** A thread is a channel of d_a or d_w. */
FLASHATTN_KERNEL(kFlatThreads) finish_diagonal_kernel(DiagonalScanParams p) {
  const int64_t thread = flat_thread(), row = thread / p.channels, channel = thread % p.channels;
  const int64_t rows = int64_t{2} * p.state;
  if (row >= 2 * rows) return;
  float* const to = row < rows ? p.d_a : p.d_w;
  if (to == nullptr) return;
  const int64_t stride = 2 * rows * p.channels;
  ptx::store_global(to + channel * rows + row % rows,
                    sum_apart(p.of_sequences + thread, stride, p.batch, stride * p.batch));
}

}  // namespace

cudaError_t launch_diagonal_scan(const DiagonalScanParams& p, const DeviceLimits&, cudaStream_t stream) {
  return launch_parts("diagonal_scan", diagonal_scan_kernel, scan_parts(p.batch, p.channels, 1),
                      ForwardTiles::kState + 2 * p.state * kScanChannels, stream, p);
}

cudaError_t launch_diagonal_scan_backward(const DiagonalScanParams& p, const DeviceLimits&, cudaStream_t stream) {
  const cudaError_t error =
      launch_parts("diagonal_scan_backward", diagonal_scan_backward_kernel, scan_parts(p.batch, p.channels, 1),
                   BackwardTiles::kG + 2 * p.state * kScanChannels, stream, p);
  if (error || (!p.d_a && !p.d_w)) return error;
  return launch_flat("finish_diagonal", finish_diagonal_kernel, int64_t{4} * p.state * p.channels, stream, p);
}

}  // namespace flashattn
