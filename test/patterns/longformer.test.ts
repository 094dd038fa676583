import { patterns } from 'flashattn';
import { describe, expect, it } from 'vitest';
import { codeOf } from '../support/codeOf.js';
import { expectVisible, LENGTHS, range } from './visible.js';

describe('longformer', () => {
  it('shows a window', () => {
    for (const queries of LENGTHS)
      for (const window of [0, 3, 80])
        expectVisible(patterns.longformer({ window }), { queries }, (i, j) => Math.abs(i - j) <= window);
  });

  it('dilates the window, per head too, and looks backwards when autoregressive', () => {
    for (const queries of LENGTHS)
      for (const autoregressive of [false, true]) {
        const w = 4;
        const sees = (i: number, j: number, d: number) =>
          range(-w, autoregressive ? 1 : w + 1).some((c) => j === i + d * c);
        const dilation = [1, 2, 7];
        const mask = patterns.longformer({ window: w, dilation, autoregressive });
        expectVisible(mask, { queries, heads: 3 }, (i, j, h) => sees(i, j, dilation[h] ?? 0));
        const shared = patterns.longformer({ window: w, dilation: 5, autoregressive });
        expectVisible(shared, { queries }, (i, j) => sees(i, j, 5));
      }
  });

  it('has global tokens, and tells their queries apart', () => {
    const globals = [[0, 40], [], [3, 64, 99]];
    const isGlobal = (at: number, b: number) => globals[b]?.includes(at) === true;
    const dims = { queries: 100, batch: 3 };
    const near = (i: number, j: number) => Math.abs(i - j) <= 5;
    const options = { window: 5, globals };
    expectVisible(patterns.longformer(options), dims, (i, j, _, b) => near(i, j) || isGlobal(i, b) || isGlobal(j, b));
    expectVisible(
      patterns.longformer({ ...options, queries: 'local' }),
      dims,
      (i, j, _, b) => !isGlobal(i, b) && (near(i, j) || isGlobal(j, b)),
    );
    expectVisible(patterns.longformer({ ...options, queries: 'global' }), dims, (i, _j, _h, b) => isGlobal(i, b));
    expectVisible(
      patterns.longformer({ window: 5, dilation: [1, 2], globals: [7], autoregressive: true }),
      { queries: 100, heads: 2 },
      (i, j, h) => j <= i && (i === 7 || j === 7 || ((i - j) % (h + 1) === 0 && i - j <= 5 * (h + 1))),
    );
  });

  it.each<[string, unknown]>([
    ['no window', {}],
    ['a negative window', { window: -1 }],
    ['a dilation of 0', { window: 2, dilation: 0 }],
    ['a dilation of 0 for a head', { window: 2, dilation: [1, 0] }],
    ['dilations for no head', { window: 2, dilation: [] }],
    ['a global token that is none', { window: 2, globals: [0.5] }],
    ['global tokens that are none', { window: 2, globals: 3 }],
    ['positions and lists of them', { window: 2, globals: [1, [2]] }],
    ['unknown queries', { window: 2, queries: 'some' }],
    ['a flag that is none', { window: 2, autoregressive: 'yes' }],
  ])('refuses %s', (_, options) => {
    expect(codeOf(() => patterns.longformer(options as patterns.LongformerOptions))).toBe('ERR_OPTION');
  });

  it('ignores global tokens beyond the sequence', () => {
    const globals = [9, 3, 1000];
    expectVisible(
      patterns.longformer({ window: 2, globals }),
      { queries: 9 },
      (i, j) => Math.abs(i - j) <= 2 || i === 3 || j === 3,
    );
    expectVisible(patterns.longformer({ window: 0, globals, queries: 'global' }), { queries: 3 }, () => false);
  });
});
