// The selective scan of Mamba, and its gradients (native/cpu/linear/selective_scan.h has their formulas). A block is a part of
// the channels of a group of one sequence, and walks over it a block of positions at a time, which lies in shared memory. A
// lane is a channel; the warps take elements of its state, as many at a time as registers hold, so each element is one
// thread's from the first position to the last. Sums over elements and over channels are taken in their order.
#include "functions.cuh"
#include "launch.h"
#include "scan.cuh"

namespace flashattn {

namespace {

/** Elements of the state that a thread has in registers, and a block of threads. */
constexpr int kForwardStates = 4, kForwardPass = kForwardStates * kStateWarps;
constexpr int kBackwardStates = 2, kBackwardPass = kBackwardStates * kStateWarps;

FLASHATTN_DEVICE float step_of(const SelectiveScanParams& p, float dt, float bias) {
  const float x = dt + bias;
  if (!p.softplus) return x;
  return (x > 0.0f ? x : x == x ? 0.0f : x) + ::log1pf(::expf(-::fabsf(x)));
}

FLASHATTN_DEVICE float parameter_of(const float* from, const ScanPart& at) {
  return from != nullptr && at.exists ? ptx::load_global(from + at.channel()) : 0.0f;
}

/** skip x, nothing where there is no skip: one of 0 would make NaN of Infinity. */
FLASHATTN_DEVICE float skipped(const SelectiveScanParams& p, float skip, float x) { return p.skip ? skip * x : 0.0f; }

/** A tile [positions, kPass] of b or c, from element n of the state on; zeros beyond its end. */
template <int kPass>
FLASHATTN_DEVICE void load_rows(int tile, const SelectiveScanParams& p, const TensorRef& rows, const ScanPart& at,
                                int first, int count, int n) {
  for (int i = ptx::thread(); i < count * kPass; i += kStateThreads) {
    const int t = i / kPass, e = n + i % kPass;
    const float x = e < p.state ? load_scanned(rows, scan_place(rows, at.batch, first + t, at.group, e)) : 0.0f;
    ptx::store_shared(shared_float(tile + i), x);
  }
}

FLASHATTN_DEVICE float* kept_state(const SelectiveScanParams& p, const ScanPart& at, int position, int n) {
  const int64_t block = int64_t{at.batch} * scan_blocks(p.length) + position / kScanBlock;
  return p.kept + (block * p.state + n) * p.channels + at.channel();
}

// Forward -------------------------------------------------------------------------------------------------------------

struct ForwardTiles {
  static constexpr int kU = 0, kStep = kU + kTileFloats, kSum = kStep + kTileFloats;  // kSum: one for each warp
  static constexpr int kB = kSum + kStateWarps * kTileFloats, kC = kB + kScanBlock * kForwardPass;
  static constexpr int kState = kC + kScanBlock * kForwardPass;  // [state, kScanChannels]
};

FLASHATTN_KERNEL(kStateThreads) selective_scan_kernel(SelectiveScanParams p) {
  using Tiles = ForwardTiles;
  const ScanPart at(p.channels, p.groups);
  const int64_t states = (int64_t{at.batch} * p.channels + at.channel()) * p.state;
  const float bias = parameter_of(p.dt_bias, at), skip = parameter_of(p.skip, at);
  const auto is_own = [&](int n) { return n / kForwardStates % kStateWarps == at.warp; };
  for (int n = 0; n < p.state; ++n)
    if (is_own(n))
      ptx::store_shared(tile_place(Tiles::kState, n, at.lane),
                        p.initial && at.exists ? ptx::load_global(p.initial + states + n) : 0.0f);

  for (int first = 0; first < p.length; first += kScanBlock) {
    const int count = p.length - first < kScanBlock ? p.length - first : kScanBlock;
    ptx::sync_threads();
    for (int t = at.warp; t < count; t += kStateWarps) {
      float u = 0, dt = 0;
      if (at.exists) {
        u = load_scanned(p.u, scan_place(p.u, at.batch, first + t, 0, at.channel()));
        dt = load_scanned(p.dt, scan_place(p.dt, at.batch, first + t, 0, at.channel()));
      }
      ptx::store_shared(tile_place(Tiles::kU, t, at.lane), u);
      ptx::store_shared(tile_place(Tiles::kStep, t, at.lane), step_of(p, dt, bias));
    }
    const int sum = Tiles::kSum + at.warp * kTileFloats;
    for (int n0 = 0; n0 < p.state; n0 += kForwardPass) {
      if (n0 > 0) ptx::sync_threads();
      load_rows<kForwardPass>(Tiles::kB, p, p.b, at, first, count, n0);
      load_rows<kForwardPass>(Tiles::kC, p, p.c, at, first, count, n0);
      ptx::sync_threads();
      const int own = n0 + at.warp * kForwardStates;
      float a[kForwardStates] = {}, h[kForwardStates] = {};
#pragma unroll
      for (int j = 0; j < kForwardStates; ++j) {
        if (own + j >= p.state) continue;
        if (at.exists) a[j] = ptx::load_global(p.a + int64_t{at.channel()} * p.state + own + j);
        h[j] = ptx::load_shared<float>(tile_place(Tiles::kState, own + j, at.lane));
        if (p.kept && at.exists) ptx::store_global(kept_state(p, at, first, own + j), h[j]);
      }
      for (int t = 0; t < count; ++t) {
        const float step = ptx::load_shared<float>(tile_place(Tiles::kStep, t, at.lane));
        const float input = step * ptx::load_shared<float>(tile_place(Tiles::kU, t, at.lane));
        float y = n0 > 0 ? ptx::load_shared<float>(tile_place(sum, t, at.lane)) : 0.0f;
        const int row = t * kForwardPass + at.warp * kForwardStates;
#pragma unroll
        for (int j = 0; j < kForwardStates; ++j) {
          if (own + j >= p.state) continue;
          const float b = ptx::load_shared<float>(shared_float(Tiles::kB + row + j));
          h[j] = ::expf(step * a[j]) * h[j] + input * b;
          y += ptx::load_shared<float>(shared_float(Tiles::kC + row + j)) * h[j];
        }
        ptx::store_shared(tile_place(sum, t, at.lane), y);
      }
#pragma unroll
      for (int j = 0; j < kForwardStates; ++j)
        if (own + j < p.state) ptx::store_shared(tile_place(Tiles::kState, own + j, at.lane), h[j]);
    }
    ptx::sync_threads();
    for (int t = at.warp; t < count; t += kStateWarps) {
      if (!at.exists) continue;
      float y = skipped(p, skip, ptx::load_shared<float>(tile_place(Tiles::kU, t, at.lane)));
      for (int warp = 0; warp < kStateWarps; ++warp)
        y += ptx::load_shared<float>(tile_place(Tiles::kSum + warp * kTileFloats, t, at.lane));
      if (p.z.data) {
        const float z = load_scanned(p.z, scan_place(p.z, at.batch, first + t, 0, at.channel()));
        y *= z * sigmoid_of(z);
      }
      store_scanned(p.out, scan_place(p.out, at.batch, first + t, 0, at.channel()), y);
    }
  }
  if (!p.final_state || !at.exists) return;
  for (int n = 0; n < p.state; ++n)
    if (is_own(n))
      ptx::store_global(p.final_state + states + n, ptx::load_shared<float>(tile_place(Tiles::kState, n, at.lane)));
}

// Backward ------------------------------------------------------------------------------------------------------------

struct BackwardTiles {
  static constexpr int kU = 0, kStep = kU + kTileFloats;
  static constexpr int kD = kStep + kTileFloats;                 // the gradient of the sum over the state
  static constexpr int kDStep = kD + kTileFloats;                // one for each warp
  static constexpr int kH = kDStep + kStateWarps * kTileFloats;  // [positions, kBackwardPass, kScanChannels]
  static constexpr int kB = kH + kBackwardPass * kTileFloats, kC = kB + kScanBlock * kBackwardPass;
  static constexpr int kG = kC + kScanBlock * kBackwardPass;  // [state, kScanChannels], the gradient of the state
};

FLASHATTN_DEVICE uint32_t h_place(int t, int e, int lane) {
  return tile_place(BackwardTiles::kH, t * kBackwardPass + e, lane);
}

/**
 * Of d_b or d_c (`which`): f(t, e, channel) summed over the channels, for the elements of a pass. Each thread begins with
 * another channel, so that a warp reads 32 banks.
 */
template <class F>
FLASHATTN_DEVICE void sum_channels(const SelectiveScanParams& p, const ScanPart& at, int which, int first, int count,
                                   int n0, F f) {
  const int in_group = p.channels / p.groups, parts = (in_group + kScanChannels - 1) / kScanChannels;
  const int64_t rows = (int64_t{which} * parts + at.part) * p.batch + at.batch;
  for (int i = ptx::thread(); i < count * kBackwardPass; i += kStateThreads) {
    const int t = i / kBackwardPass, e = i % kBackwardPass;
    if (n0 + e >= p.state) continue;
    float sum = 0;
    for (int k = 0; k < kScanChannels; ++k) sum += f(t, e, (k + at.lane) % kScanChannels);
    ptx::store_global(p.of_channels + ((rows * p.length + first + t) * p.groups + at.group) * p.state + n0 + e, sum);
  }
}

FLASHATTN_KERNEL(kStateThreads) selective_scan_backward_kernel(SelectiveScanParams p) {
  using Tiles = BackwardTiles;
  const ScanPart at(p.channels, p.groups);
  const int64_t states = (int64_t{at.batch} * p.channels + at.channel()) * p.state;
  const float bias = parameter_of(p.dt_bias, at), skip = parameter_of(p.skip, at);
  const int64_t sums = int64_t{at.batch} * (p.state + 2) * p.channels + at.channel();
  const int64_t lost = int64_t{p.batch} * (p.state + 2) * p.channels;
  const auto is_own = [&](int n) { return n / kBackwardStates % kStateWarps == at.warp; };
  for (int n = 0; n < p.state; ++n) {
    if (!is_own(n)) continue;
    ptx::store_shared(tile_place(Tiles::kG, n, at.lane),
                      p.d_final && at.exists ? ptx::load_global(p.d_final + states + n) : 0.0f);
    if (!p.of_sequences || !at.exists) continue;
    ptx::store_global(p.of_sequences + sums + int64_t{n} * p.channels, 0.0f);
    ptx::store_global(p.of_sequences + sums + int64_t{n} * p.channels + lost, 0.0f);
  }
  float d_skip = 0, d_skip_lost = 0, d_bias = 0, d_bias_lost = 0;

  for (int first = (scan_blocks(p.length) - 1) * kScanBlock; first >= 0; first -= kScanBlock) {
    const int count = p.length - first < kScanBlock ? p.length - first : kScanBlock;
    const int d_steps = Tiles::kDStep + at.warp * kTileFloats;
    ptx::sync_threads();
    float y[kOwnPositions] = {}, d_input[kOwnPositions] = {};  // of positions at.warp, at.warp + kStateWarps, ...
    for (int t = at.warp; t < kScanBlock; t += kStateWarps) {
      float u = 0, dt = 0, d = 0;
      if (at.exists && t < count) {
        u = load_scanned(p.u, scan_place(p.u, at.batch, first + t, 0, at.channel()));
        dt = load_scanned(p.dt, scan_place(p.dt, at.batch, first + t, 0, at.channel()));
        d = load_scanned(p.d_out, scan_place(p.d_out, at.batch, first + t, 0, at.channel()));
        if (p.z.data) {
          const float z = load_scanned(p.z, scan_place(p.z, at.batch, first + t, 0, at.channel()));
          d *= z * sigmoid_of(z);
        }
      }
      ptx::store_shared(tile_place(Tiles::kU, t, at.lane), u);
      ptx::store_shared(tile_place(Tiles::kStep, t, at.lane), step_of(p, dt, bias));
      ptx::store_shared(tile_place(Tiles::kD, t, at.lane), d);
    }
    for (int n0 = 0; n0 < p.state; n0 += kBackwardPass) {
      ptx::sync_threads();
      load_rows<kBackwardPass>(Tiles::kB, p, p.b, at, first, count, n0);
      load_rows<kBackwardPass>(Tiles::kC, p, p.c, at, first, count, n0);
      ptx::sync_threads();
      const int column = at.warp * kBackwardStates, own = n0 + column;
      float a[kBackwardStates] = {}, h_first[kBackwardStates] = {}, h[kBackwardStates];
#pragma unroll
      for (int j = 0; j < kBackwardStates; ++j) {
        if (own + j < p.state && at.exists) {
          a[j] = ptx::load_global(p.a + int64_t{at.channel()} * p.state + own + j);
          h_first[j] = ptx::load_global(kept_state(p, at, first, own + j));
        }
        h[j] = h_first[j];
      }
      for (int t = 0; t < count; ++t) {
        const float step = ptx::load_shared<float>(tile_place(Tiles::kStep, t, at.lane));
        const float input = step * ptx::load_shared<float>(tile_place(Tiles::kU, t, at.lane));
#pragma unroll
        for (int j = 0; j < kBackwardStates; ++j) {
          const float b = ptx::load_shared<float>(shared_float(Tiles::kB + t * kBackwardPass + column + j));
          if (own + j < p.state) h[j] = ::expf(step * a[j]) * h[j] + input * b;
          ptx::store_shared(h_place(t, column + j, at.lane), h[j]);
        }
      }
      ptx::sync_threads();
      if (p.d_z.data) {
#pragma unroll
        for (int i = 0; i < kOwnPositions; ++i) {
          const int t = at.warp + i * kStateWarps;
          for (int e = 0; e < kBackwardPass && n0 + e < p.state && t < count; ++e)
            y[i] += ptx::load_shared<float>(shared_float(Tiles::kC + t * kBackwardPass + e)) *
                    ptx::load_shared<float>(h_place(t, e, at.lane));
        }
      }
      if (p.of_channels)
        sum_channels(p, at, 1, first, count, n0, [&](int t, int e, int c) {
          return ptx::load_shared<float>(tile_place(Tiles::kD, t, c)) * ptx::load_shared<float>(h_place(t, e, c));
        });
      ptx::sync_threads();

      // Backwards; the states give way to their gradients.
      float g[kBackwardStates] = {}, d_a[kBackwardStates] = {};
#pragma unroll
      for (int j = 0; j < kBackwardStates; ++j)
        if (own + j < p.state) g[j] = ptx::load_shared<float>(tile_place(Tiles::kG, own + j, at.lane));
      for (int t = count - 1; t >= 0; --t) {
        const float step = ptx::load_shared<float>(tile_place(Tiles::kStep, t, at.lane));
        const float d = ptx::load_shared<float>(tile_place(Tiles::kD, t, at.lane));
        float d_step = n0 > 0 ? ptx::load_shared<float>(tile_place(d_steps, t, at.lane)) : 0.0f;
#pragma unroll
        for (int j = 0; j < kBackwardStates; ++j) {
          if (own + j >= p.state) continue;
          const float c = ptx::load_shared<float>(shared_float(Tiles::kC + t * kBackwardPass + column + j));
          const float before = t > 0 ? ptx::load_shared<float>(h_place(t - 1, column + j, at.lane)) : h_first[j];
          const float gradient = d * c + g[j];
          ptx::store_shared(h_place(t, column + j, at.lane), gradient);
          g[j] = gradient * ::expf(step * a[j]);
          const float q = g[j] * before;
          d_step += q * a[j];
          d_a[j] += q * step;
        }
        ptx::store_shared(tile_place(d_steps, t, at.lane), d_step);
      }
#pragma unroll
      for (int j = 0; j < kBackwardStates; ++j) {
        if (own + j >= p.state) continue;
        ptx::store_shared(tile_place(Tiles::kG, own + j, at.lane), g[j]);
        float* const sum = p.of_sequences + sums + int64_t{own + j} * p.channels;
        if (p.of_sequences && at.exists) add_to_global(sum, sum + lost, d_a[j]);
      }
      ptx::sync_threads();
#pragma unroll
      for (int i = 0; i < kOwnPositions; ++i) {
        const int t = at.warp + i * kStateWarps;
        for (int e = 0; e < kBackwardPass && n0 + e < p.state && t < count; ++e)
          d_input[i] += ptx::load_shared<float>(shared_float(Tiles::kB + t * kBackwardPass + e)) *
                        ptx::load_shared<float>(h_place(t, e, at.lane));
      }
      if (p.of_channels)
        sum_channels(p, at, 0, first, count, n0, [&](int t, int e, int c) {
          return ptx::load_shared<float>(h_place(t, e, c)) * ptx::load_shared<float>(tile_place(Tiles::kStep, t, c)) *
                 ptx::load_shared<float>(tile_place(Tiles::kU, t, c));
        });
    }
    ptx::sync_threads();
#pragma unroll
    for (int i = 0; i < kOwnPositions; ++i) {
      const int t = at.warp + i * kStateWarps;
      if (t >= count || !at.exists) continue;
      const float u = ptx::load_shared<float>(tile_place(Tiles::kU, t, at.lane));
      const float step = ptx::load_shared<float>(tile_place(Tiles::kStep, t, at.lane));
      const float d = ptx::load_shared<float>(tile_place(Tiles::kD, t, at.lane));
      float d_dt = u * d_input[i];
      for (int warp = 0; warp < kStateWarps; ++warp)
        d_dt += ptx::load_shared<float>(tile_place(Tiles::kDStep + warp * kTileFloats, t, at.lane));
      if (p.softplus)
        d_dt *= sigmoid_of(bias + load_scanned(p.dt, scan_place(p.dt, at.batch, first + t, 0, at.channel())));
      store_scanned(p.d_u, scan_place(p.d_u, at.batch, first + t, 0, at.channel()),
                    step * d_input[i] + skipped(p, skip, d));
      store_scanned(p.d_dt, scan_place(p.d_dt, at.batch, first + t, 0, at.channel()), d_dt);
      add_compensated(d_skip, d_skip_lost, d * u);
      add_compensated(d_bias, d_bias_lost, d_dt);
      if (p.d_z.data) {
        const float z = load_scanned(p.z, scan_place(p.z, at.batch, first + t, 0, at.channel())), s = sigmoid_of(z);
        const float d_out = load_scanned(p.d_out, scan_place(p.d_out, at.batch, first + t, 0, at.channel()));
        store_scanned(p.d_z, scan_place(p.d_z, at.batch, first + t, 0, at.channel()),
                      d_out * (y[i] + skipped(p, skip, u)) * s * (1.0f + z * (1.0f - s)));
      }
    }
  }
  if (p.d_initial && at.exists)
    for (int n = 0; n < p.state; ++n)
      if (is_own(n))
        ptx::store_global(p.d_initial + states + n, ptx::load_shared<float>(tile_place(Tiles::kG, n, at.lane)));
  if (!p.of_sequences) return;
  ptx::sync_threads();
  ptx::store_shared(tile_place(Tiles::kU, at.warp, at.lane), d_skip - d_skip_lost);
  ptx::store_shared(tile_place(Tiles::kStep, at.warp, at.lane), d_bias - d_bias_lost);
  ptx::sync_threads();
  if (at.warp >= 2 || !at.exists) return;
  float sum = 0, cut = 0;
  for (int warp = 0; warp < kStateWarps; ++warp)
    add_compensated(sum, cut,
                    ptx::load_shared<float>(tile_place(at.warp == 0 ? Tiles::kU : Tiles::kStep, warp, at.lane)));
  float* const to = p.of_sequences + sums + int64_t{p.state + at.warp} * p.channels;
  ptx::store_global(to, sum);
  ptx::store_global(to + lost, cut);
}

/** A thread is a channel of d_a, d_skip or d_dt_bias. */
FLASHATTN_KERNEL(kFlatThreads) finish_selective_parameters_kernel(SelectiveScanParams p) {
  const int64_t thread = flat_thread(), n = thread / p.channels, channel = thread % p.channels;
  if (n >= p.state + 2) return;
  float* const to = n < p.state ? p.d_a : n == p.state ? p.d_skip : p.d_dt_bias;
  if (to == nullptr) return;
  const int64_t stride = int64_t{p.state + 2} * p.channels;
  const float sum = sum_apart(p.of_sequences + n * p.channels + channel, stride, p.batch, stride * p.batch);
  ptx::store_global(n < p.state ? to + channel * p.state + n : to + channel, sum);
}

/** A thread is an element of d_b or d_c. */
FLASHATTN_KERNEL(kFlatThreads) finish_selective_inputs_kernel(SelectiveScanParams p) {
  const int64_t part = int64_t{p.batch} * p.length * p.groups * p.state;
  const int64_t thread = flat_thread(), which = thread / part, at = thread % part;
  if (which >= 2) return;
  const TensorRef& result = which == 0 ? p.d_b : p.d_c;
  const int parts = (p.channels / p.groups + kScanChannels - 1) / kScanChannels;
  const int n = static_cast<int>(at % p.state), group = static_cast<int>(at / p.state % p.groups);
  const int t = static_cast<int>(at / p.state / p.groups % p.length);
  const int batch = static_cast<int>(at / p.state / p.groups / p.length);
  const float sum = sum_apart(p.of_channels + which * parts * part + at, part, parts, 0);
  store_scanned(result, scan_place(result, batch, t, group, n), sum);
}

}  // namespace

cudaError_t launch_selective_scan(const SelectiveScanParams& p, const DeviceLimits&, cudaStream_t stream) {
  return launch_parts("selective_scan", selective_scan_kernel, scan_parts(p.batch, p.channels, p.groups),
                      ForwardTiles::kState + p.state * kScanChannels, stream, p);
}

cudaError_t launch_selective_scan_backward(const SelectiveScanParams& p, const DeviceLimits&, cudaStream_t stream) {
  cudaError_t error =
      launch_parts("selective_scan_backward", selective_scan_backward_kernel, scan_parts(p.batch, p.channels, p.groups),
                   BackwardTiles::kG + p.state * kScanChannels, stream, p);
  if (!error && (p.d_a || p.d_skip || p.d_dt_bias))
    error = launch_flat("finish_selective_parameters", finish_selective_parameters_kernel,
                        int64_t{p.state + 2} * p.channels, stream, p);
  if (!error && (p.d_b.data || p.d_c.data))
    error = launch_flat("finish_selective_inputs", finish_selective_inputs_kernel,
                        int64_t{2} * p.batch * p.length * p.groups * p.state, stream, p);
  return error;
}

}  // namespace flashattn
