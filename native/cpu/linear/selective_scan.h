// The selective scan of Mamba. A block of positions is walked over once for each kStateChunk elements of the state, which
// stay in registers; what they add to the result is added up in the workspace.
//
// With g_t[n] the gradient of h_t[n], which is d_t c_t[n] + e^(step_{t+1} a[n]) g_{t+1}[n], where d_t is that of the sum over
// n, and q_t[n] = g_t[n] e^(step_t a[n]) h_{t-1}[n]:
//   dc_t[n] = the sum over the channels of d_t h_t[n]      db_t[n] = that of g_t[n] step_t u_t
//   du_t = step_t (the sum over n of g_t[n] b_t[n]) + skip d_t
//   dstep_t = the sum over n of (q_t[n] a[n]) + u_t (the sum over n of g_t[n] b_t[n])
//   da[n] = the sum over t of q_t[n] step_t
#pragma once
#include "linear/scan.h"
#include "structs/selective_scan.h"

namespace flashattn {

/** Elements of the state, and their factors, that fit the registers. */
inline constexpr int kStateChunk = 8;

/** [state, kScanChannels] */
using ScanStates = float[kMostScanState * kScanChannels];
/** Of one chunk and one vector of channels: [positions, kStateChunk, kLanes]. */
using ChunkTile = float[kScanBlock * kStateChunk * kLanes];

struct alignas(kCacheLine) SelectiveScanWorkspace {
  ScanTile u, step, z, out;
  ScanTile slope;            // of step, as a function of dt
  ScanTile d_gated, d_out;   // the gradient of the result, and of what the gate multiplies
  ScanTile d_input, d_step;  // the sums over n of g b, and of q a
  ChunkTile h, decay, d_b, d_c;
  float h_first[kStateChunk * kLanes];
  float skip[kScanChannels], dt_bias[kScanChannels];
  float d_skip[kScanChannels], d_skip_rest[kScanChannels], d_dt_bias[kScanChannels], d_dt_bias_rest[kScanChannels];
  ScanStates a, state, d_a, d_a_rest;                                    // backward: `state` is g
  float b[kScanBlock * kMostScanState], c[kScanBlock * kMostScanState];  // [positions, state]
  bool skips;  // whether there is a skip: one of 0 makes NaN of Infinity
};

namespace detail {

/** Floats from one position of b and c to the next. */
inline int state_stride(const SelectiveScanParams& p) { return round_up(p.state, kLanes); }

FLASHATTN_CALLED void read_rows_of_state(float* to, const SelectiveScanParams& p, const TensorRef& tensor,
                                         const ScanPart& at, const ScanBlock& block) {
  for (int t = 0; t < block.count; ++t)
    load_row(to + t * state_stride(p), tensor.row(at.batch, static_cast<size_t>(block.first + t), at.group),
             tensor.dtype, p.state);
}

/** sigmoid(x), 0 below -55. */
FLASHATTN_INLINE Vec gate_of(Vec x) {
  const Vec power = natural_exp((Vec)((UintVec)x | 0x80000000u)), one = splat(1.0f);
  return select(x < Vec{}, power, one) / (one + power);
}

/**
 * max(x, 0) + log(1 + e^-|x|), and its slope, sigmoid(x). With p = e^-|x| and s = p / (2 + p), at most 1/3, the logarithm is
 * 2 artanh(s).
 */
FLASHATTN_INLINE Vec softplus_of(Vec x, Vec& slope) {
  const Vec power = natural_exp((Vec)((UintVec)x | 0x80000000u)), one = splat(1.0f);
  const Vec s = power / (power + splat(2.0f)), z = s * s;
  Vec p = splat(2.0f / 15);
  p = multiply_add(p, z, splat(2.0f / 13));
  p = multiply_add(p, z, splat(2.0f / 11));
  p = multiply_add(p, z, splat(2.0f / 9));
  p = multiply_add(p, z, splat(2.0f / 7));
  p = multiply_add(p, z, splat(2.0f / 5));
  p = multiply_add(p, z, splat(2.0f / 3));
  p = multiply_add(p, z, splat(2.0f));
  slope = select(x < Vec{}, power, one) / (one + power);
  return multiply_add(p, s, select(x > Vec{}, x, Vec{}));  // NaN by the power
}

/** step = softplus(step + bias), and its slope where that is wanted. */
FLASHATTN_CALLED void take_steps(float* step, float* slope, const float* bias, int positions, int vectors,
                                 bool softplus) {
  for (int t = 0; t < positions; ++t)
    for (int v = 0; v < vectors * kLanes; v += kLanes) {
      const int i = t * kScanChannels + v;
      const Vec x = load(step + i) + load(bias + v);
      Vec slope_here = splat(1.0f);
      store(step + i, softplus ? softplus_of(x, slope_here) : x);
      if (slope) store(slope + i, slope_here);
    }
}

inline void read_parameters(const SelectiveScanParams& p, const ScanPart& at, SelectiveScanWorkspace& ws) {
  read_states(ws.a, p.a, at, p.state);
  read_or_clear(ws.skip, p.skip ? p.skip + at.first : nullptr, at.count);
  ws.skips = p.skip;
  read_or_clear(ws.dt_bias, p.dt_bias ? p.dt_bias + at.first : nullptr, at.count);
}

inline void read_inputs(const SelectiveScanParams& p, const ScanPart& at, const ScanBlock& block,
                        SelectiveScanWorkspace& ws, int ahead) {
  read_tile(ws.u, p.u, at, block, ahead);
  read_tile(ws.step, p.dt, at, block, ahead);
  take_steps(ws.step, ahead < 0 ? ws.slope : nullptr, ws.dt_bias, block.count, at.vectors, p.softplus);
  read_rows_of_state(ws.b, p, p.b, at, block);
  read_rows_of_state(ws.c, p, p.c, at, block);
}

/** Elements [n, n + count) of the state, channels [v, v + kLanes); out += what they add. */
template <class Count>
FLASHATTN_CALLED void walk_selective(SelectiveScanWorkspace& ws, int stride, int positions, int n, Count count, int v) {
  Vec a[kStateChunk], h[kStateChunk];
  float* const state = ws.state + n * kScanChannels + v;
  for (int j = 0; j < count; ++j) {
    a[j] = load(ws.a + (n + j) * kScanChannels + v);
    h[j] = load(state + j * kScanChannels);
  }
  for (int t = 0; t < positions; ++t) {
    const int i = t * kScanChannels + v;
    const float *b = ws.b + t * stride + n, *c = ws.c + t * stride + n;
    const Vec step = load(ws.step + i), input = step * load(ws.u + i);
    Vec sum[2] = {load(ws.out + i), Vec{}};
    each(count, [&](int j) {
      h[j] = multiply_add(decay_of(step * a[j]), h[j], input * load_splat(b + j));
      sum[j % 2] = multiply_add(load_splat(c + j), h[j], sum[j % 2]);
    });
    store(ws.out + i, sum[0] + sum[1]);
  }
  for (int j = 0; j < count; ++j) store(state + j * kScanChannels, h[j]);
}

/** The same from ws.h_first on, with the states and their decays in ws.h and ws.decay. */
template <class Count>
FLASHATTN_CALLED void walk_selective_again(SelectiveScanWorkspace& ws, int stride, int positions, int n, Count count,
                                           int v) {
  Vec a[kStateChunk], h[kStateChunk];
  for (int j = 0; j < count; ++j) {
    a[j] = load(ws.a + (n + j) * kScanChannels + v);
    h[j] = load(ws.h_first + j * kLanes);
  }
  for (int t = 0; t < positions; ++t) {
    const int i = t * kScanChannels + v, place = t * kStateChunk * kLanes;
    const float *b = ws.b + t * stride + n, *c = ws.c + t * stride + n;
    const Vec step = load(ws.step + i), input = step * load(ws.u + i);
    Vec sum[2] = {load(ws.out + i), Vec{}};
    each(count, [&](int j) {
      const Vec decay = decay_of(step * a[j]);
      h[j] = multiply_add(decay, h[j], input * load_splat(b + j));
      store(ws.decay + place + j * kLanes, decay);
      store(ws.h + place + j * kLanes, h[j]);
      sum[j % 2] = multiply_add(load_splat(c + j), h[j], sum[j % 2]);
    });
    store(ws.out + i, sum[0] + sum[1]);
  }
}

template <class Count>
FLASHATTN_CALLED void walk_selective_back(SelectiveScanWorkspace& ws, int stride, int positions, int n, Count count,
                                          int v) {
  Vec g[kStateChunk], d_a[kStateChunk] = {};
  float* const behind = ws.state + n * kScanChannels + v;
  for (int j = 0; j < count; ++j) g[j] = load(behind + j * kScanChannels);
  for (int t = positions - 1; t >= 0; --t) {
    const int i = t * kScanChannels + v, place = t * kStateChunk * kLanes;
    const float *b = ws.b + t * stride + n, *c = ws.c + t * stride + n;
    const float* const before = t > 0 ? ws.h + place - kStateChunk * kLanes : ws.h_first;
    const Vec step = load(ws.step + i), input = step * load(ws.u + i), d = load(ws.d_out + i);
    Vec d_input = load(ws.d_input + i), d_step = load(ws.d_step + i);
    each(count, [&](int j) {
      const int at = place + j * kLanes;
      const Vec gradient = multiply_add(d, load_splat(c + j), g[j]);
      store(ws.d_c + at, multiply_add(d, load(ws.h + at), load(ws.d_c + at)));
      store(ws.d_b + at, multiply_add(gradient, input, load(ws.d_b + at)));
      d_input = multiply_add(gradient, load_splat(b + j), d_input);
      g[j] = gradient * load(ws.decay + at);
      const Vec q = g[j] * load(before + j * kLanes);
      d_step = multiply_add(q, load(ws.a + (n + j) * kScanChannels + v), d_step);
      d_a[j] = multiply_add(q, step, d_a[j]);
    });
    store(ws.d_input + i, d_input);
    store(ws.d_step + i, d_step);
  }
  for (int j = 0; j < count; ++j) {
    const int at = (n + j) * kScanChannels + v;
    store(behind + j * kScanChannels, g[j]);
    Vec sum = load(ws.d_a + at);
    store(ws.d_a_rest + at, load(ws.d_a_rest + at) + add_exactly(sum, d_a[j]));
    store(ws.d_a + at, sum);
  }
}

/** The sums over the lanes of a chunk become its part of rows of state. */
FLASHATTN_CALLED void write_state_sums(const SelectiveScanParams& p, const ScanPart& at, const ScanBlock& block,
                                       int which, const float* tile, int n, int count) {
  const int parts = divide_up(p.channels / p.groups, kScanChannels);
  const int64_t rows = (int64_t{which} * parts + at.part) * p.batch + at.batch;
  for (int t = 0; t < block.count; ++t) {
    float* const to = p.of_channels + ((rows * p.length + block.first + t) * p.groups + at.group) * p.state + n;
    for (int j = 0; j < count; ++j) to[j] = sum_lanes(load(tile + (t * kStateChunk + j) * kLanes));
  }
}

/** What the gate multiplies. */
FLASHATTN_INLINE Vec with_skip(const SelectiveScanWorkspace& ws, int i, int v) {
  return ws.skips ? multiply_add(load(ws.skip + v), load(ws.u + i), load(ws.out + i)) : load(ws.out + i);
}

/** to = d_out silu(z): the gradient of what the gate multiplies. */
FLASHATTN_CALLED void pass_gate(float* to, const float* d_out, const float* z, int positions, int vectors) {
  for (int t = 0; t < positions; ++t)
    for (int v = 0; v < vectors * kLanes; v += kLanes) {
      const int i = t * kScanChannels + v;
      const Vec x = load(z + i);
      store(to + i, load(d_out + i) * x * gate_of(x));
    }
}

/** z becomes its gradient. */
FLASHATTN_CALLED void finish_gate(SelectiveScanWorkspace& ws, int positions, int vectors) {
  for (int t = 0; t < positions; ++t)
    for (int v = 0; v < vectors * kLanes; v += kLanes) {
      const int i = t * kScanChannels + v;
      const Vec x = load(ws.z + i), s = gate_of(x), one = splat(1.0f);
      const Vec y = with_skip(ws, i, v);
      store(ws.z + i, load(ws.d_gated + i) * y * s * multiply_add(x, one - s, one));
    }
}

/** u becomes its gradient, step that of dt. */
FLASHATTN_CALLED void finish_selective_tile(SelectiveScanWorkspace& ws, int positions, int vectors) {
  for (int v = 0; v < vectors * kLanes; v += kLanes) {
    Vec d_skip{}, d_dt_bias{};
    const Vec skip = load(ws.skip + v);
    for (int i = v; i < positions * kScanChannels; i += kScanChannels) {
      const Vec u = load(ws.u + i), d = load(ws.d_out + i), d_input = load(ws.d_input + i);
      const Vec d_dt = multiply_add(u, d_input, load(ws.d_step + i)) * load(ws.slope + i);
      store(ws.u + i, multiply_add(load(ws.step + i), d_input, ws.skips ? skip * d : Vec{}));
      store(ws.step + i, d_dt);
      d_skip = multiply_add(d, u, d_skip);
      d_dt_bias += d_dt;
    }
    Vec sum = load(ws.d_skip + v);
    store(ws.d_skip_rest + v, load(ws.d_skip_rest + v) + add_exactly(sum, d_skip));
    store(ws.d_skip + v, sum);
    sum = load(ws.d_dt_bias + v);
    store(ws.d_dt_bias_rest + v, load(ws.d_dt_bias_rest + v) + add_exactly(sum, d_dt_bias));
    store(ws.d_dt_bias + v, sum);
  }
}

/** out = (out + skip u) silu(z) */
FLASHATTN_CALLED void finish_selective_out(SelectiveScanWorkspace& ws, int positions, int vectors, bool gated) {
  for (int t = 0; t < positions; ++t)
    for (int v = 0; v < vectors * kLanes; v += kLanes) {
      const int i = t * kScanChannels + v;
      Vec y = with_skip(ws, i, v);
      if (gated) {
        const Vec z = load(ws.z + i);
        y = y * z * gate_of(z);
      }
      store(ws.out + i, y);
    }
}

inline void add_rests(float* sum, const float* rest, int n) {
  for (int i = 0; i < n; i += kLanes) store(sum + i, load(sum + i) + load(rest + i));
}

}  // namespace detail

inline int selective_scan_items(const SelectiveScanParams& p) {
  return detail::scan_items(p.batch, p.channels, p.groups);
}

FLASHATTN_CALLED void selective_scan_item(const SelectiveScanParams& p, int item, SelectiveScanWorkspace& ws) {
  using namespace detail;
  const ScanPart at(p.channels, p.groups, item);
  const int blocks = scan_blocks(p.length), stride = state_stride(p);
  const int64_t states = int64_t{at.batch} * p.channels * p.state;
  read_parameters(p, at, ws);
  read_states(ws.state, p.initial ? p.initial + states : nullptr, at, p.state);
  for (int k = 0; k < blocks; ++k) {
    const ScanBlock block(p.length, k);
    if (p.kept)
      keep_rows(p.kept + kept_row(at, blocks, k, p.state, p.channels), p.channels, ws.state, p.state, at.count);
    read_inputs(p, at, block, ws, kScanBlock);
    clear(ws.out, block.count * kScanChannels);
    for_each_chunk<kStateChunk>(p.state, [&](int n, auto count) {
      for (int v = 0; v < at.vectors * kLanes; v += kLanes) walk_selective(ws, stride, block.count, n, count, v);
    });
    if (p.z.data) read_tile(ws.z, p.z, at, block, kScanBlock);
    finish_selective_out(ws, block.count, at.vectors, p.z.data);
    write_tile(p.out, ws.out, at, block);
  }
  if (p.final_state) write_states(p.final_state + states, ws.state, at, p.state);
}

FLASHATTN_CALLED void selective_scan_backward_item(const SelectiveScanParams& p, int item, SelectiveScanWorkspace& ws) {
  using namespace detail;
  const ScanPart at(p.channels, p.groups, item);
  const int blocks = scan_blocks(p.length), stride = state_stride(p);
  const int64_t states = int64_t{at.batch} * p.channels * p.state;
  read_parameters(p, at, ws);
  read_states(ws.state, p.d_final ? p.d_final + states : nullptr, at, p.state);
  clear_all(p.state * kScanChannels, ws.d_a, ws.d_a_rest);
  clear_all(kScanChannels, ws.d_skip, ws.d_skip_rest, ws.d_dt_bias, ws.d_dt_bias_rest);
  for (int k = blocks - 1; k >= 0; --k) {
    const ScanBlock block(p.length, k);
    const float* const kept = p.kept + kept_row(at, blocks, k, p.state, p.channels);
    read_inputs(p, at, block, ws, -kScanBlock);
    if (p.z.data) {
      read_tile(ws.z, p.z, at, block, -kScanBlock);
      read_tile(ws.d_gated, p.d_out, at, block, -kScanBlock);
      pass_gate(ws.d_out, ws.d_gated, ws.z, block.count, at.vectors);
    } else {
      read_tile(ws.d_out, p.d_out, at, block, -kScanBlock);
    }
    clear_all(block.count * kScanChannels, ws.out, ws.d_input, ws.d_step);
    for_each_chunk<kStateChunk>(p.state, [&](int n, auto count) {
      clear_all(block.count * kStateChunk * kLanes, ws.d_b, ws.d_c);
      for (int v = 0; v < at.vectors * kLanes; v += kLanes) {
        for (int j = 0; j < count; ++j)
          load_row(ws.h_first + j * kLanes, kept + int64_t{n + j} * p.channels + v, DType::Float32,
                   min(kLanes, at.count - v));
        walk_selective_again(ws, stride, block.count, n, count, v);
        walk_selective_back(ws, stride, block.count, n, count, v);
      }
      if (!p.of_channels) return;
      write_state_sums(p, at, block, 0, ws.d_b, n, count);
      write_state_sums(p, at, block, 1, ws.d_c, n, count);
    });
    if (p.d_z.data) {
      finish_gate(ws, block.count, at.vectors);
      write_tile(p.d_z, ws.z, at, block);
    }
    finish_selective_tile(ws, block.count, at.vectors);
    write_tile(p.d_u, ws.u, at, block);
    write_tile(p.d_dt, ws.step, at, block);
  }
  if (p.d_initial) write_states(p.d_initial + states, ws.state, at, p.state);
  if (!p.of_sequences) return;
  add_rests(ws.d_a, ws.d_a_rest, p.state * kScanChannels);
  add_rests(ws.d_skip, ws.d_skip_rest, kScanChannels);
  add_rests(ws.d_dt_bias, ws.d_dt_bias_rest, kScanChannels);
  float* const sums = p.of_sequences + kept_row(at, 1, 0, p.state + 2, p.channels);
  keep_rows(sums, p.channels, ws.d_a, p.state, at.count);
  store_row(sums + int64_t{p.state} * p.channels, DType::Float32, ws.d_skip, at.count);
  store_row(sums + (int64_t{p.state} + 1) * p.channels, DType::Float32, ws.d_dt_bias, at.count);
}

namespace detail {

inline int selective_parameter_items(const SelectiveScanParams& p) {
  return p.d_a || p.d_skip || p.d_dt_bias ? divide_up(p.channels, kScanChannels) : 0;
}

/** Of d_b and d_c: positions of a sequence that an item adds up. */
inline constexpr int kFinishedPositions = 64;

inline int selective_input_items(const SelectiveScanParams& p) {
  return p.d_b.data || p.d_c.data ? p.batch * divide_up(p.length, kFinishedPositions) : 0;
}

FLASHATTN_CALLED void finish_selective_parameters(const SelectiveScanParams& p, int item) {
  const int64_t sequence = int64_t{p.state + 2} * p.channels;
  for (int v = 0; v < kScanChannels; v += kLanes) {
    const int first = item * kScanChannels + v, count = min(kLanes, p.channels - first);
    if (count <= 0) return;
    for (int n = 0; n < p.state + 2; ++n) {
      float lanes[kLanes];
      store(lanes, sum_of_sequences(p.of_sequences + int64_t{n} * p.channels + first, sequence, p.batch, count));
      if (n >= p.state) {
        float* const to = n == p.state ? p.d_skip : p.d_dt_bias;
        if (to) store_row(to + first, DType::Float32, lanes, count);
      } else if (p.d_a) {
        for (int c = 0; c < count; ++c) p.d_a[int64_t{first + c} * p.state + n] = lanes[c];
      }
    }
  }
}

FLASHATTN_CALLED void finish_selective_inputs(const SelectiveScanParams& p, int item) {
  const int per_sequence = divide_up(p.length, kFinishedPositions), b = item / per_sequence;
  const int begin = item % per_sequence * kFinishedPositions, end = min(begin + kFinishedPositions, p.length);
  const int parts = divide_up(p.channels / p.groups, kScanChannels);
  const int64_t part = int64_t{p.batch} * p.length * p.groups * p.state;
  for (int which = 0; which < 2; ++which) {
    const TensorRef& result = which == 0 ? p.d_b : p.d_c;
    if (!result.data) continue;
    for (int t = begin; t < end; ++t)
      for (int g = 0; g < p.groups; ++g)
        for (int n = 0; n < p.state; n += kLanes) {
          const int count = min(kLanes, p.state - n);
          const float* const from =
              p.of_channels + which * parts * part + ((int64_t{b} * p.length + t) * p.groups + g) * p.state + n;
          float lanes[kLanes];
          store(lanes, sum_of_sequences(from, part, parts, count));
          uint8_t* const to = result.row(b, static_cast<size_t>(t), g) + n * element_size(result.dtype);
          store_row(to, result.dtype, lanes, count);
        }
  }
}

}  // namespace detail

inline int finish_selective_items(const SelectiveScanParams& p) {
  return detail::selective_parameter_items(p) + detail::selective_input_items(p);
}

FLASHATTN_CALLED void finish_selective_item(const SelectiveScanParams& p, int item) {
  const int parameters = detail::selective_parameter_items(p);
  if (item < parameters)
    detail::finish_selective_parameters(p, item);
  else
    detail::finish_selective_inputs(p, item - parameters);
}

}  // namespace flashattn
