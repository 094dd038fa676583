/** Few queries over many keys: the way through native/cpu/attention/decode.h, of every number of heads, queries and keys. */
import { describe, expect, it } from 'vitest';
import { type Case, instantiate } from '../../verify/cases/case.js';
import { failuresOf } from '../../verify/cases/check.js';
import { runLibrary } from '../../verify/cases/library.js';
import { poisoned } from '../../verify/cases/poison.js';
import { magnitude, maxError, OUTPUT_TOLERANCE } from '../../verify/oracle/compare.js';

const decoding: Case = { seed: 900, layout: 'bshd', queryLength: 1, keyLength: 77, headDim: 20, valueDim: 12 };

describe('heads that share a tile', () => {
  const groups = [1, 2, 3, 4, 5, 6, 7, 8, 13, 32, 33].map((group) => ({ group, kvHeads: 3 }));
  const heads = [1, 5, 8, 9, 31, 33].map((kvHeads) => ({ group: 1, kvHeads }));
  it.each([...groups, ...heads])('%o', (sizes) => {
    for (const layout of ['bshd', 'bhsd'] as const)
      for (const options of [{}, { alibi: 'heads' }, { queryLength: 2, causal: true }] as const)
        expect(failuresOf({ ...decoding, layout, ...sizes, ...options }), JSON.stringify(options)).toEqual([]);
  });
});

describe('queries', () => {
  it('none in any sequence', () => {
    const packed = { ...decoding, layout: 'varlen', qLens: [1, 1], usedQ: [0, 0], kLens: [5, 6] } as const;
    for (const options of [{}, { alibi: 'heads' }] as const)
      expect(failuresOf({ ...packed, ...options }), JSON.stringify(options)).toEqual([]);
  });

  it.each([1, 2, 3, 4, 5, 6, 7, 8, 9])('%i of them', (queryLength) => {
    const sizes = { ...decoding, queryLength, kvHeads: 5, group: 3 };
    for (const options of [{}, { causal: true }, { window: [20, 3] }, { sink: true, softcap: 2 }] as const)
      expect(failuresOf({ ...sizes, ...options }), JSON.stringify(options)).toEqual([]);
  });
});

describe('keys', () => {
  it.each([1, 2, 7, 8, 9, 63, 64, 65, 511, 512, 513, 1100])('%i of them', (keyLength) => {
    const sizes = { ...decoding, batch: 2, keyLength, kvHeads: 2, group: 4 };
    for (const options of [{}, { sink: true }, { window: [100, 0] }, { kLens: [keyLength >> 1, keyLength] }] as const)
      expect(failuresOf({ ...sizes, ...options }), JSON.stringify(options)).toEqual([]);
  });
});

describe('rows', () => {
  const dims = [1, 3, 4, 8, 36, 64, 100, 128, 256];
  it.each(dims)('of %i elements', (headDim) => {
    for (const dtype of ['float32', 'float16', 'bfloat16'] as const)
      for (const group of [1, 4])
        expect(failuresOf({ ...decoding, dtype, headDim, valueDim: 257 - headDim, kvHeads: 9, group })).toEqual([]);
  });
});

describe('numbers that nobody sees', () => {
  it.each([NaN, Infinity])('%f behind a window and behind the end of the keys', (poison) => {
    for (const options of [{ window: [30, 0] }, { window: [30, 0], queryLength: 4 }, { kLens: [40] }] as const) {
      const { problem, dOut } = instantiate({ ...decoding, kvHeads: 9, group: 2, ...options });
      const hidden = 'kLens' in options ? ([40, 77] as const) : ([0, 40] as const);
      const key = poisoned(problem, 'key', problem.key, 0, hidden, poison);
      const value = poisoned(problem, 'value', problem.value, 0, hidden, poison);
      const expected = runLibrary({ problem, dOut });
      const actual = runLibrary({ problem: { ...problem, key, value }, dOut });
      for (const name of ['out', 'lse'])
        expect(maxError(actual[name] ?? [], expected[name] ?? [])).toBeLessThan(
          OUTPUT_TOLERANCE * magnitude(expected[name] ?? []),
        );
    }
  });
});
