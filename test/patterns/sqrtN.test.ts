import { blockMask, patterns } from 'flashattn';
import { describe, expect, it } from 'vitest';
import { codeOf } from '../support/codeOf.js';
import { div, expectVisible, range } from './visible.js';

describe('sqrtN', () => {
  it('shows blocks, and the same offset in other blocks', () => {
    for (const length of [1, 2, 49, 50, 64, 150])
      for (const strided of [false, true])
        for (const causal of [false, true])
          for (const block of [undefined, 7]) {
            const b = block ?? range(1, length + 1).find((n) => n * n >= length) ?? 1;
            const mask = patterns.sqrtN({ length, strided, causal, ...(block && { block }) });
            expectVisible(
              mask,
              { queries: length },
              (i, j) => !(causal && j > i) && (div(i, b) === div(j, b) || (strided && i % b === j % b)),
            );
          }
  });

  it('refuses what is no length or block', () => {
    expect(codeOf(() => patterns.sqrtN({ length: -4 }))).toBe('ERR_OPTION');
    expect(codeOf(() => patterns.sqrtN({ length: 16, block: 0 }))).toBe('ERR_OPTION');
    expect(codeOf(() => blockMask(patterns.sqrtN({ length: 16 }), { nq: 17 }))).toBe('ERR_SHAPE');
  });
});
