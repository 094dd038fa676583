/**
 * The patterns that regroup tokens, against their definitions in float64: forward passes written as plain loops over
 * the pairs that see each other, gradients by central differences of them.
 */
import { type FloatDType, memory, type Tensor, tensor, zeros } from 'flashattn';
import { afterEach, beforeEach, expect } from 'vitest';
import { GRADIENT_TOLERANCE, magnitude, maxError, OUTPUT_TOLERANCE } from '../../verify/oracle/compare.js';
import { normal } from '../../verify/oracle/random.js';

export type Named = Readonly<Record<string, Float64Array>>;
/** A tensor whose rank TypeScript does not know. */
type Any<D extends FloatDType = FloatDType> = Tensor<D, never>;

export interface Dims {
  readonly batch: number;
  readonly tokens: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly dim: number;
  readonly valueDim: number;
}

export interface Key {
  readonly row: ArrayLike<number>;
  readonly value: ArrayLike<number>;
  readonly bias?: number;
  /** Multiplies the probability after the softmax. */
  readonly weight?: number;
}

export const sumOf = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);
export const dot = (a: ArrayLike<number>, b: ArrayLike<number>): number =>
  sumOf(Array.from(a, (x, d) => x * (b[d] ?? NaN)));

/** softmax(scale * query . key + bias), weighted, times the values. */
export function attend(
  query: ArrayLike<number>,
  keys: readonly Key[],
  scale: number,
): { out: number[]; lse: number; mass: number } {
  const logits = keys.map((key) => scale * dot(query, key.row) + (key.bias ?? 0));
  const largest = Math.max(...logits);
  const lse = keys.length === 0 ? -Infinity : largest + Math.log(sumOf(logits.map((x) => Math.exp(x - largest))));
  const shares = keys.map((key, n) => Math.exp((logits[n] ?? NaN) - lse) * (key.weight ?? 1));
  const out = Array.from(keys[0]?.value ?? [], (_, d) =>
    sumOf(keys.map((key, n) => (shares[n] ?? NaN) * (key.value[d] ?? NaN))),
  );
  return { out, lse, mass: sumOf(shares) };
}

/** Row (b, token, head) of [batch, tokens, heads, dim]. */
export function rowOf(
  values: Float64Array,
  [, tokens, heads, dim]: readonly number[],
  b: number,
  token: number,
  head: number,
): Float64Array {
  const at = ((b * (tokens ?? 0) + token) * (heads ?? 0) + head) * (dim ?? 0);
  return values.subarray(at, at + (dim ?? 0));
}

export const range = (length: number): number[] => Array.from({ length }, (_, i) => i);

export interface Pair {
  readonly b: number;
  readonly h: number;
  readonly i: number;
  /** The query, and key j as the query sees it; -1 is a key of zeros. */
  readonly query: Float64Array;
  readonly key: (j: number, extra?: Partial<Key>) => Key;
}

/** Fills out row by row. */
export function eachRow(d: Dims, { q, k, v }: Named, rowOut: (row: Pair) => readonly number[]): Float64Array {
  const out = new Float64Array(d.batch * d.tokens * d.heads * d.valueDim);
  if (!q || !k || !v) throw new Error('incomplete inputs');
  const keyTokens = k.length / (d.batch * d.kvHeads * d.dim);
  for (const b of range(d.batch)) {
    for (const i of range(d.tokens)) {
      for (const h of range(d.heads)) {
        const kvHead = Math.floor(h / (d.heads / d.kvHeads));
        const key = (j: number, extra: Partial<Key> = {}): Key => ({
          row: j < 0 ? new Float64Array(d.dim) : rowOf(k, [0, keyTokens, d.kvHeads, d.dim], b, j, kvHead),
          value: j < 0 ? new Float64Array(d.valueDim) : rowOf(v, [0, keyTokens, d.kvHeads, d.valueDim], b, j, kvHead),
          ...extra,
        });
        const query = rowOf(q, [0, d.tokens, d.heads, d.dim], b, i, h);
        out.set(rowOut({ b, h, i, query, key }), ((b * d.tokens + i) * d.heads + h) * d.valueDim);
      }
    }
  }
  return out;
}

const STEP = 1e-5;

/** The gradient of sum(out * dOut) with respect to every input. */
export function differences(inputs: Named, dOut: Float64Array, forward: (inputs: Named) => Float64Array): Named {
  const loss = (moved: Named): number => dot(forward(moved), dOut);
  return Object.fromEntries(
    Object.entries(inputs).map(([name, values]) => {
      const at = (n: number, step: number): number => {
        const moved = values.slice();
        moved[n] = (moved[n] ?? NaN) + step;
        return loss({ ...inputs, [name]: moved });
      };
      return [name, values.map((_, n) => (at(n, STEP) - at(n, -STEP)) / (2 * STEP))];
    }),
  );
}

export function data(size: number, seed: number): Float64Array {
  return normal(size, seed).map(Math.fround);
}

const made: Tensor[] = [];
export function own<T extends Tensor>(t: T): T {
  made.push(t);
  return t;
}
export const load = <D extends FloatDType = 'float32'>(
  values: Float64Array | undefined,
  shape: readonly number[],
  dtype?: D,
): Any<D> =>
  own(tensor(values ?? new Float64Array(0), shape, { ...(dtype && { dtype }) }) as Tensor) as Tensor as Any<D>;
export const values = (t: Tensor | undefined): Float64Array => Float64Array.from(own(t ?? zeros([0])).toFloat32Sync());

export function inputsOf(d: Dims, seed: number, keyTokens = d.tokens): Named {
  return {
    q: data(d.batch * d.tokens * d.heads * d.dim, seed),
    k: data(d.batch * keyTokens * d.kvHeads * d.dim, seed + 1),
    v: data(d.batch * keyTokens * d.kvHeads * d.valueDim, seed + 2),
  };
}

export function expectClose(actual: Named, expected: Named, tolerance: number): void {
  for (const [name, exact] of Object.entries(expected)) {
    expect.soft(maxError(actual[name] ?? [], exact) / magnitude(exact), name).toBeLessThanOrEqual(tolerance);
  }
}

/** Compares out and the gradients, both by the names of the inputs. */
export function check(
  inputs: Named,
  dOut: Float64Array,
  forward: (inputs: Named) => Float64Array,
  actual: { out: Tensor; gradients: Readonly<Record<string, Tensor | undefined>> },
  gradientForward = forward,
): void {
  expectClose({ out: values(actual.out) }, { out: forward(inputs) }, OUTPUT_TOLERANCE);
  const gradients = Object.fromEntries(Object.entries(actual.gradients).map(([name, t]) => [name, values(t)]));
  expectClose(gradients, differences(inputs, dOut, gradientForward), GRADIENT_TOLERANCE);
}

let tensorsBefore = 0;
beforeEach(() => {
  tensorsBefore = memory().tensors;
});
afterEach(() => {
  for (const t of made.splice(0)) t.dispose();
  // Whatever a pattern made for itself is gone, after errors too.
  expect(memory().tensors).toBe(tensorsBefore);
});
