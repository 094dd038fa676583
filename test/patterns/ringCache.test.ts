import { patterns } from 'flashattn';
import { describe, expect, it } from 'vitest';
import { codeOf } from '../support/codeOf.js';
import { expectVisible } from './visible.js';

describe('ringCache', () => {
  it('shows what the ring holds and is not later than the query', () => {
    for (const slots of [1, 16, 70])
      for (const written of [1, 15, 16, 37, 150])
        for (const queries of [1, 5, 40].filter((n) => n <= written)) {
          const ring = Array<number | undefined>(slots).fill(undefined);
          for (let token = 0; token < written; token++) ring[token % slots] = token;
          expectVisible(patterns.ringCache({ slots, written, queries }), { queries, keys: slots }, (i, s) => {
            const token = ring[s];
            return token !== undefined && token <= written - queries + i;
          });
        }
  });

  it.each([
    { slots: 0, written: 4, queries: 1 },
    { slots: 4, written: 2, queries: 3 },
    { slots: 4, written: -1, queries: 0 },
  ])('refuses %j', (options) => {
    expect(codeOf(() => patterns.ringCache(options))).toBe('ERR_OPTION');
  });
});
