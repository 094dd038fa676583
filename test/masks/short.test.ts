import { describe, expect, it } from 'vitest';
import { attention, blockMask, type Mask, masks, patterns, tensor } from '../../lib/index.js';

/** [query][key] of a compiled mask. */
function pairs(mask: Mask, nq: number, nk = nq): boolean[][] {
  const compiled = blockMask(mask, { nq, nk });
  return Array.from({ length: nq }, (_, i) => Array.from({ length: nk }, (_, j) => compiled.visible(0, 0, i, j)));
}

const all = (nq: number, nk: number, sees: (i: number, j: number) => boolean) =>
  Array.from({ length: nq }, (_, i) => Array.from({ length: nk }, (_, j) => sees(i, j)));

describe('descriptions for more tokens than there are', () => {
  it('globalTokens names those that are there', () => {
    expect(pairs(masks.globalTokens(16), 10)).toEqual(all(10, 10, () => true));
    expect(pairs(masks.globalTokens([2, 70]), 4)).toEqual(all(4, 4, (i, j) => i === 2 || j === 2));
    expect(pairs(masks.globalTokens([2, 70], { asQueries: false }), 1, 71)).toEqual(
      all(1, 71, (_, j) => j === 2 || j === 70),
    );
    // As queries, positions count from the first query of the call.
    expect(pairs(masks.globalTokens([0]), 1, 5)).toEqual(all(1, 5, () => true));
    expect(pairs(masks.globalTokens([4]), 1, 5)).toEqual(all(1, 5, (_, j) => j === 4));
    expect(pairs(masks.globalTokens([4], { asKeys: false }), 1, 5)).toEqual(all(1, 5, () => false));
  });

  it('prefix and prefixLM show all keys', () => {
    expect(pairs(masks.prefix(9), 8)).toEqual(all(8, 8, () => true));
    expect(pairs(masks.prefixLM(9), 2, 4)).toEqual(all(2, 4, () => true));
    expect(pairs(masks.prefix(3), 1, 8)).toEqual(all(1, 8, (_, j) => j < 3));
  });

  it('randomBlocks shows all blocks of a row', () => {
    const mask = masks.randomBlocks({ queries: 10, keys: 10, blockSize: 4, count: 9, seed: 1 });
    expect(pairs(mask, 10)).toEqual(all(10, 10, () => true));
  });

  it('streamingLLM and windows as well', () => {
    expect(pairs(patterns.streamingLLM({ start: 4, recent: 8 }), 1, 3)).toEqual(all(1, 3, () => true));
    expect(pairs(masks.and(masks.causal(), masks.slidingWindow(256, 0)), 3)).toEqual(all(3, 3, (i, j) => j <= i));
  });

  it('but documents must add up, as what is missing cannot be told', () => {
    expect(() => pairs(masks.documents([6, 4]), 1, 10)).toThrow('10 queries together; the mask is used with 1');
  });
});

describe('the mask of the README', () => {
  const mask = masks.and(masks.causal(), masks.or(masks.slidingWindow(256, 0), masks.globalTokens(16)));
  it.each([
    [10, 10],
    [1, 10],
    [1, 1],
    [1, 300],
    [3, 300],
  ])('is used with %d queries and %d keys', (nq, nk) => {
    // Equal logits: every row is the mean of the values that it sees.
    using q = tensor(new Float32Array(nq * 4), [1, nq, 1, 4]);
    using k = tensor(new Float32Array(nk * 4), [1, nk, 1, 4]);
    using v = tensor(
      Array.from({ length: nk * 4 }, (_, at) => Math.floor(at / 4)),
      [1, nk, 1, 4],
    );
    const { out, lse } = attention(q, k, v, { mask });
    const rows = out.toFloat32Sync();
    for (let i = 0; i < nq; i++) {
      const at = i + nk - nq;
      // A query among the first 16 of the call is global, so it sees all keys up to its own.
      const seen = Array.from({ length: at + 1 }, (_, j) => j).filter((j) => at - j <= 256 || j < 16 || i < 16);
      expect(rows[i * 4]).toBeCloseTo(seen.reduce((sum, j) => sum + j, 0) / seen.length, 3);
    }
    out.dispose();
    lse.dispose();
  });
});
