/** Squeeze and excitation and CBAM in float64, place by place: images are [batch, channels, height, width]. */
import { linear, type Numbers, range, sigmoid, total } from './dense.js';

export interface Images {
  readonly batch: number;
  readonly channels: number;
  readonly height: number;
  readonly width: number;
}

export interface GateWeights {
  readonly reduce: Numbers;
  readonly reduceBias?: Numbers;
  readonly expand: Numbers;
  readonly expandBias?: Numbers;
}

/** All places of a channel. */
const channelOf = (x: Numbers, d: Images, b: number, c: number): number[] => {
  const places = d.height * d.width;
  return range(places).map((p) => x[(b * d.channels + c) * places + p]);
};

const pools = {
  avg: (values: number[]) => total(values) / values.length,
  max: (values: number[]) => Math.max(...values),
  lp: (values: number[]) => Math.sqrt(total(values.map((x) => x * x))),
  lse: (values: number[]) => Math.log(total(values.map(Math.exp))),
};
export type Pool = keyof typeof pools;

export function channelGate(d: Images, x: Numbers, w: GateWeights, used: readonly Pool[]): Float64Array {
  const out = new Float64Array(x.length);
  const places = d.height * d.width;
  for (const b of range(d.batch)) {
    const all = range(d.channels).map((c) => channelOf(x, d, b, c));
    const logits = used.map((pool) => {
      const hidden = linear(all.map(pools[pool]), w.reduce, w.reduceBias).map((h) => Math.max(h, 0));
      return linear(hidden, w.expand, w.expandBias);
    });
    for (const [c, values] of all.entries()) {
      const gate = sigmoid(total(logits.map((each) => each[c])));
      out.set(
        values.map((value) => value * gate),
        (b * d.channels + c) * places,
      );
    }
  }
  return out;
}

export interface PlaceWeights {
  /** [1, 2, k, k] */
  readonly conv: Numbers;
  readonly gain: Numbers;
  readonly bias: Numbers;
  /** Left out: those of the batch. */
  readonly mean?: Numbers;
  readonly variance?: Numbers;
}

export function spatialGate(d: Images, x: Numbers, w: PlaceWeights): Float64Array {
  const places = d.height * d.width;
  const side = Math.sqrt(w.conv.length / 2);
  const maps = range(d.batch).map((b) => {
    const all = range(d.channels).map((c) => channelOf(x, d, b, c));
    const described = [
      range(places).map((p) => Math.max(...all.map((channel) => channel[p]))),
      range(places).map((p) => total(all.map((channel) => channel[p])) / d.channels),
    ];
    return range(places).map((p) => {
      const [i, j] = [Math.floor(p / d.width), p % d.width];
      let sum = 0;
      for (const [c, map] of described.entries())
        for (const k of range(side))
          for (const l of range(side)) {
            const [r, s] = [i + k - (side - 1) / 2, j + l - (side - 1) / 2];
            const inside = r >= 0 && r < d.height && s >= 0 && s < d.width;
            if (inside) sum += w.conv[(c * side + k) * side + l] * map[r * d.width + s];
          }
      return sum;
    });
  });
  const flat = maps.flat();
  const mean = w.mean?.[0] ?? total(flat) / flat.length;
  const variance = w.variance?.[0] ?? total(flat.map((m) => (m - mean) ** 2)) / flat.length;
  return Float64Array.from(x, (value, at) => {
    const map = maps[Math.floor(at / (d.channels * places))];
    const normal = (map[at % places] - mean) / Math.sqrt(variance + 1e-5);
    return value * sigmoid(normal * w.gain[0] + w.bias[0]);
  });
}
