/**
 * Quantised attention and layers in float64, element by element. A straight-through gradient is the derivative of a function that
 * takes each quantised number as the number itself and a difference that stays as it was at one point: `StraightThrough`.
 */
import { attend, dot, head, linear, type Numbers, range, roundEven, row, softmax, total } from './dense.js';

type Quantise = (x: readonly number[]) => number[];

/** The first run of a function records the differences, later ones use them. */
export class StraightThrough {
  readonly #differences: number[][] = [];
  #next = 0;

  /** Begins a run. */
  begin(): void {
    this.#next = 0;
  }

  quantised(x: readonly number[], quantise: Quantise): number[] {
    const at = this.#next++;
    this.#differences[at] ??= quantise(x).map((value, i) => value - x[i]);
    return x.map((value, i) => value + this.#differences[at][i]);
  }
}

const largest = (x: readonly number[]): number => Math.max(...x.map(Math.abs));
const meanSize = (x: readonly number[]): number => total(x.map(Math.abs)) / x.length;
const clip = (x: readonly number[], bound: number): number[] => x.map((v) => Math.min(bound, Math.max(-bound, v)));

const symmetric: Quantise = (x) => {
  const scale = 127 / largest(x);
  return x.map((v) => roundEven(v * scale) / scale);
};

const ternary: Quantise = (x) => {
  const threshold = 0.7 * meanSize(x);
  const kept = x.filter((v) => Math.abs(v) > threshold);
  const size = meanSize(kept);
  return x.map((v) => (Math.abs(v) > threshold ? size * Math.sign(v) : 0));
};

const perToken: Quantise = (x) => {
  const scale = 127 / Math.max(largest(x), 1e-5);
  return x.map((v) => Math.min(127, Math.max(-128, roundEven(v * scale))) / scale);
};

const absMean: Quantise = (x) => {
  const scale = 1 / Math.max(meanSize(x), 1e-5);
  return x.map((v) => Math.min(1, Math.max(-1, roundEven(v * scale))) / scale);
};

const centeredSigns: Quantise = (x) => {
  const mean = total([...x]) / x.length;
  return x.map((v) => Math.sign(v - mean) * meanSize(x));
};

export interface HeadDims {
  readonly batch: number;
  readonly queries: number;
  readonly keys: number;
  readonly heads: number;
  readonly dim: number;
  readonly valueDim: number;
}

export interface HeadInputs {
  readonly q: Numbers;
  readonly k: Numbers;
  readonly v: Numbers;
}

/** Rows of [batch, seq, heads, dim]. */
const rowsOf = (x: Numbers, b: number, h: number, seq: number, heads: number, dim: number): number[][] =>
  range(seq).map((t) => row(x, (b * seq + t) * heads + h, dim));

const eachHead = (d: HeadDims, f: (b: number, h: number) => readonly (readonly number[])[]): Float64Array => {
  const out = new Float64Array(d.batch * d.queries * d.heads * d.valueDim);
  for (const b of range(d.batch))
    for (const h of range(d.heads))
      for (const [i, values] of f(b, h).entries()) out.set(values, ((b * d.queries + i) * d.heads + h) * d.valueDim);
  return out;
};

const attention = (d: HeadDims, { q, k, v }: HeadInputs, scale: number): Float64Array =>
  eachHead(d, (b, h) => {
    const keys = rowsOf(k, b, h, d.keys, d.heads, d.dim);
    const values = rowsOf(v, b, h, d.keys, d.heads, d.valueDim);
    return rowsOf(q, b, h, d.queries, d.heads, d.dim).map((query) => attend(query, keys, values, scale));
  });

export function ternaryAttention(d: HeadDims, inputs: HeadInputs, bound: number, through: StraightThrough) {
  through.begin();
  const [q, k, v] = [inputs.q, inputs.k, inputs.v].map((x) => through.quantised(clip(Array.from(x), bound), ternary));
  return attention(d, { q, k, v }, 1 / Math.sqrt(d.dim));
}

export function int8Attention(d: HeadDims, inputs: HeadInputs, bound: number, through: StraightThrough) {
  through.begin();
  const quantised = (x: readonly number[]) => through.quantised(clip(x, bound), symmetric);
  const [q, k, v] = [inputs.q, inputs.k, inputs.v].map((x) => quantised(Array.from(x)));
  const all = range(d.batch).flatMap((b) =>
    range(d.heads).flatMap((h) => {
      const keys = rowsOf(k, b, h, d.keys, d.heads, d.dim);
      return rowsOf(q, b, h, d.queries, d.heads, d.dim).flatMap((query) =>
        softmax(keys.map((key) => dot(query, key) / Math.sqrt(d.dim))),
      );
    }),
  );
  const probabilities = quantised(all);
  return eachHead(d, (b, h) => {
    const values = rowsOf(v, b, h, d.keys, d.heads, d.valueDim);
    return range(d.queries).map((i) => {
      const weights = row(probabilities, (b * d.heads + h) * d.queries + i, d.keys);
      return range(d.valueDim).map((c) => total(values.map((value, j) => weights[j] * value[c])));
    });
  });
}

export function smoothK(d: HeadDims, { q, k, v }: HeadInputs): Float64Array {
  const steps = (x: readonly number[]): number[] => {
    const step = largest(x) / 127;
    return x.map((each) => (step === 0 ? 0 : roundEven(each / step) * step));
  };
  return eachHead(d, (b, h) => {
    const keys = rowsOf(k, b, h, d.keys, d.heads, d.dim);
    const mean = range(d.dim).map((c) => total(keys.map((key) => key[c])) / d.keys);
    const smooth = keys.map((key) => steps(key.map((x, c) => x - mean[c])));
    const values = rowsOf(v, b, h, d.keys, d.heads, d.valueDim);
    return rowsOf(q, b, h, d.queries, d.heads, d.dim).map((query) =>
      attend(steps(query.map((x) => x / Math.sqrt(d.dim))), smooth, values, 1),
    );
  });
}

/** With n = 2^bits - 1 steps from the least to the largest. */
function asymmetric(x: readonly number[], bits: number): number[] {
  const [least, most] = [Math.min(...x), Math.max(...x)];
  const step = (most - least) / (2 ** bits - 1);
  return x.map((each) => (step === 0 ? least : roundEven((each - least) / step) * step + least));
}

export function kvCache(d: HeadDims, { q, k, v }: HeadInputs, bits: number): Float64Array {
  return eachHead(d, (b, h) => {
    const keys = rowsOf(k, b, h, d.keys, d.heads, d.dim);
    const channels = range(d.dim).map((c) => asymmetric(keys.map((key) => key[c]), bits)); // biome-ignore format: one line
    const kept = keys.map((_, j) => channels.map((channel) => channel[j]));
    const values = rowsOf(v, b, h, d.keys, d.heads, d.valueDim).map((value) => asymmetric(value, bits));
    const queries = rowsOf(q, b, h, d.queries, d.heads, d.dim);
    return queries.map((query) => attend(query, kept, values, 1 / Math.sqrt(d.dim)));
  });
}

export interface BitLinearInputs {
  readonly x: Numbers;
  readonly weight: Numbers;
}

/** x [rows, inputs], weight [outputs, inputs]. */
export function bitLinear(
  inputs: number,
  { x, weight }: BitLinearInputs,
  bits: 1 | 1.58,
  through: StraightThrough,
): Float64Array {
  through.begin();
  const W = through.quantised(Array.from(weight), bits === 1 ? centeredSigns : absMean);
  return Float64Array.from(
    range(x.length / inputs).flatMap((r) => {
      const own = row(x, r, inputs);
      const squares = dot(own, own);
      const scale =
        bits === 1 ? Math.sqrt(inputs) / Math.max(Math.sqrt(squares), 1e-12) : 1 / Math.sqrt(squares / inputs + 1e-6);
      const normal = own.map((value) => value * scale);
      return linear(through.quantised(normal, perToken), W);
    }),
  );
}

export interface BiBertDims {
  readonly batch: number;
  readonly seq: number;
  readonly dim: number;
  readonly heads: number;
}

/** @param hidden by batch entry and key */
export function biBert(
  d: BiBertDims,
  w: Readonly<Record<string, Numbers>>,
  hidden: readonly boolean[],
  through: StraightThrough,
): Float64Array {
  through.begin();
  const signs = (x: readonly number[]) => through.quantised(clip(x, 1), (t) => t.map(Math.sign));
  const x = signs(Array.from(w.x));
  const projected = ['query', 'key', 'value'].map((name) => {
    const rows = range(d.dim).flatMap((o) => {
      const own = row(w[name], o, d.dim);
      const mean = total(own) / d.dim;
      const size = meanSize(own);
      const centered = clip(own.map((value) => value - mean), 1); // biome-ignore format: one line
      return through.quantised(centered, (t) => t.map((value) => size * Math.sign(value)));
    });
    const made = range(d.batch * d.seq).flatMap((r) => linear(row(x, r, d.dim), rows, w[`${name}Bias`]));
    return signs(made);
  });
  const rowOf = (t: readonly number[], b: number, i: number, h: number) =>
    head(row(t, b * d.seq + i, d.dim), h, d.heads);
  const [q, k, v] = projected;
  const out = new Float64Array(d.batch * d.seq * d.dim);
  const headDim = d.dim / d.heads;
  for (const b of range(d.batch))
    for (const h of range(d.heads))
      for (const i of range(d.seq)) {
        const scores = range(d.seq).map(
          (j) => dot(rowOf(q, b, i, h), rowOf(k, b, j, h)) / Math.sqrt(headDim) + (hidden[b * d.seq + j] ? -10_000 : 0),
        );
        const weights = through.quantised(clip(scores, 1), (t) => t.map((s) => (s > 0 ? 1 : 0)));
        const own = range(headDim).map((c) => total(weights.map((a, j) => a * rowOf(v, b, j, h)[c])));
        out.set(own, (b * d.seq + i) * d.dim + h * headDim);
      }
  return out;
}
