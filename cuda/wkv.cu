// The weighted average of RWKV-4 with its running maximum, and its gradients: a thread is a channel. What becomes of the
// gradient of the maximum: native/cpu/linear/wkv.h.
#include "launch.h"
#include "scan.cuh"

namespace flashattn {

namespace {

/** e^(a - most) and e^(b - most), where most is the larger of both. */
struct TwoPowers {
  float most, of_a, of_b;
  bool a_is_most;

  FLASHATTN_DEVICE TwoPowers(float a, float b) : a_is_most(a >= b) {
    const float difference = a - b, power = ::expf(-::fabsf(difference));
    most = a_is_most ? a : b;
    // Where the difference is NaN, both powers are.
    of_a = difference >= 0 ? 1.0f : power;
    of_b = difference < 0 ? 1.0f : power;
  }
};

struct WkvState {
  float num = 0, den = 0, peak = kNoPeak;

  FLASHATTN_DEVICE void load(const float* from, int64_t stride) {
    num = ptx::load_global(from), den = ptx::load_global(from + stride), peak = ptx::load_global(from + 2 * stride);
  }
  FLASHATTN_DEVICE void store(float* to, int64_t stride) const {
    ptx::store_global(to, num), ptx::store_global(to + stride, den), ptx::store_global(to + 2 * stride, peak);
  }
  FLASHATTN_DEVICE void advance(float decay, float k, float v) {
    const TwoPowers e(peak + decay, k);
    num = e.of_a * num + e.of_b * v;
    den = e.of_a * den + e.of_b;
    peak = e.most;
  }
  FLASHATTN_DEVICE float shared_with(const WkvState& gradient) const { return gradient.num * num + gradient.den * den; }
};

FLASHATTN_KERNEL(kChannelThreads) wkv_kernel(WkvParams p) {
  const ScanChannel at(p.batch, p.channels);
  if (!at.exists) return;
  const int64_t state = int64_t{at.batch} * 3 * p.channels + at.channel;
  const int64_t blocks = scan_blocks(p.length);
  const float decay = ptx::load_global(p.decay + at.channel), bonus = ptx::load_global(p.bonus + at.channel);
  WkvState s;
  if (p.initial) s.load(p.initial + state, p.channels);
#pragma unroll 1
  for (int t = 0; t < p.length; t += kAhead) {
    const int count = positions_at_hand(p.length, t);
    float k[kAhead], v[kAhead];
    load_ahead(k, p.k, scan_place(p.k, at.batch, t, 0, at.channel), count);
    load_ahead(v, p.v, scan_place(p.v, at.batch, t, 0, at.channel), count);
    if (p.kept && t % kScanBlock == 0)
      s.store(p.kept + (at.batch * blocks + t / kScanBlock) * 3 * p.channels + at.channel, p.channels);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (i >= count) continue;
      const float value = v[i];
      const TwoPowers f(s.peak, k[i] + bonus);
      v[i] = (f.of_a * s.num + f.of_b * value) / (f.of_a * s.den + f.of_b);
      s.advance(decay, k[i], value);
    }
    store_ahead(p.out, scan_place(p.out, at.batch, t, 0, at.channel), v, count);
  }
  if (p.final_state) s.store(p.final_state + state, p.channels);
}

FLASHATTN_KERNEL(kChannelThreads) wkv_backward_kernel(WkvParams p) {
  const ScanChannel at(p.batch, p.channels);
  if (!at.exists) return;
  const int64_t state = int64_t{at.batch} * 3 * p.channels + at.channel;
  const int64_t blocks = scan_blocks(p.length);
  const float decay = ptx::load_global(p.decay + at.channel), bonus = ptx::load_global(p.bonus + at.channel);
  WkvState d{0, 0, 0};  // of which peak is what it has of its own
  if (p.d_final) d.load(p.d_final + state, p.channels);
  float d_decay = 0, d_decay_lost = 0, d_bonus = 0, d_bonus_lost = 0;
  for (int first = static_cast<int>(blocks - 1) * kScanBlock; first >= 0; first -= kScanBlock) {
    const int end = p.length - first < kScanBlock ? p.length : first + kScanBlock;
    WkvState s;
    s.load(p.kept + (at.batch * blocks + first / kScanBlock) * 3 * p.channels + at.channel, p.channels);
#pragma unroll 1
    for (int t = first; t < end; t += kAhead) {
      const int count = positions_at_hand(p.length, t);
      float k[kAhead], v[kAhead];
      load_ahead(k, p.k, scan_place(p.k, at.batch, t, 0, at.channel), count);
      load_ahead(v, p.v, scan_place(p.v, at.batch, t, 0, at.channel), count);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (i >= count) continue;
        ptx::store_shared(own_column(0, t - first + i), s.num);
        ptx::store_shared(own_column(1, t - first + i), s.den);
        ptx::store_shared(own_column(2, t - first + i), s.peak);
        s.advance(decay, k[i], v[i]);
      }
    }
    if (p.d_final && end == p.length) d.peak -= s.shared_with(d);
#pragma unroll 1
    for (int t = first + (end - first - 1) / kAhead * kAhead; t >= first; t -= kAhead) {
      const int count = positions_at_hand(p.length, t);
      float k[kAhead], v[kAhead], d_out[kAhead];
      load_ahead(k, p.k, scan_place(p.k, at.batch, t, 0, at.channel), count);
      load_ahead(v, p.v, scan_place(p.v, at.batch, t, 0, at.channel), count);
      load_ahead(d_out, p.d_out, scan_place(p.d_out, at.batch, t, 0, at.channel), count);
#pragma unroll
      for (int i = kAhead - 1; i >= 0; --i) {
        if (i >= count) continue;
        const float num = ptx::load_shared<float>(own_column(0, t - first + i));
        const float den = ptx::load_shared<float>(own_column(1, t - first + i));
        const float peak = ptx::load_shared<float>(own_column(2, t - first + i));
        const TwoPowers f(peak, k[i] + bonus), e(peak + decay, k[i]);
        const float whole = 1.0f / (f.of_a * den + f.of_b);
        const float out = (f.of_a * num + f.of_b * v[i]) * whole;
        const float d_num = d_out[i] * whole, d_den = -d_num * out;  // of what was divided
        const float d_bonus_here = f.of_b * (d_num * v[i] + d_den);
        const float own = e.a_is_most ? d.peak : 0.0f;
        const float d_k = e.of_b * (d.num * v[i] + d.den) + d_bonus_here + (d.peak - own);
        v[i] = e.of_b * d.num + f.of_b * d_num;
        k[i] = d_k;
        add_compensated(d_bonus, d_bonus_lost, d_bonus_here);
        add_compensated(d_decay, d_decay_lost, e.of_a * (d.num * num + d.den * den) + own);
        d.num = e.of_a * d.num + f.of_a * d_num;
        d.den = e.of_a * d.den + f.of_a * d_den;
        d.peak = own;
      }
      store_ahead(p.d_k, scan_place(p.d_k, at.batch, t, 0, at.channel), k, count);
      store_ahead(p.d_v, scan_place(p.d_v, at.batch, t, 0, at.channel), v, count);
    }
    if (first == 0 && p.d_initial) {
      WkvState s0;
      s0.load(p.kept + at.batch * blocks * 3 * p.channels + at.channel, p.channels);
      d.peak += s0.shared_with(d);
    }
  }
  if (p.d_initial) d.store(p.d_initial + state, p.channels);
  if (!p.of_sequences) return;
  float* const sums = p.of_sequences + int64_t{at.batch} * 2 * p.channels + at.channel;
  ptx::store_global(sums, d_decay - d_decay_lost);
  ptx::store_global(sums + p.channels, d_bonus - d_bonus_lost);
}

FLASHATTN_KERNEL(kFlatThreads) finish_wkv_kernel(WkvParams p) {
  const int64_t thread = flat_thread(), which = thread / p.channels, channel = thread % p.channels;
  if (which >= 2) return;
  float* const to = which == 0 ? p.d_decay : p.d_bonus;
  if (to == nullptr) return;
  const int64_t stride = int64_t{2} * p.channels;
  ptx::store_global(to + channel, sum_apart(p.of_sequences + thread, stride, p.batch, 0));
}

}  // namespace

cudaError_t launch_wkv(const WkvParams& p, const DeviceLimits&, cudaStream_t stream) {
  return launch_channels("wkv", wkv_kernel, int64_t{p.batch} * p.channels, 0, stream, p);
}

cudaError_t launch_wkv_backward(const WkvParams& p, const DeviceLimits&, cudaStream_t stream) {
  const cudaError_t error =
      launch_channels("wkv_backward", wkv_backward_kernel, int64_t{p.batch} * p.channels, 3, stream, p);
  if (error || (!p.d_decay && !p.d_bonus)) return error;
  return launch_flat("finish_wkv", finish_wkv_kernel, int64_t{2} * p.channels, stream, p);
}

}  // namespace flashattn
