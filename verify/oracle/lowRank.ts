/**
 * Attention through matrices of low rank, in float64 and with every matrix written out: Linformer, Nystromformer, and the
 * truncated singular value decomposition. Tensors are row-major [batch, seq, heads, dim].
 */
import { svd } from './svd.js';

export interface LowRankShape {
  readonly batch: number;
  readonly seq: number;
  readonly heads: number;
  readonly dim: number;
  readonly valueDim: number;
}

export interface Qkv {
  readonly q: Float64Array;
  readonly k: Float64Array;
  readonly v: Float64Array;
}

/** [rows][columns] */
type Matrix = number[][];

const cell = (m: Matrix, i: number, j: number): number => m[i]?.[j] ?? Number.NaN;
const columnsOf = (m: Matrix): number => m[0]?.length ?? 0;
const make = (rows: number, columns: number, f: (i: number, j: number) => number): Matrix =>
  Array.from({ length: rows }, (_, i) => Array.from({ length: columns }, (_, j) => f(i, j)));
const turned = (m: Matrix): Matrix => make(columnsOf(m), m.length, (i, j) => cell(m, j, i));
const product = (a: Matrix, b: Matrix): Matrix =>
  make(a.length, columnsOf(b), (i, j) => b.reduce((total, _, k) => total + cell(a, i, k) * cell(b, k, j), 0));
const scaled = (m: Matrix, by: number): Matrix => m.map((row) => row.map((x) => x * by));
const softmax = (m: Matrix): Matrix =>
  m.map((row) => {
    const most = Math.max(...row);
    const powers = row.map((x) => Math.exp(x - most));
    const total = powers.reduce((sum, x) => sum + x, 0);
    return powers.map((x) => x / total);
  });

/** One head of [batch, seq, heads, last]. */
function headOf(t: Float64Array, d: { seq: number; heads: number }, last: number, b: number, h: number): Matrix {
  return make(d.seq, last, (i, j) => t[((b * d.seq + i) * d.heads + h) * last + j] ?? Number.NaN);
}

function eachHead(d: LowRankShape, run: (b: number, h: number) => Matrix): Float64Array {
  const out = new Float64Array(d.batch * d.seq * d.heads * d.valueDim);
  for (let b = 0; b < d.batch; b++)
    for (let h = 0; h < d.heads; h++)
      for (const [i, row] of run(b, h).entries()) out.set(row, ((b * d.seq + i) * d.heads + h) * d.valueDim);
  return out;
}

/**
 * Linformer of queries [batch, seq, heads, dim] and keys and values [batch, keys, kvHeads, ...].
 *
 * @param E [maxLength, k], or [kvHeads, maxLength, k] where it is so long
 */
export function linformer(
  d: LowRankShape & { readonly keys: number; readonly kvHeads: number; readonly maxLength: number; readonly k: number },
  { q, k, v }: Qkv,
  E: Float64Array,
  F: Float64Array,
): Float64Array {
  const own = { seq: d.keys, heads: d.kvHeads };
  const projection = (t: Float64Array, h: number) => {
    const from = t.length > d.maxLength * d.k ? h * d.maxLength * d.k : 0;
    return make(d.k, d.keys, (i, j) => t[from + j * d.k + i] ?? Number.NaN);
  };
  return eachHead(d, (b, h) => {
    const kvHead = Math.floor(h / (d.heads / d.kvHeads));
    const keys = product(projection(E, kvHead), headOf(k, own, d.dim, b, kvHead));
    const values = product(projection(F, kvHead), headOf(v, own, d.valueDim, b, kvHead));
    const scores = scaled(product(headOf(q, d, d.dim, b, h), turned(keys)), 1 / Math.sqrt(d.dim));
    return product(softmax(scores), values);
  });
}

export interface NystromParameters {
  readonly landmarks: number;
  readonly iterations: number;
  readonly perMatrix: boolean;
  /** By position of each batch entry whether it is real. */
  readonly real?: readonly boolean[];
  /** [heads, size] */
  readonly conv?: Float64Array;
  /** Zeros before the sequence. */
  readonly before: number;
}

const times = (m: Matrix, identity: number, sign = -1): Matrix =>
  m.map((row, i) => row.map((x, j) => (i === j ? identity : 0) + sign * x));

/** Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4 */
function pseudoInverse(A: Matrix, largest: number, iterations: number): Matrix {
  let Z = scaled(turned(A), 1 / largest);
  for (let n = 0; n < iterations; n++) {
    const AZ = product(A, Z);
    const inner = times(product(AZ, times(AZ, 7)), 15);
    Z = scaled(product(Z, times(product(AZ, inner), 13)), 0.25);
  }
  return Z;
}

const largestColumn = (A: Matrix): number =>
  Math.max(...turned(A).map((column) => column.reduce((sum, x) => sum + x, 0)));

/** Nystrom attention; with as many landmarks as tokens and none before them, softmax attention. */
export function nystrom(d: LowRankShape, { q, k, v }: Qkv, p: NystromParameters): Float64Array {
  const scale = 1 / Math.sqrt(d.dim);
  const isReal = (b: number, i: number) => p.real?.[b * d.seq + i] ?? true;
  const padded = (t: Float64Array, last: number, b: number, h: number): Matrix => [
    ...make(p.before, last, () => 0),
    ...headOf(t, d, last, b, h).map((row, i) => (isReal(b, i) ? row : row.map(() => 0))),
  ];
  const all: { q: Matrix; k: Matrix; v: Matrix; ql: Matrix; kl: Matrix; A: Matrix; b: number; h: number }[] = [];
  for (let b = 0; b < d.batch; b++)
    for (let h = 0; h < d.heads; h++) {
      const [Q, K, V] = [padded(q, d.dim, b, h), padded(k, d.dim, b, h), padded(v, d.valueDim, b, h)];
      const size = Q.length / p.landmarks;
      const means = (t: Matrix) =>
        make(p.landmarks, d.dim, (i, j) => {
          let total = 0;
          for (let n = 0; n < size; n++) total += cell(t, i * size + n, j);
          return total / size;
        });
      const [ql, kl] = [means(Q), means(K)];
      all.push({ q: Q, k: K, v: V, ql, kl, A: softmax(scaled(product(ql, turned(kl)), scale)), b, h });
    }
  const ofAll = Math.max(...all.map(({ A }) => largestColumn(A)));
  return eachHead(d, (b, h) => {
    const own = all[b * d.heads + h] as (typeof all)[number];
    const hidden = (m: Matrix) =>
      m.map((row) => row.map((x, j) => (j < p.before || isReal(b, j - p.before) ? x : Number.NEGATIVE_INFINITY)));
    let out: Matrix;
    if (p.landmarks === d.seq && p.before === 0)
      out = product(softmax(hidden(scaled(product(own.q, turned(own.k)), scale))), own.v);
    else {
      const first = softmax(scaled(product(own.q, turned(own.kl)), scale));
      const last = softmax(hidden(scaled(product(own.ql, turned(own.k)), scale)));
      const Z = pseudoInverse(own.A, p.perMatrix ? largestColumn(own.A) : ofAll, p.iterations);
      out = product(product(first, Z), product(last, own.v));
    }
    const size = p.conv ? p.conv.length / d.heads : 0;
    const reach = (size - 1) / 2;
    return make(d.seq, d.valueDim, (i, j) => {
      let total = cell(out, i + p.before, j);
      for (let n = 0; n < size; n++) {
        const from = i + p.before + n - reach;
        if (from >= 0 && from < own.v.length) total += (p.conv?.[h * size + n] ?? Number.NaN) * cell(own.v, from, j);
      }
      return total;
    });
  });
}

/** A_r v, and A's singular values of the first head. */
export function lowRankSvd(d: LowRankShape, { q, k, v }: Qkv, rank: number, causal: boolean): Float64Array {
  return eachHead(d, (b, h) => {
    const scores = scaled(
      product(headOf(q, d, d.dim, b, h), turned(headOf(k, d, d.dim, b, h))),
      1 / Math.sqrt(d.dim),
    ).map((row, i) => row.map((x, j) => (causal && j > i ? Number.NEGATIVE_INFINITY : x)));
    const A = softmax(scores);
    const right = svd(A.flat(), d.seq, d.seq).v;
    const kept = make(d.seq, rank, (i, j) => right[i * d.seq + j] ?? Number.NaN);
    return product(product(A, kept), product(turned(kept), headOf(v, d, d.valueDim, b, h)));
  });
}
