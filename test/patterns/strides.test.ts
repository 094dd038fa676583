import { type Mask, patterns } from 'flashattn';
import { describe, expect, it } from 'vitest';
import { codeOf } from '../support/codeOf.js';
import { expectVisible, LENGTHS, mod, type Sees } from './visible.js';

describe('strides', () => {
  it('has atrous, local, sparse and local dilated attention', () => {
    for (const queries of LENGTHS)
      for (const causal of [false, true])
        for (const k of [1, 5, 40]) {
          const after = (i: number, j: number) => causal && j > i;
          const near = (i: number, j: number) => Math.abs(i - j) <= k;
          const apart = (i: number, j: number) => mod(i - j, k) === 0;
          const check = (mask: Mask, sees: Sees) =>
            expectVisible(mask, { queries }, (...at) => !after(at[0], at[1]) && sees(...at));
          check(patterns.atrous(k, { causal }), apart);
          check(patterns.local(k, { causal }), near);
          check(patterns.sparse(k, { causal }), (i, j) => near(i, j) || apart(i, j));
          check(patterns.localDilated(k, 3, { causal }), (i, j) => mod(i - j, 3) === 0 && Math.abs(i - j) <= 3 * k);
        }
  });

  it('takes the alignment of the diagonal', () => {
    const dims = { queries: 20, keys: 90 };
    expectVisible(patterns.sparse(4), dims, (i, j) => Math.abs(i + 70 - j) <= 4 || mod(i + 70 - j, 4) === 0);
    expectVisible(patterns.local(4, { align: 'topLeft', causal: true }), dims, (i, j) => j <= i && i - j <= 4);
  });

  it.each<[string, () => Mask]>([
    ['a step of 0', () => patterns.atrous(0)],
    ['a negative reach', () => patterns.local(-1)],
    ['a step of 0 beside a window', () => patterns.sparse(0)],
    ['a rate of 0', () => patterns.localDilated(2, 0)],
    ['an unknown alignment', () => patterns.local(2, { align: 'left' } as unknown as patterns.StrideOptions)],
    ['a flag that is none', () => patterns.atrous(2, { causal: 1 } as unknown as patterns.StrideOptions)],
  ])('refuses %s', (_, build) => {
    expect(codeOf(build)).toBe('ERR_OPTION');
  });
});
