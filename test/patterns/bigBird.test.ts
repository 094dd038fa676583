import { blockMask, patterns } from 'flashattn';
import { describe, expect, it } from 'vitest';
import { codeOf } from '../support/codeOf.js';
import { div, expectVisible, range } from './visible.js';

describe('bigBird', () => {
  it('shows its global blocks, its window and given random blocks', () => {
    for (const [length, block] of [
      [40, 4],
      [150, 10],
      [127, 10],
    ] as const) {
      const size = Math.ceil(length / block);
      const random = range(0, 2).map((h) => range(1, size - 1).map((r) => [(2 * r + h) % size, (5 * r) % size]));
      const sees = (r: number, c: number, h: number) =>
        [r, c].some((at) => at === 0 || at === size - 1) ||
        Math.abs(r - c) <= 1 ||
        c === (2 * r + h) % size ||
        c === (5 * r) % size;
      const mask = patterns.bigBird({ length, block, heads: 2, random });
      expectVisible(mask, { queries: length, heads: 2 }, (i, j, h) => sees(div(i, block), div(j, block), h));
    }
  });

  it('draws so many new blocks for each row', () => {
    const [size, block] = [12, 3];
    const rowsOf = (seed: number) => {
      const mask = patterns.bigBird({ length: size * block, block, numRandomBlocks: 4, heads: 2, seed });
      const compiled = blockMask(mask, { nq: size * block });
      return range(0, 2).map((h) =>
        range(0, size).map((r) => range(0, size).filter((c) => compiled.visible(0, h, r * block, c * block))),
      );
    };
    for (const rows of rowsOf(1))
      for (const [r, row] of rows.entries()) {
        const own = new Set([0, r - 1, r, r + 1, size - 1]);
        expect(row.length).toBe(r === 0 || r === size - 1 ? size : own.size + 4);
        for (const c of own) if (c >= 0 && c < size) expect(row).toContain(c);
      }
    expect(rowsOf(1)).toEqual(rowsOf(1));
    expect(rowsOf(1)).not.toEqual(rowsOf(2));
    expect(rowsOf(1)[0]).not.toEqual(rowsOf(1)[1]);
  });

  it('shows everything where there are no rows between the edges', () => {
    // Up to 5 blocks the first and last rows and the window leave no more than 3 for the random blocks to choose from.
    for (const length of [1, 64, 65, 128, 129, 256, 300])
      expectVisible(patterns.bigBird({ length }), { queries: length }, () => true);
  });

  it.each<[string, patterns.BigBirdOptions]>([
    ['a misspelt option', { length: 448, randomBlocks: 1 } as unknown as patterns.BigBirdOptions],
    ['random blocks for too few heads', { length: 256, heads: 2, random: [[[1], [1]]] }],
    ['random blocks for the edges', { length: 256, random: [[[1], [1], [1], [1]]] }],
    ['a negative count', { length: 64, numRandomBlocks: -1 }],
    ['a length that is none', { length: Number.NaN }],
  ])('refuses %s', (_, options) => {
    expect(codeOf(() => patterns.bigBird(options))).toBe('ERR_OPTION');
  });
});
