// h_t = e^(g_t) h_{t-1} + x_t. With d_t the gradient of h_t, of which e^(g_{t+1}) d_{t+1} comes from the next position:
// dx_t = d_t and dg_t = d_t e^(g_t) h_{t-1}.
#pragma once
#include "linear/scan.h"
#include "structs/linear_scan.h"

namespace flashattn {

struct alignas(kCacheLine) LinearScanWorkspace {
  ScanTile x, gate, d_out;
  ScanTile before;  // h_{t-1}
  float h[kScanChannels], d_h[kScanChannels];
};

namespace detail {

/** out may be x. */
FLASHATTN_CALLED void walk_linear(float* h, float* out, const float* x, const float* gate, int positions, int vectors) {
  for (int v = 0; v < vectors * kLanes; v += kLanes) {
    Vec state = load(h + v);
    for (int i = v; i < positions * kScanChannels; i += kScanChannels) {
      state = multiply_add(decay_of(load(gate + i)), state, load(x + i));
      store(out + i, state);
    }
    store(h + v, state);
  }
}

/** The same, with the state before each position in `before`, and gate = e^gate. */
FLASHATTN_CALLED void walk_linear_again(const float* h, float* before, const float* x, float* gate, int positions,
                                        int vectors) {
  for (int v = 0; v < vectors * kLanes; v += kLanes) {
    Vec state = load(h + v);
    for (int i = v; i < positions * kScanChannels; i += kScanChannels) {
      const Vec decay = decay_of(load(gate + i));
      store(gate + i, decay);
      store(before + i, state);
      state = multiply_add(decay, state, load(x + i));
    }
  }
}

/** d_out becomes dx, and decay dg; d_h: what comes from behind. */
FLASHATTN_CALLED void walk_linear_back(float* d_h, float* d_out, float* decay, const float* before, int positions,
                                       int vectors) {
  for (int v = 0; v < vectors * kLanes; v += kLanes) {
    Vec behind = load(d_h + v);
    for (int i = (positions - 1) * kScanChannels + v; i >= 0; i -= kScanChannels) {
      const Vec d = load(d_out + i) + behind;
      behind = d * load(decay + i);
      store(d_out + i, d);
      store(decay + i, behind * load(before + i));
    }
    store(d_h + v, behind);
  }
}

}  // namespace detail

inline int linear_scan_items(const LinearScanParams& p) { return detail::scan_items(p.batch, p.channels, 1); }

FLASHATTN_CALLED void linear_scan_item(const LinearScanParams& p, int item, LinearScanWorkspace& ws) {
  using namespace detail;
  const ScanPart at(p.channels, 1, item);
  const int64_t state = int64_t{at.batch} * p.channels + at.first;
  const int blocks = scan_blocks(p.length);
  read_or_clear(ws.h, p.initial ? p.initial + state : nullptr, at.count);
  for (int k = 0; k < blocks; ++k) {
    const ScanBlock block(p.length, k);
    if (p.kept) keep_rows(p.kept + kept_row(at, blocks, k, 1, p.channels), p.channels, ws.h, 1, at.count);
    read_tile(ws.x, p.x, at, block, kScanBlock);
    read_tile(ws.gate, p.gate, at, block, kScanBlock);
    walk_linear(ws.h, ws.x, ws.x, ws.gate, block.count, at.vectors);
    write_tile(p.out, ws.x, at, block);
  }
  if (p.final_state) store_row(p.final_state + state, DType::Float32, ws.h, at.count);
}

FLASHATTN_CALLED void linear_scan_backward_item(const LinearScanParams& p, int item, LinearScanWorkspace& ws) {
  using namespace detail;
  const ScanPart at(p.channels, 1, item);
  const int64_t state = int64_t{at.batch} * p.channels + at.first;
  const int blocks = scan_blocks(p.length);
  read_or_clear(ws.d_h, p.d_final ? p.d_final + state : nullptr, at.count);
  for (int k = blocks - 1; k >= 0; --k) {
    const ScanBlock block(p.length, k);
    take_rows(ws.h, p.kept + kept_row(at, blocks, k, 1, p.channels), p.channels, 1, at.count);
    read_tile(ws.x, p.x, at, block, -kScanBlock);
    read_tile(ws.gate, p.gate, at, block, -kScanBlock);
    read_tile(ws.d_out, p.d_out, at, block, -kScanBlock);
    walk_linear_again(ws.h, ws.before, ws.x, ws.gate, block.count, at.vectors);
    walk_linear_back(ws.d_h, ws.d_out, ws.gate, ws.before, block.count, at.vectors);
    write_tile(p.d_x, ws.d_out, at, block);
    write_tile(p.d_gate, ws.gate, at, block);
  }
  if (p.d_initial) store_row(p.d_initial + state, DType::Float32, ws.d_h, at.count);
}

}  // namespace flashattn
