/** The learned masks of SparseBERT, pair by pair. */
import { dot, mixed, softmaxOf, Tokens, upTo } from './rows.js';

export interface SparseBertCase {
  readonly batch: number;
  readonly seq: number;
  readonly heads: number;
  readonly dim: number;
  readonly valueDim: number;
  readonly temperature: number;
}

type Arrays = Readonly<Record<string, Float64Array>>;

const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));
const at = (t: ArrayLike<number> | undefined, index: number): number => t?.[index] as number;

/** The difference of the two logits of each distance of each head, and its share. */
export function keepsOf(c: SparseBertCase, { alphas, noise }: Arrays): { p: number[]; hard: number[] } {
  const logit = (i: number) => at(alphas, i) - (noise ? Math.log(at(noise, i) + 1e-5) : 0);
  const gaps = upTo(c.heads * c.seq).map((i) => logit(2 * i) - logit(2 * i + 1));
  return { p: gaps.map((gap) => sigmoid(gap / c.temperature)), hard: gaps.map((gap) => (gap >= 0 ? 1 : 0)) };
}

/** @param keep by head and distance */
export function sparseBert(c: SparseBertCase, inputs: Arrays, keep: readonly number[]): Float64Array {
  return overPairs(c, inputs, (logits, { b, h, i }) =>
    softmaxOf(
      logits.map((x, j) => {
        const kept = keep[h * c.seq + Math.abs(i - j)] as number;
        return x + (inputs.mask ? at(inputs.mask, b * c.seq + j) : 0) - 10_000 * (1 - kept);
      }),
    ),
  );
}

/** @param mask by head, query and key */
export function unstructured(c: SparseBertCase, inputs: Arrays, mask: readonly number[]): Float64Array {
  return overPairs(c, inputs, (logits, { h, i }) =>
    softmaxOf(logits).map((p, j) => p * (mask[(h * c.seq + i) * c.seq + j] as number)),
  );
}

interface Query {
  readonly b: number;
  readonly h: number;
  readonly i: number;
}

function overPairs(
  c: SparseBertCase,
  inputs: Arrays,
  weigh: (logits: number[], query: Query) => number[],
): Float64Array {
  const q = new Tokens(inputs.q as Float64Array, c.seq, c.heads, c.dim);
  const k = new Tokens(inputs.k as Float64Array, c.seq, c.heads, c.dim);
  const v = new Tokens(inputs.v as Float64Array, c.seq, c.heads, c.valueDim);
  const out: number[] = [];
  for (const b of upTo(c.batch))
    for (const i of upTo(c.seq))
      for (const h of upTo(c.heads)) {
        const logits = upTo(c.seq).map((j) => dot(q.row(b, i, h), k.row(b, j, h)) / Math.sqrt(c.dim));
        const rows = upTo(c.seq).map((j) => v.row(b, j, h));
        out.push(...mixed(weigh(logits, { b, h, i }), rows, c.valueDim));
      }
  return Float64Array.from(out);
}
