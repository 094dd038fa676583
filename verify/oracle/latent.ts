/** xPos and multi-head latent attention in float64, token by token. Tensors are row-major. */

type Vector = readonly number[];

const at = (v: ArrayLike<number> | undefined, i: number): number => v?.[i] ?? Number.NaN;
const dot = (a: Vector, b: Vector): number => a.reduce((total, x, i) => total + x * at(b, i), 0);
const rowOf = (t: Float64Array, row: number, width: number): Vector => [...t.subarray(row * width, (row + 1) * width)];
/** x W^T of W [outputs, x.length] */
const through = (x: Vector, w: Float64Array): Vector =>
  Array.from({ length: w.length / x.length }, (_, o) => dot(x, rowOf(w, o, x.length)));

/** Neighbouring dims turned together, by angles of their pair. */
const turned = (x: Vector, angleOf: (pair: number) => number): Vector =>
  x.map((value, i) => {
    const angle = angleOf(Math.floor(i / 2));
    return i % 2 === 0
      ? value * Math.cos(angle) - at(x, i + 1) * Math.sin(angle)
      : value * Math.cos(angle) + at(x, i - 1) * Math.sin(angle);
  });

function attend(scores: Vector, values: readonly Vector[]): { out: number[]; lse: number } {
  const most = Math.max(...scores);
  const powers = scores.map((s) => Math.exp(s - most));
  const total = powers.reduce((sum, p) => sum + p, 0);
  const out = (values[0] ?? []).map((_, c) =>
    values.reduce((sum, v, j) => sum + (at(powers, j) / total) * at(v, c), 0),
  );
  return { out, lse: most + Math.log(total) };
}

export interface XposShape {
  readonly batch: number;
  readonly queries: number;
  readonly keys: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly dim: number;
  readonly valueDim: number;
  readonly base: number;
  readonly scaleBase: number;
  readonly causal: boolean;
}

/** Scores as the paper's equation has them, of the distance alone: Re(sum over pairs of q k* zeta^(n / base) e^(i n theta)). */
export function xpos(
  d: XposShape,
  { q, k, v }: { readonly q: Float64Array; readonly k: Float64Array; readonly v: Float64Array },
): Float64Array {
  const out: number[] = [];
  const half = d.dim / 2;
  for (let b = 0; b < d.batch; b++)
    for (let i = 0; i < d.queries; i++)
      for (let h = 0; h < d.heads; h++) {
        const kvHead = Math.floor(h / (d.heads / d.kvHeads));
        const position = i + d.keys - d.queries;
        const query = rowOf(q, (b * d.queries + i) * d.heads + h, d.dim);
        const seen = Array.from({ length: d.causal ? position + 1 : d.keys }, (_, j) => j);
        const scores = seen.map((j) => {
          const key = rowOf(k, (b * d.keys + j) * d.kvHeads + kvHead, d.dim);
          let total = 0;
          for (let f = 0; f < half; f++) {
            const distance = position - j;
            const zeta = (2 * f + 0.4 * d.dim) / (1.4 * d.dim);
            const angle = distance * d.base ** (-f / half);
            const [a, c] = [at(query, 2 * f), at(query, 2 * f + 1)];
            const [x, y] = [at(key, 2 * f), at(key, 2 * f + 1)];
            // The real and imaginary parts of (a + i c) (x - i y).
            const [real, imaginary] = [a * x + c * y, c * x - a * y];
            total += zeta ** (distance / d.scaleBase) * (real * Math.cos(angle) - imaginary * Math.sin(angle));
          }
          return total / Math.sqrt(d.dim);
        });
        const values = seen.map((j) => rowOf(v, (b * d.keys + j) * d.kvHeads + kvHead, d.valueDim));
        out.push(...attend(scores, values).out);
      }
  return Float64Array.from(out);
}

export interface MlaShape {
  readonly batch: number;
  readonly seq: number;
  readonly width: number;
  readonly heads: number;
  readonly nope: number;
  readonly rope: number;
  readonly value: number;
  readonly rank: number;
  readonly scale?: number;
}

export interface MlaOracleWeights {
  readonly q: Float64Array;
  readonly qDown?: Float64Array;
  readonly qNorm?: Float64Array;
  readonly kvDown: Float64Array;
  readonly kvNorm: Float64Array;
  readonly kvUp: Float64Array;
}

const normed = (x: Vector, gain: Float64Array, epsilon = 1e-6): Vector => {
  const size = Math.sqrt(dot(x, x) / x.length + epsilon);
  return x.map((value, i) => (value / size) * at(gain, i));
};

/** Multi-head latent attention before the projection back: [batch, seq, heads * value]. */
export function mla(d: MlaShape, x: Float64Array, w: MlaOracleWeights, frequencies: ArrayLike<number>): Float64Array {
  const out: number[] = [];
  const scale = d.scale ?? 1 / Math.sqrt(d.nope + d.rope);
  for (let b = 0; b < d.batch; b++) {
    const tokens = Array.from({ length: d.seq }, (_, t) => {
      const own = rowOf(x, b * d.seq + t, d.width);
      const turn = (part: Vector) => turned(part, (pair) => t * at(frequencies, pair));
      const source = w.qDown && w.qNorm ? normed(through(own, w.qDown), w.qNorm) : own;
      const queries = through(source, w.q);
      const down = through(own, w.kvDown);
      const latent = normed(down.slice(0, d.rank), w.kvNorm);
      const keyRope = turn(down.slice(d.rank));
      const up = through(latent, w.kvUp);
      return Array.from({ length: d.heads }, (_, h) => {
        const query = queries.slice(h * (d.nope + d.rope), (h + 1) * (d.nope + d.rope));
        const both = up.slice(h * (d.nope + d.value), (h + 1) * (d.nope + d.value));
        return {
          query: [...query.slice(0, d.nope), ...turn(query.slice(d.nope))],
          key: [...both.slice(0, d.nope), ...keyRope],
          value: both.slice(d.nope),
        };
      });
    });
    for (const [t, heads] of tokens.entries())
      for (const [h, { query }] of heads.entries()) {
        const before = tokens.slice(0, t + 1).map((token) => token[h] as (typeof heads)[number]);
        const scores = before.map(({ key }) => scale * dot(query, key));
        out.push(
          ...attend(
            scores,
            before.map(({ value }) => value),
          ).out,
        );
      }
  }
  return Float64Array.from(out);
}

/** Frequencies of YaRN by the definition of the paper: of the wavelengths, how often they fit. */
export function yarn(
  dims: number,
  base: number,
  p: { readonly factor: number; readonly originalLength: number; readonly betaFast: number; readonly betaSlow: number },
): number[] {
  // The pair that turns so many times within the original length, in real numbers.
  const pairOf = (turns: number) => (dims / 2) * (Math.log(p.originalLength / (2 * Math.PI * turns)) / Math.log(base));
  const low = Math.max(0, Math.floor(pairOf(p.betaFast)));
  const high = Math.min(dims - 1, Math.ceil(pairOf(p.betaSlow)));
  return Array.from({ length: dims / 2 }, (_, pair) => {
    const own = base ** ((-2 * pair) / dims);
    const keep = low === high ? (pair > low ? 0 : 1) : 1 - Math.min(1, Math.max(0, (pair - low) / (high - low)));
    return keep * own + (1 - keep) * (own / p.factor);
  });
}
