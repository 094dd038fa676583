// The weighted average of RWKV-4 with its running maximum: the sums num and den are kept divided by e^peak, where peak is the
// largest exponent so far, so that no power is of a number above 0. den is at least 1 once a position has been seen.
//
// What comes after a state depends on num e^peak and den e^peak alone, so the gradient of peak is num dnum + den dden and
// need not be carried. That of a final state, which a caller may have used in another way, is: what it has beyond that goes
// to the exponent that peak came from.
#pragma once
#include "linear/scan.h"
#include "structs/wkv.h"

namespace flashattn {

/** num, den and peak. */
using WkvState = float[3 * kScanChannels];

struct alignas(kCacheLine) WkvWorkspace {
  ScanTile k, v, d_out;
  ScanTile before[3];
  WkvState state, d_state;  // of the latter the third is what peak has of its own
  float decay[kScanChannels], bonus[kScanChannels];
  float d_decay[kScanChannels], d_bonus[kScanChannels], d_decay_rest[kScanChannels], d_bonus_rest[kScanChannels];
};

namespace detail {

/** e^(a - most) and e^(b - most), where most is the larger of both. */
struct TwoPowers {
  Vec most, of_a, of_b;
  IntVec a_is_most;

  FLASHATTN_INLINE TwoPowers make(Vec a, Vec b) {
    const Vec difference = a - b, power = natural_exp((Vec)((UintVec)difference | 0x80000000u)), one = splat(1.0f);
    const IntVec first = a >= b;
    // Where the difference is NaN, both powers are.
    return {select(first, a, b), select(difference >= Vec{}, one, power), select(difference < Vec{}, one, power),
            first};
  }
};

struct WkvLanes {
  Vec num, den, peak;

  void read(const float* state) {
    num = load(state), den = load(state + kScanChannels), peak = load(state + 2 * kScanChannels);
  }
  void write(float* state) const {
    store(state, num), store(state + kScanChannels, den), store(state + 2 * kScanChannels, peak);
  }
  void advance(const TwoPowers& e, Vec v) {
    num = multiply_add(e.of_a, num, e.of_b * v);
    den = multiply_add(e.of_a, den, e.of_b);
    peak = e.most;
  }
};

/** out may be v. */
FLASHATTN_CALLED void walk_wkv(WkvWorkspace& ws, float* out, int positions, int vectors) {
  for (int v = 0; v < vectors * kLanes; v += kLanes) {
    const Vec decay = load(ws.decay + v), bonus = load(ws.bonus + v);
    WkvLanes s;
    s.read(ws.state + v);
    for (int i = v; i < positions * kScanChannels; i += kScanChannels) {
      const Vec key = load(ws.k + i), value = load(ws.v + i);
      const TwoPowers f = TwoPowers::make(s.peak, key + bonus);
      store(out + i, multiply_add(f.of_a, s.num, f.of_b * value) / multiply_add(f.of_a, s.den, f.of_b));
      s.advance(TwoPowers::make(s.peak + decay, key), value);
    }
    s.write(ws.state + v);
  }
}

/** The same, without the result: the state before each position in `before`. */
FLASHATTN_CALLED void walk_wkv_again(WkvWorkspace& ws, int positions, int vectors) {
  for (int v = 0; v < vectors * kLanes; v += kLanes) {
    const Vec decay = load(ws.decay + v);
    WkvLanes s;
    s.read(ws.state + v);
    for (int i = v; i < positions * kScanChannels; i += kScanChannels) {
      store(ws.before[0] + i, s.num);
      store(ws.before[1] + i, s.den);
      store(ws.before[2] + i, s.peak);
      s.advance(TwoPowers::make(s.peak + decay, load(ws.k + i)), load(ws.v + i));
    }
    s.write(ws.state + v);
  }
}

/** k and v become their gradients. */
FLASHATTN_CALLED void walk_wkv_back(WkvWorkspace& ws, int positions, int vectors) {
  for (int v = 0; v < vectors * kLanes; v += kLanes) {
    const Vec decay = load(ws.decay + v), bonus = load(ws.bonus + v);
    WkvLanes d;
    d.read(ws.d_state + v);
    Vec d_decay{}, d_bonus{};
    for (int i = (positions - 1) * kScanChannels + v; i >= 0; i -= kScanChannels) {
      const Vec key = load(ws.k + i), value = load(ws.v + i);
      const Vec num = load(ws.before[0] + i), den = load(ws.before[1] + i), peak = load(ws.before[2] + i);
      const TwoPowers f = TwoPowers::make(peak, key + bonus), e = TwoPowers::make(peak + decay, key);
      const Vec whole = splat(1.0f) / multiply_add(f.of_a, den, f.of_b);
      const Vec out = multiply_add(f.of_a, num, f.of_b * value) * whole;
      const Vec d_num = load(ws.d_out + i) * whole, d_den = -d_num * out;  // of what was divided
      const Vec d_bonus_here = f.of_b * multiply_add(d_num, value, d_den);
      const Vec own = select(e.a_is_most, d.peak, Vec{});
      store(ws.k + i, e.of_b * multiply_add(d.num, value, d.den) + d_bonus_here + (d.peak - own));
      store(ws.v + i, multiply_add(e.of_b, d.num, f.of_b * d_num));
      d_bonus += d_bonus_here;
      d_decay += multiply_add(e.of_a, multiply_add(d.num, num, d.den * den), own);
      d.num = multiply_add(e.of_a, d.num, f.of_a * d_num);
      d.den = multiply_add(e.of_a, d.den, f.of_a * d_den);
      d.peak = own;
    }
    d.write(ws.d_state + v);
    const auto add = [v](float* total, float* rest, Vec block) {
      Vec sum = load(total + v);
      store(rest + v, load(rest + v) + add_exactly(sum, block));
      store(total + v, sum);
    };
    add(ws.d_decay, ws.d_decay_rest, d_decay);
    add(ws.d_bonus, ws.d_bonus_rest, d_bonus);
  }
}

inline void read_wkv(const WkvParams& p, const ScanPart& at, WkvWorkspace& ws) {
  load_row(ws.decay, p.decay + at.first, DType::Float32, at.count);
  load_row(ws.bonus, p.bonus + at.first, DType::Float32, at.count);
}

}  // namespace detail

inline int wkv_items(const WkvParams& p) { return detail::scan_items(p.batch, p.channels, 1); }

FLASHATTN_CALLED void wkv_item(const WkvParams& p, int item, WkvWorkspace& ws) {
  using namespace detail;
  const ScanPart at(p.channels, 1, item);
  const int blocks = scan_blocks(p.length);
  const int64_t state = kept_row(at, 1, 0, 3, p.channels);
  read_wkv(p, at, ws);
  if (p.initial) {
    take_rows(ws.state, p.initial + state, p.channels, 3, at.count);
  } else {
    clear(ws.state, 2 * kScanChannels);
    fill(ws.state + 2 * kScanChannels, kNoPeak, kScanChannels);
  }
  for (int k = 0; k < blocks; ++k) {
    const ScanBlock block(p.length, k);
    if (p.kept) keep_rows(p.kept + kept_row(at, blocks, k, 3, p.channels), p.channels, ws.state, 3, at.count);
    read_tile(ws.k, p.k, at, block, kScanBlock);
    read_tile(ws.v, p.v, at, block, kScanBlock);
    walk_wkv(ws, ws.v, block.count, at.vectors);
    write_tile(p.out, ws.v, at, block);
  }
  if (p.final_state) keep_rows(p.final_state + state, p.channels, ws.state, 3, at.count);
}

FLASHATTN_CALLED void wkv_backward_item(const WkvParams& p, int item, WkvWorkspace& ws) {
  using namespace detail;
  const ScanPart at(p.channels, 1, item);
  const int blocks = scan_blocks(p.length);
  const int64_t state = kept_row(at, 1, 0, 3, p.channels);
  read_wkv(p, at, ws);
  clear(ws.d_state, 3 * kScanChannels);
  clear_all(kScanChannels, ws.d_decay, ws.d_bonus, ws.d_decay_rest, ws.d_bonus_rest);
  if (p.d_final) take_rows(ws.d_state, p.d_final + state, p.channels, 3, at.count);
  // Of the gradient of peak: what is not that of the sums. `sign`: -1 takes that off, 1 adds it.
  const auto add_shared = [&](float sign) {
    for (int v = 0; v < at.vectors * kLanes; v += kLanes) {
      WkvLanes s, d;
      s.read(ws.state + v);
      d.read(ws.d_state + v);
      d.peak += splat(sign) * multiply_add(d.num, s.num, d.den * s.den);
      d.write(ws.d_state + v);
    }
  };
  for (int k = blocks - 1; k >= 0; --k) {
    const ScanBlock block(p.length, k);
    take_rows(ws.state, p.kept + kept_row(at, blocks, k, 3, p.channels), p.channels, 3, at.count);
    read_tile(ws.k, p.k, at, block, -kScanBlock);
    read_tile(ws.v, p.v, at, block, -kScanBlock);
    read_tile(ws.d_out, p.d_out, at, block, -kScanBlock);
    walk_wkv_again(ws, block.count, at.vectors);
    if (k == blocks - 1 && p.d_final) add_shared(-1);
    walk_wkv_back(ws, block.count, at.vectors);
    write_tile(p.d_k, ws.k, at, block);
    write_tile(p.d_v, ws.v, at, block);
  }
  if (p.d_initial) {
    if (blocks > 0) {
      take_rows(ws.state, p.kept + kept_row(at, blocks, 0, 3, p.channels), p.channels, 3, at.count);
      add_shared(1);
    }
    keep_rows(p.d_initial + state, p.channels, ws.d_state, 3, at.count);
  }
  if (!p.of_sequences) return;
  for (int v = 0; v < at.vectors * kLanes; v += kLanes) {
    store(ws.d_decay + v, load(ws.d_decay + v) + load(ws.d_decay_rest + v));
    store(ws.d_bonus + v, load(ws.d_bonus + v) + load(ws.d_bonus_rest + v));
  }
  float* const sums = p.of_sequences + kept_row(at, 1, 0, 2, p.channels);
  store_row(sums, DType::Float32, ws.d_decay, at.count);
  store_row(sums + p.channels, DType::Float32, ws.d_bonus, at.count);
}

inline int finish_wkv_items(const WkvParams& p) {
  return p.d_decay || p.d_bonus ? divide_up(p.channels, kScanChannels) : 0;
}

FLASHATTN_CALLED void finish_wkv_item(const WkvParams& p, int item) {
  using namespace detail;
  for (int v = 0; v < kScanChannels; v += kLanes) {
    const int first = item * kScanChannels + v, count = min(kLanes, p.channels - first);
    if (count <= 0) return;
    float lanes[kLanes];
    for (int which = 0; which < 2; ++which) {
      float* const to = which == 0 ? p.d_decay : p.d_bonus;
      if (!to) continue;
      const float* const from = p.of_sequences + int64_t{which} * p.channels + first;
      store(lanes, sum_of_sequences(from, int64_t{2} * p.channels, p.batch, count));
      store_row(to + first, DType::Float32, lanes, count);
    }
  }
}

}  // namespace flashattn
