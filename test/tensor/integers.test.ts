/** What is kept of whole numbers that the host has written, against the numbers themselves. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { areWithin, extremesOf, joinExtremes } from '../../lib/tensor/integers.js';

const numbers = fc.array(fc.integer({ min: -4, max: 9 }), { maxLength: 8 });

describe('the extremes of whole numbers', () => {
  it('tell whether all but one value lie in a range', () => {
    fc.assert(
      fc.property(numbers, fc.nat({ max: 9 }), fc.option(fc.integer({ min: -4, max: 9 })), (list, count, allowed) => {
        const expected = list.every((x) => (x >= 0 && x < count) || x === allowed);
        expect(areWithin(extremesOf(list), count, allowed ?? undefined)).toBe(expected);
      }),
      { numRuns: 2000 },
    );
  });

  it('of two lists are those of both', () => {
    fc.assert(
      fc.property(numbers, numbers, (a, b) => {
        expect(joinExtremes(extremesOf(a), extremesOf(b))).toEqual(extremesOf([...a, ...b]));
      }),
    );
  });
});
