import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { permutation } from '../../lib/nn/permutation.js';

const all = (length: number, ...numbers: number[]) =>
  Array.from({ length }, (_, i) => i).map(permutation(length, ...numbers));

describe('permutation', () => {
  it('has each number once', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 3000 }), fc.maxSafeNat(), fc.nat(), (length, seed, epoch) => {
        const order = all(length, seed, epoch);
        expect(new Set(order).size).toBe(length);
        expect(Math.min(...order)).toBe(0);
        expect(Math.max(...order)).toBe(length - 1);
      }),
    );
  });

  it.each([255, 256, 257, 1023, 1024, 1025, 65535, 65536, 65537])('has each of %i numbers once', (length) => {
    const seen = new Uint8Array(length);
    for (const n of all(length, 1)) seen[n]++;
    expect(seen.every((times) => times === 1)).toBe(true);
  });

  it('stays within ranges that no list could hold', () => {
    for (const length of [2 ** 31 + 1, 2 ** 32, 2 ** 40 + 1, 2 ** 52]) {
      const at = permutation(length, 5);
      const places = Array.from({ length: 1000 }, (_, i) => (i * Math.floor(length / 1000)) % length);
      const found = places.map(at);
      expect(new Set(found).size).toBe(1000);
      expect(found.every((n) => Number.isInteger(n) && n >= 0 && n < length)).toBe(true);
      const mean = found.reduce((sum, n) => sum + n / length, 0) / 1000;
      expect(Math.abs(mean - 0.5)).toBeLessThan(0.05); // 5 standard deviations
    }
  });

  it('is the same for the same numbers and another for others, of whichever bit', () => {
    const order = all(100, 3, 4);
    expect(all(100, 3, 4)).toEqual(order);
    const others = [[4, 3], [3, 5], [3], [3, 4, 0], ...Array.from({ length: 53 }, (_, bit) => [3 + 2 ** bit, 4])];
    for (const numbers of others) {
      const same = all(100, ...numbers).filter((n, place) => n === order[place]).length;
      expect(same).toBeLessThan(12); // one is expected; beyond 10 comes once in 10^8
    }
  });

  it.each([2, 3, 5, 16, 20])('of %i puts each number at each place equally often, and each pair', (length) => {
    const runs = 4000;
    const counts = new Float64Array(length * length);
    const pairs = new Float64Array(length * length);
    for (let seed = 0; seed < runs; seed++) {
      const order = all(length, seed, 1);
      for (const [place, n] of order.entries()) counts[place * length + n]++;
      pairs[order[0] * length + order[1]]++;
    }
    const chiSquared = (observed: Float64Array, expected: number, counted: (cell: number) => boolean) =>
      observed.reduce((sum, n, cell) => sum + (counted(cell) ? (n - expected) ** 2 / expected : 0), 0);
    // Mean and deviation of chi squared are the degrees of freedom and the root of their double.
    const bound = (freedom: number) => freedom + 5 * Math.sqrt(2 * freedom) + 8;
    expect(chiSquared(counts, runs / length, () => true)).toBeLessThan(bound((length - 1) ** 2));
    const different = (cell: number) => Math.floor(cell / length) !== cell % length;
    const freedom = length * (length - 1) - 1;
    expect(chiSquared(pairs, runs / (freedom + 1), different)).toBeLessThan(bound(freedom));
  });
});
