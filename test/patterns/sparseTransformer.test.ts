import { type Mask, patterns } from 'flashattn';
import { describe, expect, it } from 'vitest';
import { codeOf } from '../support/codeOf.js';
import { div, expectVisible, LENGTHS, range, type Sees } from './visible.js';

describe('sparseTransformer', () => {
  it('has the local and strided attention of the code', () => {
    for (const queries of LENGTHS)
      for (const n of [1, 7, 70]) {
        expectVisible(patterns.sparseTransformerLocal(n), { queries }, (i, j) => j <= i && i - j < n);
        expectVisible(patterns.sparseTransformerStrided(n), { queries }, (i, j) => j <= i && (i - j) % n === 0);
      }
  });

  it.each([
    { block: 4, localAttnCtx: 16, numVerts: 1, vertSize: 2, heads: 2 },
    { block: 4, localAttnCtx: 16, numVerts: 4, vertSize: 1, heads: 8 },
    { block: 3, localAttnCtx: 18, numVerts: 2, vertSize: 2 },
    { block: 32, localAttnCtx: 128 },
  ])('has the fixed attention of the code %j', (options) => {
    const { block, localAttnCtx, numVerts: verts = 4, vertSize: v = 1 } = { numVerts: 4, vertSize: 1, ...options };
    const s = localAttnCtx / block;
    for (const length of [1, 64, 150])
      expectVisible(
        patterns.sparseTransformerFixed({ length, ...options }),
        { queries: length, heads: verts === 1 ? 1 : (options.heads ?? verts) },
        (i, j, h) => {
          const [r, c] = [div(i, block), div(j, block)];
          const summary = range(0, v).map((t) => s - 1 - (h % verts) * v - t);
          return j <= i && (div(r, s) === div(c, s) || summary.includes(c % s));
        },
      );
  });

  it('has the patterns of the paper, merged and by heads', () => {
    for (const length of LENGTHS)
      for (const [l, c] of [
        [6, 2],
        [1, 1],
        [70, 9],
      ] as const) {
        const own: Sees = (i, j) => j <= i && div(i, l) === div(j, l);
        const summaries: Sees = (i, j) => j <= i && j % l >= l - c;
        const near: Sees = (i, j) => j <= i && i - j <= l;
        const strides: Sees = (i, j) => j <= i && (i - j) % l === 0;
        const fixedOptions = { length, stride: l, summary: c };
        const pairs = [
          [(heads: object) => patterns.sparseTransformerPaperFixed({ ...fixedOptions, ...heads }), own, summaries],
          [(heads: object) => patterns.sparseTransformerPaperStrided({ stride: l, ...heads }), near, strides],
        ] as const;
        for (const [build, first, second] of pairs) {
          expectVisible(build({}), { queries: length }, (...at) => first(...at) || second(...at));
          expectVisible(build({ heads: 3 }), { queries: length, heads: 3 }, (i, j, h, b) =>
            (h === 1 ? second : first)(i, j, h, b),
          );
        }
      }
  });

  it.each<[string, () => Mask]>([
    ['a bandwidth of 0', () => patterns.sparseTransformerLocal(0)],
    ['a stride of 0', () => patterns.sparseTransformerStrided(0)],
    ['runs of no whole blocks', () => patterns.sparseTransformerFixed({ length: 64, localAttnCtx: 40 })],
    ['runs shorter than a block', () => patterns.sparseTransformerFixed({ length: 64, localAttnCtx: 16 })],
    [
      'a summary that does not divide its run',
      () => patterns.sparseTransformerFixed({ length: 64, localAttnCtx: 96, vertSize: 2 }),
    ],
    ['more summaries than fit a run', () => patterns.sparseTransformerFixed({ length: 64, localAttnCtx: 96 })],
    [
      'heads that the summaries do not divide',
      () => patterns.sparseTransformerFixed({ length: 64, localAttnCtx: 128, heads: 6 }),
    ],
    [
      'a summary longer than its run',
      () => patterns.sparseTransformerPaperFixed({ length: 64, stride: 4, summary: 5 }),
    ],
    ['a length of 0', () => patterns.sparseTransformerPaperFixed({ length: 0, stride: 4 })],
    ['no heads', () => patterns.sparseTransformerPaperStrided({ stride: 4, heads: 0 })],
  ])('refuses %s', (_, build) => {
    expect(codeOf(build)).toBe('ERR_OPTION');
  });
});
