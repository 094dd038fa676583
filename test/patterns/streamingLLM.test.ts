import { patterns } from 'flashattn';
import { describe, expect, it } from 'vitest';
import { codeOf } from '../support/codeOf.js';
import { expectVisible, LENGTHS, range } from './visible.js';

describe('streamingLLM', () => {
  it('keeps the first and the latest tokens', () => {
    for (const queries of LENGTHS)
      for (const [start, recent] of [
        [4, 9],
        [0, 3],
        [63, 5],
        [70, 0],
        [2, 100],
      ] as const) {
        // The cache of the authors: after a step it is cut to its first and last entries.
        let cache: number[] = [];
        const seen = range(0, queries).map((i) => {
          const now = [...cache, i];
          cache = now.length > start + recent ? [...now.slice(0, start), ...now.slice(now.length - recent)] : now;
          return new Set(now);
        });
        expectVisible(patterns.streamingLLM({ start, recent }), { queries }, (i, j) => seen[i]?.has(j) === true);
      }
    expectVisible(patterns.streamingLLM(), { queries: 2, keys: 3 }, (i, j) => j <= i + 1);
    expect(codeOf(() => patterns.streamingLLM({ start: -1 }))).toBe('ERR_OPTION');
    expect(codeOf(() => patterns.streamingLLM({ recent: 0.5 }))).toBe('ERR_OPTION');
  });
});
