/** Sums over millions of terms: errors must not grow with their number. */
import { attention, attentionBackward, mergeStates, tensor } from 'flashattn';
import { describe, expect, it } from 'vitest';
import { testDevice } from '../support/device.js';

const device = testDevice;
const tolerance = 1e-6;
const lengths = [131072, 2 ** 21];

/** [1, length, 1, 1] */
const rows = (length: number, f: (i: number) => number) =>
  tensor(
    Float32Array.from({ length }, (_, i) => f(i)),
    [1, length, 1, 1],
    { device },
  );

function expectNear(actual: ArrayLike<number>, expected: ArrayLike<number>, limit = tolerance): void {
  expect(actual.length).toBe(expected.length);
  let worst = 0;
  for (let n = 0; n < expected.length; n++)
    worst = Math.max(worst, Math.abs((actual[n] as number) / (expected[n] as number) - 1) || 0);
  expect(worst).toBeLessThan(limit);
}

const sum = (length: number, f: (i: number) => number) => {
  let total = 0;
  for (let i = 0; i < length; i++) total += f(i);
  return total;
};

describe.each(lengths)('%i keys', (length) => {
  it('of one logit, seen by few queries', () => {
    const [q, k, v] = [rows(3, () => 0), rows(length, () => 0), rows(length, (j) => (j < length / 2 ? 1 : 0))];
    const result = attention(q, k, v);
    expectNear(result.out.dataSync(), [0.5, 0.5, 0.5]);
    expectNear(result.lse.dataSync(), new Array(3).fill(Math.log(length)));
    const { dv } = attentionBackward(
      rows(3, (i) => 1 + i),
      { q, k, v, ...result },
    );
    expectNear(dv.dataSync(), new Float64Array(length).fill(6 / length));
  });

  it('of many logits that rise slowly, seen by more queries than decode at once', () => {
    const key = (j: number) => Math.fround((3 * j) / length);
    const value = (j: number) => Math.fround(0.1 + key(j) / 7 + 0.01 * Math.sin(j));
    const queries = 9;
    const [q, k, v] = [rows(queries, () => 1), rows(length, key), rows(length, value)];
    const result = attention(q, k, v);
    const weights = sum(length, (j) => Math.exp(key(j)));
    const out = sum(length, (j) => Math.exp(key(j)) * value(j)) / weights;
    expectNear(result.out.dataSync(), new Array(queries).fill(out));
    expectNear(result.lse.dataSync(), new Array(queries).fill(Math.log(weights)));
    const { dq } = attentionBackward(
      rows(queries, (i) => 1 + i),
      { q, k, v, ...result },
    );
    const one = sum(length, (j) => Math.exp(key(j)) * (value(j) - out) * key(j)) / weights;
    // A difference of dP and delta, and delta is made of an `out` that was rounded.
    const wanted = Array.from({ length: queries }, (_, i) => one * (1 + i));
    expectNear(dq.dataSync(), wanted, 1e-5);
  });
});

it.each(lengths)('%i queries see few keys', { timeout: 600_000 }, (length) => {
  const keys = 3;
  const query = (i: number) => Math.fround(0.3 + 0.5 * Math.sin(i * 12.9898));
  const gradient = (i: number) => Math.fround(0.1 + 0.05 * Math.sin(i));
  const [key, value] = [(j: number) => Math.fround(0.3 * j), (j: number) => j - 0.7];
  const [q, k, v] = [rows(length, query), rows(keys, key), rows(keys, (j) => Math.fround(value(j)))];
  const bias = tensor(new Float32Array(keys), [1, 1, 1, keys], { device });
  const sink = tensor(Float32Array.of(0.5), [1], { device });
  const result = attention(q, k, v, { bias, sink });
  const got = attentionBackward(rows(length, gradient), { q, k, v, ...result }, { bias, sink });

  const expected = { dk: [0, 0, 0], dv: [0, 0, 0], dBias: [0, 0, 0], dSink: [0] };
  for (let i = 0; i < length; i++) {
    const e = Array.from({ length: keys }, (_, j) => Math.exp(query(i) * key(j)));
    const total = Math.exp(0.5) + e.reduce((a, b) => a + b);
    const p = e.map((x) => x / total);
    const out = p.reduce((a, x, j) => a + x * value(j), 0);
    p.forEach((x, j) => {
      const dLogit = x * gradient(i) * (value(j) - out);
      expected.dv[j] += x * gradient(i);
      expected.dk[j] += dLogit * query(i);
      expected.dBias[j] += dLogit;
    });
    expected.dSink[0] -= (Math.exp(0.5) / total) * gradient(i) * out;
  }
  // Each row's delta is a difference of rounded numbers: relative to the largest gradient.
  for (const [name, values] of Object.entries(expected)) {
    const actual = [...(got[name as 'dk'] as typeof got.dk).dataSync()];
    const largest = Math.max(...values.map(Math.abs));
    for (const [j, x] of values.entries())
      expect(Math.abs((actual[j] as number) - x) / largest, name).toBeLessThan(5e-6);
  }
});

it('merges thousands of parts', () => {
  const parts = 3000;
  const part = (n: number) => ({
    out: rows(1, () => (n < parts / 2 ? 1 : 0.1)),
    lse: tensor(Float32Array.of(0), [1, 1, 1], { device }),
  });
  const { out, lse } = mergeStates(Array.from({ length: parts }, (_, n) => part(n)));
  expectNear(out.dataSync(), [0.55]);
  expectNear(lse.dataSync(), [Math.log(parts)]);
});
