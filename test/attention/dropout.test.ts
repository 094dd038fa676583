/** Which elements dropout drops, seen through the library: with queries of zero every probability is the same. */
import { attention, attentionBackward, type Tensor, tensor, zeros } from 'flashattn';
import { describe, expect, it } from 'vitest';
import { keptElements } from '../../verify/oracle/philox.js';

const [batch, queries, keys, heads] = [2, 70, 133, 2];

function identity(rows: number, columns: number): Float32Array {
  return Float32Array.from({ length: rows * columns }, (_, n) => (Math.floor(n / columns) === n % columns ? 1 : 0));
}

/** [batch, rows, heads, dim] with the same matrix [rows, dim] for every batch entry and head. */
function repeated(
  matrix: Float32Array,
  rows: number,
  dim: number,
): Tensor<'float32', readonly [number, number, number, number]> {
  const values = Float32Array.from({ length: batch * rows * heads * dim }, (_, n) => {
    const row = Math.floor(n / (heads * dim)) % rows;
    return matrix[row * dim + (n % dim)] ?? 0;
  });
  return tensor(values, [batch, rows, heads, dim]);
}

const q = zeros([batch, queries, heads, 8]);
const k = zeros([batch, keys, heads, 8]);

interface Dropout {
  readonly p: number;
  readonly seed: number | bigint;
}

/** With values of the identity, out[i][j] is the dropped probability (i, j). */
function forwardMask(dropout: Dropout): boolean[] {
  const v = repeated(identity(keys, keys), keys, keys);
  return Array.from(attention(q, k, v, { dropout }).out.toFloat32Sync(), (x) => x !== 0);
}

/** With output gradients of the identity, dv[j][i] is the dropped probability (i, j). Gives [batch, query, head, key]. */
function backwardMask(dropout: Dropout): boolean[] {
  const v = repeated(new Float32Array(keys * queries).fill(1), keys, queries);
  const saved = { q, k, v, ...attention(q, k, v, { dropout }) };
  const dOut = repeated(identity(queries, queries), queries, queries);
  const dv = attentionBackward(dOut, saved, { dropout }).dv.toFloat32Sync();
  return Array.from({ length: batch * queries * heads * keys }, (_, n) => {
    const [j, h, i] = [n % keys, Math.floor(n / keys) % heads, Math.floor(n / (keys * heads)) % queries];
    const b = Math.floor(n / (keys * heads * queries));
    return dv[((b * keys + j) * heads + h) * queries + i] !== 0;
  });
}

function oracleMask(dropout: Dropout): boolean[] {
  const mask: boolean[] = [];
  for (let b = 0; b < batch; b++) {
    for (let i = 0; i < queries; i++) {
      for (let h = 0; h < heads; h++) mask.push(...keptElements(dropout, b * heads + h, i, keys));
    }
  }
  return mask;
}

const differences = (a: readonly boolean[], b: readonly boolean[]): number => a.filter((x, n) => x !== b[n]).length;

describe('dropout', () => {
  it.each<Dropout>([
    { p: 0.1, seed: 0 },
    { p: 0.5, seed: 42 },
    { p: 0.93, seed: Number.MAX_SAFE_INTEGER },
    { p: 0.3, seed: 2n ** 64n - 1n },
    { p: 0.3, seed: 0x9e3779b97f4a7c15n },
    { p: 1e-9, seed: 3 },
  ])('drops the elements of Philox, forward and backward: $p, $seed', (dropout) => {
    const expected = oracleMask(dropout);
    expect(differences(forwardMask(dropout), expected)).toBe(0);
    expect(differences(backwardMask(dropout), expected)).toBe(0);
  });

  it.each([0.05, 0.25, 0.5, 0.8])('keeps 1 - p of all elements: %f', (p) => {
    const kept = forwardMask({ p, seed: 2024 }).filter(Boolean).length;
    const count = batch * queries * heads * keys;
    const deviation = Math.sqrt(count * p * (1 - p));
    expect(Math.abs(kept - count * (1 - p))).toBeLessThan(4 * deviation);
  });

  it('does not repeat itself between rows, heads and batch entries', () => {
    const mask = forwardMask({ p: 0.5, seed: 8 });
    const rows = Array.from({ length: batch * queries * heads }, (_, row) =>
      mask
        .slice(row * keys, (row + 1) * keys)
        .map(Number)
        .join(''),
    );
    expect(new Set(rows).size).toBe(rows.length);
  });

  it('depends on both halves of the seed', () => {
    const mask = forwardMask({ p: 0.5, seed: 8 });
    expect(differences(forwardMask({ p: 0.5, seed: 9 }), mask)).toBeGreaterThan(mask.length / 3);
    expect(differences(forwardMask({ p: 0.5, seed: 8n + (1n << 32n) }), mask)).toBeGreaterThan(mask.length / 3);
  });

  it('of p = 0 changes nothing, and lse is that of the undropped row', () => {
    const v = repeated(identity(keys, keys), keys, keys);
    const plain = attention(q, k, v);
    const none = attention(q, k, v, { dropout: { p: 0, seed: 1 } });
    const half = attention(q, k, v, { dropout: { p: 0.5, seed: 1 } });
    expect(none.out.dataSync()).toEqual(plain.out.dataSync());
    expect(half.lse.dataSync()).toEqual(plain.lse.dataSync());
  });
});
