/**
 * Attention whose heads are mixed, in float64 and pair by pair: talking heads and DCMHA. Tensors are row-major, q, k and v
 * [batch, seq, heads, dim].
 */
import { activations } from './activation.js';

const at = (values: ArrayLike<number>, index: number): number => values[index] ?? Number.NaN;
const list = <T>(length: number, f: (i: number) => T): T[] => Array.from({ length }, (_, i) => f(i));
const total = (values: readonly number[]): number => values.reduce((sum, x) => sum + x, 0);
/** One number a head. */
type Heads = readonly number[];

interface Sizes {
  readonly batch: number;
  readonly queries: number;
  readonly keys: number;
  readonly dim: number;
  readonly valueDim: number;
  /** Heads of q and k, of the softmax and of v. */
  readonly heads: number;
  readonly softmaxHeads: number;
  readonly valueHeads: number;
}

interface Attention extends Sizes {
  readonly q: Float64Array;
  readonly k: Float64Array;
  readonly v: Float64Array;
  readonly scale: number;
  readonly sees: (i: number, j: number) => boolean;
  /** The logits of the softmax from those of q . k, and weights from probabilities, of query i and key j. */
  readonly pre: (pair: Heads, b: number, i: number, j: number) => Heads;
  readonly post: (pair: Heads, b: number, i: number, j: number) => Heads;
}

/** A row that sees no key is zeros. */
function attend(c: Attention): Float64Array {
  const out = new Float64Array(c.batch * c.queries * c.valueHeads * c.valueDim);
  for (let b = 0; b < c.batch; b++)
    for (let i = 0; i < c.queries; i++) {
      const seen = list(c.keys, (j) => j).filter((j) => c.sees(i, j));
      const logits = seen.map((j) => {
        const products = list(c.heads, (h) => {
          const [query, key] = [(b * c.queries + i) * c.heads + h, (b * c.keys + j) * c.heads + h];
          let sum = 0;
          for (let d = 0; d < c.dim; d++) sum += at(c.q, query * c.dim + d) * at(c.k, key * c.dim + d);
          return c.scale * sum;
        });
        return c.pre(products, b, i, j);
      });
      const largest = list(c.softmaxHeads, (h) =>
        logits.reduce((most, pair) => Math.max(most, at(pair, h)), -Infinity),
      );
      const powers = logits.map((pair) => pair.map((x, h) => Math.exp(x - at(largest, h))));
      const sums = list(c.softmaxHeads, (h) => total(powers.map((pair) => at(pair, h))));
      for (const [n, j] of seen.entries()) {
        const shares = (powers[n] as Heads).map((x, h) => x / at(sums, h));
        for (const [h, weight] of c.post(shares, b, i, j).entries())
          for (let d = 0; d < c.valueDim; d++)
            out[((b * c.queries + i) * c.valueHeads + h) * c.valueDim + d] =
              at(out, ((b * c.queries + i) * c.valueHeads + h) * c.valueDim + d) +
              weight * at(c.v, ((b * c.keys + j) * c.valueHeads + h) * c.valueDim + d);
      }
    }
  return out;
}

export interface TalkingHeadsCase extends Sizes {
  readonly causal: boolean;
  readonly scale?: number;
}

export interface TalkingHeadsInputs {
  readonly q: Float64Array;
  readonly k: Float64Array;
  readonly v: Float64Array;
  /** [softmax heads, heads] and [value heads, softmax heads]; absent: the identity. */
  readonly logitsProjection?: Float64Array;
  readonly logitsBias?: Float64Array;
  readonly weightsProjection?: Float64Array;
  readonly weightsBias?: Float64Array;
}

export function talkingHeads(c: TalkingHeadsCase, inputs: TalkingHeadsInputs): Float64Array {
  const { q, k, v, logitsProjection, logitsBias, weightsProjection, weightsBias } = inputs;
  const mix = (pair: Heads, matrix: Float64Array | undefined, bias: Float64Array | undefined): Heads => {
    if (!matrix) return pair;
    return list(matrix.length / pair.length, (g) => {
      const sum = total(pair.map((x, h) => at(matrix, g * pair.length + h) * x));
      return sum + (bias ? at(bias, g) : 0);
    });
  };
  return attend({
    ...c,
    q,
    k,
    v,
    scale: c.scale ?? 1 / Math.sqrt(c.dim),
    sees: (i, j) => !c.causal || j <= i + c.keys - c.queries,
    pre: (pair) => mix(pair, logitsProjection, logitsBias),
    post: (pair) => mix(pair, weightsProjection, weightsBias),
  });
}

export interface DcmhaCase {
  readonly batch: number;
  readonly seq: number;
  readonly heads: number;
  readonly dim: number;
  readonly valueDim: number;
  readonly model: number;
  readonly hidden: number;
  readonly rank: number;
  /** How many keys before its own a query sees. */
  readonly window?: number;
  readonly scale?: number;
}

export interface DcmhaInputs {
  readonly q: Float64Array;
  readonly k: Float64Array;
  readonly v: Float64Array;
  /** [batch, seq, model] */
  readonly x: Float64Array;
  /** [model, 4, hidden] */
  readonly dw1: Float64Array;
  /** [4, hidden, 2 rank, heads] */
  readonly qkw: Float64Array;
  /** [model, 4 heads] */
  readonly dd: Float64Array;
  /** [heads in, heads out] */
  readonly swPre?: Float64Array;
  readonly swPost?: Float64Array;
}

/** Matrices [heads in][heads out] of one kind, by batch entry and token. */
function matrices(c: DcmhaCase, { x, dw1, qkw, dd }: DcmhaInputs, kind: number): number[][][] {
  return list(c.batch * c.seq, (token) => {
    const state = (m: number) => at(x, token * c.model + m);
    const hidden = list(c.hidden, (n) =>
      activations.gelu(total(list(c.model, (m) => state(m) * at(dw1, (m * 4 + kind) * c.hidden + n)))),
    );
    const rows = list(2 * c.rank, (r) =>
      list(c.heads, (h) =>
        total(hidden.map((y, n) => y * at(qkw, ((kind * c.hidden + n) * 2 * c.rank + r) * c.heads + h))),
      ),
    );
    const down = rows.slice(0, c.rank).map((row) => {
      const size = Math.sqrt(total(row.map((y) => y * y)) / c.heads + 1e-6);
      return row.map((y) => y / size);
    });
    const up = rows.slice(c.rank);
    return list(c.heads, (m) =>
      list(c.heads, (n) => {
        const low = total(down.map((row, i) => at(row, m) * at(up[i] as number[], n)));
        if (m !== n) return low;
        return low + Math.tanh(total(list(c.model, (e) => state(e) * at(dd, e * 4 * c.heads + kind * c.heads + n))));
      }),
    );
  });
}

export function dcmha(c: DcmhaCase, inputs: DcmhaInputs): Float64Array {
  const [preQuery, preKey, postQuery, postKey] = list(4, (n) => n).map((kind) => matrices(c, inputs, kind));
  const compose =
    (ofQuery: number[][][] | undefined, ofKey: number[][][] | undefined, fixed: Float64Array | undefined) =>
    (pair: Heads, b: number, i: number, j: number): Heads =>
      pair.map((own, n) => {
        let sum = own;
        for (const [m, x] of pair.entries())
          sum +=
            x *
            ((fixed ? at(fixed, m * c.heads + n) : 0) +
              at(ofQuery?.[b * c.seq + i]?.[m] ?? [], n) +
              at(ofKey?.[b * c.seq + j]?.[m] ?? [], n));
        return sum;
      });
  return attend({
    ...c,
    ...{ queries: c.seq, keys: c.seq, softmaxHeads: c.heads, valueHeads: c.heads },
    q: inputs.q,
    k: inputs.k,
    v: inputs.v,
    scale: c.scale ?? 1 / Math.sqrt(c.dim),
    sees: (i, j) => j <= i && i - j <= (c.window ?? Infinity),
    pre: compose(preQuery, preKey, inputs.swPre),
    post: compose(postQuery, postKey, inputs.swPost),
  });
}
