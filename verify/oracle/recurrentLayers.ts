/** Layers of GLA, Mamba-2 and Gated DeltaNet in float64, a token at a time, each as its paper and its authors' code have it. */
import { recurrence } from './recurrence.js';

export type Weights = Readonly<Record<string, ArrayLike<number>>>;

export interface LayerCase {
  readonly batch: number;
  readonly seq: number;
  readonly width: number;
  readonly heads: number;
  readonly epsilon: number;
}

const at = (values: ArrayLike<number> | undefined, index: number): number => values?.[index] ?? Number.NaN;
const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));
const silu = (x: number): number => x * sigmoid(x);
const softplus = (x: number): number => Math.log1p(Math.exp(-Math.abs(x))) + Math.max(x, 0);
const logSigmoid = (x: number): number => -softplus(-x);

/** y[r, o] = sum_i x[r, i] weight[o, i] + bias[o] */
function linear(x: ArrayLike<number>, inputs: number, weight: ArrayLike<number> | undefined, bias?: ArrayLike<number>) {
  const outputs = (weight?.length ?? 0) / inputs;
  return Float64Array.from({ length: (x.length / inputs) * outputs }, (_, n) => {
    const [row, o] = [Math.floor(n / outputs), n % outputs];
    let sum = bias ? at(bias, o) : 0;
    for (let i = 0; i < inputs; i++) sum += at(x, row * inputs + i) * at(weight, o * inputs + i);
    return sum;
  });
}

/** SiLU of the last few tokens of each channel, weighed: x [batch, seq, channels], weight [channels, 1, size]. */
function convolved(
  { batch, seq }: LayerCase,
  x: ArrayLike<number>,
  weight?: ArrayLike<number>,
  bias?: ArrayLike<number>,
) {
  const channels = x.length / (batch * seq);
  const size = (weight?.length ?? 0) / channels;
  return Float64Array.from({ length: x.length }, (_, n) => {
    const [row, c] = [Math.floor(n / channels), n % channels];
    const t = row % seq;
    let sum = bias ? at(bias, c) : 0;
    for (let tap = 0; tap < size; tap++) {
      const back = size - 1 - tap;
      if (back <= t) sum += at(x, (row - back) * channels + c) * at(weight, c * size + tap);
    }
    return silu(sum);
  });
}

/** Rows of `dim`, each divided by the root of its mean square and epsilon. */
function normed(x: ArrayLike<number>, dim: number, epsilon: number, perRow = (sum: number) => sum / dim) {
  return Float64Array.from({ length: x.length }, (_, n) => {
    const from = n - (n % dim);
    let squares = 0;
    for (let d = from; d < from + dim; d++) squares += at(x, d) ** 2;
    return at(x, n) / Math.sqrt(perRow(squares) + epsilon);
  });
}

const unit = (x: ArrayLike<number>, dim: number) => normed(x, dim, 1e-6, (sum) => sum);

/** The columns from..to of rows [..., of]. */
const columns = (x: ArrayLike<number>, of: number, from: number, to: number) =>
  Float64Array.from({ length: (x.length / of) * (to - from) }, (_, n) =>
    at(x, Math.floor(n / (to - from)) * of + from + (n % (to - from))),
  );

export interface GlaCase extends LayerCase {
  readonly keyDim: number;
  readonly valueDim: number;
}

export function glaLayer(c: GlaCase, w: Weights): Float64Array {
  const { batch, seq, width, heads, keyDim, valueDim } = c;
  const x = w.x as ArrayLike<number>;
  const rank = (w.down?.length ?? 0) / width;
  const gates = linear(linear(x, width, w.down), rank, w.up, w.upBias);
  const { out } = recurrence({
    ...{ batch, heads, keyDim, valueDim, length: seq, scale: 1 / Math.sqrt(keyDim) },
    q: linear(x, width, w.q),
    k: linear(x, width, w.k),
    v: linear(x, width, w.v),
    decay: gates.map((g) => logSigmoid(g) / 16),
  });
  const gate = linear(x, width, w.g);
  const rows = normed(out, valueDim, c.epsilon).map((y, n) => y * at(w.norm, n % valueDim) * silu(at(gate, n)));
  return linear(rows, heads * valueDim, w.o);
}

export interface DeltaNetCase extends LayerCase {
  readonly headDim: number;
  readonly valueDim: number;
}

const decaysOf = (logits: Float64Array, heads: number, w: Weights) =>
  logits.map((a, n) => -Math.exp(at(w.logRates, n % heads)) * softplus(a + at(w.stepBias, n % heads)));

const spread = (values: ArrayLike<number>, dim: number) =>
  Float64Array.from({ length: values.length * dim }, (_, n) => at(values, Math.floor(n / dim)));

export function gatedDeltaNetLayer(c: DeltaNetCase, w: Weights): Float64Array {
  const { batch, seq, width, heads, headDim, valueDim } = c;
  const x = w.x as ArrayLike<number>;
  const short = (name: string) => convolved(c, linear(x, width, w[name]), w[`${name}Convolution`]);
  const { out } = recurrence({
    ...{ batch, heads, keyDim: headDim, valueDim, length: seq, scale: 1 / Math.sqrt(headDim) },
    q: unit(short('q'), headDim),
    k: unit(short('k'), headDim),
    v: short('v'),
    beta: linear(x, width, w.b).map(sigmoid),
    decay: spread(decaysOf(linear(x, width, w.a), heads, w), headDim),
  });
  const gate = linear(x, width, w.g);
  const rows = normed(out, valueDim, c.epsilon).map((y, n) => y * at(w.norm, n % valueDim) * silu(at(gate, n)));
  return linear(rows, heads * valueDim, w.o);
}

export interface Mamba2Case extends LayerCase {
  readonly headDim: number;
  readonly stateDim: number;
  readonly groups: number;
}

export function mamba2Layer(c: Mamba2Case, w: Weights): Float64Array {
  const { batch, seq, width, heads, headDim, stateDim, groups } = c;
  const inner = heads * headDim;
  const shared = groups * stateDim;
  const all = linear(w.x as ArrayLike<number>, width, w.in);
  const of = 2 * inner + 2 * shared + heads;
  const z = columns(all, of, 0, inner);
  const mixed = convolved(c, columns(all, of, inner, of - heads), w.convolution, w.convolutionBias);
  const logits = columns(all, of, of - heads, of);
  const x = columns(mixed, inner + 2 * shared, 0, inner);
  const [b, cs] = [0, 1].map((i) => {
    const part = columns(mixed, inner + 2 * shared, inner + i * shared, inner + (i + 1) * shared);
    // Every head reads its group's.
    return Float64Array.from({ length: batch * seq * heads * stateDim }, (_, n) => {
      const row = Math.floor(n / (heads * stateDim));
      const head = Math.floor(n / stateDim) % heads;
      return at(part, row * shared + Math.floor((head * groups) / heads) * stateDim + (n % stateDim));
    });
  }) as [Float64Array, Float64Array];
  const steps = logits.map((s, n) => softplus(s + at(w.stepBias, n % heads)));
  const { out } = recurrence({
    ...{ batch, heads, keyDim: stateDim, valueDim: headDim, length: seq, scale: 1 },
    q: cs,
    k: b,
    v: x.map((y, n) => y * at(steps, Math.floor(n / headDim))),
    decay: spread(decaysOf(logits, heads, w), stateDim),
  });
  const gated = out.map((y, n) => (y + at(w.skip, Math.floor(n / headDim) % heads) * at(x, n)) * silu(at(z, n)));
  const rows = normed(gated, inner / groups, c.epsilon).map((y, n) => y * at(w.norm, n % inner));
  return linear(rows, inner, w.out);
}
