/**
 * Systems that go over a sequence mini-batch by mini-batch, segment by segment or chunk by chunk, in float64 and token by
 * token: test-time training, Infini-attention, and mixtures of softmax and linear attention. Tensors are row-major
 * [batch, seq, heads, dim].
 */

export interface Heads {
  readonly batch: number;
  readonly seq: number;
  readonly heads: number;
  readonly dim: number;
  readonly valueDim: number;
}

type Vector = Float64Array;
/** [rows][columns] */
type Matrix = Vector[];

const vector = (n: number, f: (i: number) => number): Vector => Float64Array.from({ length: n }, (_, i) => f(i));
const matrix = (rows: number, columns: number, f: (r: number, c: number) => number): Matrix =>
  Array.from({ length: rows }, (_, r) => vector(columns, (c) => f(r, c)));
const at = (v: ArrayLike<number>, i: number): number => v[i] ?? Number.NaN;
const dot = (a: Vector, b: Vector): number => a.reduce((total, x, i) => total + x * at(b, i), 0);
const plus = (a: Vector, b: Vector, scale = 1): Vector => a.map((x, i) => x + scale * at(b, i));
/** x W */
const times = (x: Vector, W: Matrix): Vector =>
  vector(W[0]?.length ?? 0, (c) => x.reduce((total, value, r) => total + value * at(W[r] as Vector, c), 0));
/** W += scale x^T y */
const addOuter = (W: Matrix, x: Vector, y: Vector, scale = 1): void => {
  for (const [r, row] of W.entries())
    for (let c = 0; c < row.length; c++) row[c] = at(row, c) + scale * at(x, r) * at(y, c);
};
const copy = (W: Matrix): Matrix => W.map((row) => row.slice());

/** The rows of one head. */
function rowsOf(values: Float64Array, { batch, seq, heads }: Heads, b: number, h: number): Vector[] {
  const dim = values.length / (batch * seq * heads);
  return Array.from({ length: seq }, (_, t) => {
    const from = ((b * seq + t) * heads + h) * dim;
    return values.slice(from, from + dim);
  });
}

/** Runs every head of every batch entry by itself. */
function eachHead(d: Heads, run: (b: number, h: number) => readonly Vector[]): Float64Array {
  const out = new Float64Array(d.batch * d.seq * d.heads * d.valueDim);
  for (let b = 0; b < d.batch; b++)
    for (let h = 0; h < d.heads; h++)
      for (const [t, row] of run(b, h).entries()) out.set(row, ((b * d.seq + t) * d.heads + h) * d.valueDim);
  return out;
}

const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));
const eluPlusOne = (x: Vector): Vector => x.map((each) => (each > 0 ? each + 1 : Math.exp(each)));

/** Softmax attention of a query to keys. */
function attend(q: Vector, keys: readonly Vector[], values: readonly Vector[], scale: number): Vector {
  const scores = keys.map((k) => scale * dot(q, k));
  const most = Math.max(...scores);
  const powers = scores.map((s) => Math.exp(s - most));
  const total = powers.reduce((sum, p) => sum + p, 0);
  return values.reduce((out, v, j) => plus(out, v, at(powers, j) / total), new Float64Array(values[0]?.length ?? 0));
}

export interface InfiniInputs {
  readonly q: Float64Array;
  readonly k: Float64Array;
  readonly v: Float64Array;
  /** [heads] */
  readonly gate: Float64Array;
}

export interface InfiniParameters {
  readonly segment: number;
  readonly delta: boolean;
  readonly gating: 'paper' | 'code';
  readonly scale?: number;
}

/** Infini-attention from an empty memory. */
export function infini(d: Heads, { q, k, v, gate }: InfiniInputs, { segment, delta, gating, scale }: InfiniParameters) {
  return eachHead(d, (b, h) => {
    const [queries, keys, values] = [q, k, v].map((x) => rowsOf(x, d, b, h)) as [Vector[], Vector[], Vector[]];
    const M = matrix(d.dim, d.valueDim, () => 0);
    let z: Vector = new Float64Array(d.dim);
    const recall = (x: Vector, memory: Matrix, weights: Vector): Vector =>
      times(x, memory).map((each) => each / Math.max(dot(x, weights), 1e-10));
    const out: Vector[] = [];
    for (let from = 0; from < d.seq; from += segment) {
      const to = Math.min(d.seq, from + segment);
      for (let i = from; i < to; i++) {
        const query = queries[i] as Vector;
        const local = attend(query, keys.slice(from, i + 1), values.slice(from, i + 1), scale ?? 1 / Math.sqrt(d.dim));
        const memory = recall(eluPlusOne(query), M, z);
        const g = sigmoid(at(gate, h));
        if (gating === 'paper')
          out.push(
            plus(
              memory.map((x) => g * x),
              local,
              1 - g,
            ),
          );
        else
          out.push(
            from === 0
              ? local
              : plus(
                  local.map((x) => g * x),
                  memory,
                  1 - g,
                ),
          );
      }
      const [old, oldZ] = [copy(M), z];
      for (let j = from; j < to; j++) {
        const phi = eluPlusOne(keys[j] as Vector);
        const value = values[j] as Vector;
        addOuter(M, phi, delta ? plus(value, recall(phi, old, oldZ), -1) : value);
        z = plus(z, phi);
      }
    }
    return out;
  });
}

export interface Inputs {
  readonly q: Float64Array;
  readonly k: Float64Array;
  readonly v: Float64Array;
}

export interface LocalLinearParameters {
  readonly localHeads: number;
  readonly window: number;
  readonly causal: boolean;
  readonly blindspot: number;
}

/** linear-attention-transformer's heads, local and linear. */
export function hybridLocalLinear(d: Heads, { q, k, v }: Inputs, p: LocalLinearParameters): Float64Array {
  const soft = (x: Vector): Vector => {
    const powers = x.map((each) => Math.exp(each - Math.max(...x)));
    return powers.map((each) => each / powers.reduce((total, y) => total + y, 0));
  };
  return eachHead(d, (b, h) => {
    const [queries, keys, values] = [q, k, v].map((x) => rowsOf(x, d, b, h)) as [Vector[], Vector[], Vector[]];
    const block = (t: number) => Math.floor(t / p.window);
    const bucket = (t: number) => Math.floor(t / p.blindspot);
    const columns = matrix(d.dim, d.seq, (c, t) => at(keys[t] as Vector, c)).map(soft);
    return queries.map((query, i) => {
      if (h < p.localHeads) {
        const seen = keys.flatMap((_, j) => {
          const near = Math.abs(block(i) - block(j)) <= 1;
          return near && (!p.causal || j <= i) ? [j] : [];
        });
        const of = (rows: Vector[]) => seen.map((j) => rows[j] as Vector);
        return attend(query, of(keys), of(values), 1 / Math.sqrt(d.dim));
      }
      const fq = soft(query).map((x) => x / Math.sqrt(d.dim));
      let out: Vector = new Float64Array(d.valueDim);
      let weight = 0;
      for (const [j, value] of values.entries()) {
        const before = p.blindspot === 1 ? j <= i : bucket(j) < bucket(i);
        if (p.causal && !before) continue;
        const fk = p.causal ? (keys[j] as Vector).map(Math.exp) : vector(d.dim, (c) => at(columns[c] as Vector, j));
        out = plus(out, value, dot(fq, fk));
        weight += dot(fq, fk);
      }
      return p.causal ? out.map((x) => x / Math.max(weight, 1e-3)) : out;
    });
  });
}

/** A gated mix of window attention and causal linear attention. */
export function hybridGated(d: Heads, { q, k, v, gate }: InfiniInputs, window: number): Float64Array {
  return eachHead(d, (b, h) => {
    const [queries, keys, values] = [q, k, v].map((x) => rowsOf(x, d, b, h)) as [Vector[], Vector[], Vector[]];
    return queries.map((query, i) => {
      const from = Math.max(0, i - window + 1);
      const local = attend(query, keys.slice(from, i + 1), values.slice(from, i + 1), 1 / Math.sqrt(d.dim));
      let out: Vector = new Float64Array(d.valueDim);
      let weight = 0;
      for (let j = 0; j <= i; j++) {
        const pair = dot(eluPlusOne(query), eluPlusOne(keys[j] as Vector));
        out = plus(out, values[j] as Vector, pair);
        weight += pair;
      }
      const g = sigmoid(at(gate, h));
      return plus(
        local.map((x) => g * x),
        out.map((x) => x / (weight + 1e-6)),
        1 - g,
      );
    });
  });
}

export interface TTTInputs extends Inputs {
  /** [batch, seq, heads] */
  readonly lr: Float64Array;
  /** [mini-batch] */
  readonly tokenCoef: Float64Array;
  /** [heads, dim] */
  readonly gain: Float64Array;
  readonly bias: Float64Array;
  /** [heads, inputs, outputs] and [heads, outputs]; the last two of TTT-MLP alone. */
  readonly W1: Float64Array;
  readonly b1: Float64Array;
  readonly W2?: Float64Array;
  readonly b2?: Float64Array;
}

interface Layer {
  readonly W: Matrix;
  readonly b: Vector;
}

const slopes = Math.sqrt(2 / Math.PI);
const gelu = (x: number): number => 0.5 * x * (1 + Math.tanh(slopes * (x + 0.044715 * x ** 3)));
const geluSlope = (x: number): number => {
  const t = Math.tanh(slopes * (x + 0.044715 * x ** 3));
  return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slopes * (1 + 3 * 0.044715 * x * x);
};

function normed(z: Vector): { x: Vector; rstd: number } {
  const mean = z.reduce((total, each) => total + each, 0) / z.length;
  const variance = z.reduce((total, each) => total + (each - mean) ** 2, 0) / z.length;
  const rstd = 1 / Math.sqrt(variance + 1e-6);
  return { x: z.map((each) => (each - mean) * rstd), rstd };
}

/** TTT-Linear, or with W2 TTT-MLP: each token takes its step of gradient descent, and sees the weights after it. */
export function ttt(d: Heads, { q, k, v, lr, tokenCoef, gain, bias, W1, b1, W2, b2 }: TTTInputs): Float64Array {
  const { dim, heads, seq } = d;
  const size = tokenCoef.length;
  const layerOf = (W: Float64Array, b: Float64Array, h: number): Layer => {
    const columns = b.length / heads;
    const rows = W.length / b.length;
    return {
      W: matrix(rows, columns, (r, c) => at(W, (h * rows + r) * columns + c)),
      b: b.slice(h * columns, (h + 1) * columns),
    };
  };
  const apply = (x: Vector, { W, b }: Layer): Vector => plus(times(x, W), b);
  return eachHead(d, (batch, h) => {
    const [queries, keys, values] = [q, k, v].map((x) => rowsOf(x, d, batch, h)) as [Vector[], Vector[], Vector[]];
    const [w, c] = [gain, bias].map((x) => x.slice(h * dim, (h + 1) * dim)) as [Vector, Vector];
    const ln = (z: Vector): Vector => normed(z).x.map((x, i) => at(w, i) * x + at(c, i));
    let layers = [layerOf(W1, b1, h), ...(W2 && b2 ? [layerOf(W2, b2, h)] : [])];
    const out: Vector[] = [];
    for (let from = 0; from < seq; from += size) {
      const sums = layers.map(({ W, b }) => ({ W: W.map((row) => row.map(() => 0)), b: b.map(() => 0) }));
      let seen = layers;
      for (let t = from; t < Math.min(seq, from + size); t++) {
        const key = keys[t] as Vector;
        const [first, second] = layers as [Layer, Layer | undefined];
        const z1 = apply(key, first);
        const hidden = second && z1.map(gelu);
        const { x, rstd } = normed(second && hidden ? apply(hidden, second) : z1);
        const target = plus(values[t] as Vector, key, -1);
        const dx = x.map((each, i) => (at(w, i) * each + at(c, i) - at(target, i)) * at(w, i));
        const [mean, along] = [dx.reduce((total, each) => total + each, 0) / dim, dot(dx, x) / dim];
        const g = dx.map((each, i) => rstd * (each - mean - at(x, i) * along));
        const rate = at(lr, (batch * seq + t) * heads + h);
        const steps: [Vector, Vector][] = [];
        if (second && hidden) {
          const back = z1.map((each, i) => dot(second.W[i] as Vector, g) * geluSlope(each));
          steps.push([key, back], [hidden, g]);
        } else steps.push([key, g]);
        for (const [i, [input, gradient]] of steps.entries()) {
          const sum = sums[i] as Layer;
          addOuter(sum.W, input, gradient, rate);
          for (let n = 0; n < gradient.length; n++) sum.b[n] = at(sum.b, n) + rate * at(gradient, n);
        }
        const factor = Math.max(at(tokenCoef, t - from), 0);
        seen = layers.map(({ W, b }, i) => {
          const sum = sums[i] as Layer;
          return { W: W.map((row, r) => plus(row, sum.W[r] as Vector, -factor)), b: plus(b, sum.b, -factor) };
        });
        const query = queries[t] as Vector;
        const [own1, own2] = seen as [Layer, Layer | undefined];
        const inner = apply(query, own1);
        out.push(plus(query, ln(own2 ? apply(inner.map(gelu), own2) : inner)));
      }
      layers = seen;
    }
    return out;
  });
}
