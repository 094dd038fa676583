// h_t = e^(g_t) h_{t-1} + x_t of each channel, and its gradients: a thread is a channel, and has a few positions at hand.
#include "launch.h"
#include "scan.cuh"

namespace flashattn {

namespace {

FLASHATTN_KERNEL(kChannelThreads) linear_scan_kernel(LinearScanParams p) {
  const ScanChannel at(p.batch, p.channels);
  if (!at.exists) return;
  const int64_t state = int64_t{at.batch} * p.channels + at.channel;
  const int64_t blocks = scan_blocks(p.length);
  float h = p.initial ? ptx::load_global(p.initial + state) : 0.0f;
#pragma unroll 1
  for (int t = 0; t < p.length; t += kAhead) {
    const int count = positions_at_hand(p.length, t);
    float x[kAhead], gate[kAhead];
    load_ahead(x, p.x, scan_place(p.x, at.batch, t, 0, at.channel), count);
    load_ahead(gate, p.gate, scan_place(p.gate, at.batch, t, 0, at.channel), count);
    if (p.kept && t % kScanBlock == 0)
      ptx::store_global(p.kept + (at.batch * blocks + t / kScanBlock) * p.channels + at.channel, h);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (i < count) h = ::expf(gate[i]) * h + x[i];
      x[i] = h;
    }
    store_ahead(p.out, scan_place(p.out, at.batch, t, 0, at.channel), x, count);
  }
  if (p.final_state) ptx::store_global(p.final_state + state, h);
}

FLASHATTN_KERNEL(kChannelThreads) linear_scan_backward_kernel(LinearScanParams p) {
  const ScanChannel at(p.batch, p.channels);
  if (!at.exists) return;
  const int64_t state = int64_t{at.batch} * p.channels + at.channel;
  const int64_t blocks = scan_blocks(p.length);
  float behind = p.d_final ? ptx::load_global(p.d_final + state) : 0.0f;
  for (int first = static_cast<int>(blocks - 1) * kScanBlock; first >= 0; first -= kScanBlock) {
    const int end = p.length - first < kScanBlock ? p.length : first + kScanBlock;
    float h = ptx::load_global(p.kept + (at.batch * blocks + first / kScanBlock) * p.channels + at.channel);
#pragma unroll 1
    for (int t = first; t < end; t += kAhead) {
      const int count = positions_at_hand(p.length, t);
      float x[kAhead], gate[kAhead];
      load_ahead(x, p.x, scan_place(p.x, at.batch, t, 0, at.channel), count);
      load_ahead(gate, p.gate, scan_place(p.gate, at.batch, t, 0, at.channel), count);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const float decay = ::expf(gate[i]);
        ptx::store_shared(own_column(0, t - first + i), h);
        ptx::store_shared(own_column(1, t - first + i), decay);
        h = decay * h + x[i];
      }
    }
#pragma unroll 1
    for (int t = first + (end - first - 1) / kAhead * kAhead; t >= first; t -= kAhead) {
      const int count = positions_at_hand(p.length, t);
      float d_out[kAhead], d_gate[kAhead] = {};
      load_ahead(d_out, p.d_out, scan_place(p.d_out, at.batch, t, 0, at.channel), count);
#pragma unroll
      for (int i = kAhead - 1; i >= 0; --i) {
        if (i >= count) continue;
        const float d = d_out[i] + behind;
        behind = d * ptx::load_shared<float>(own_column(1, t - first + i));
        d_out[i] = d;
        d_gate[i] = behind * ptx::load_shared<float>(own_column(0, t - first + i));
      }
      store_ahead(p.d_x, scan_place(p.d_x, at.batch, t, 0, at.channel), d_out, count);
      store_ahead(p.d_gate, scan_place(p.d_gate, at.batch, t, 0, at.channel), d_gate, count);
    }
  }
  if (p.d_initial) ptx::store_global(p.d_initial + state, behind);
}

}  // namespace

cudaError_t launch_linear_scan(const LinearScanParams& p, const DeviceLimits&, cudaStream_t stream) {
  return launch_channels("linear_scan", linear_scan_kernel, int64_t{p.batch} * p.channels, 0, stream, p);
}

cudaError_t launch_linear_scan_backward(const LinearScanParams& p, const DeviceLimits&, cudaStream_t stream) {
  return launch_channels("linear_scan_backward", linear_scan_backward_kernel, int64_t{p.batch} * p.channels, 2, stream,
                         p);
}

}  // namespace flashattn
