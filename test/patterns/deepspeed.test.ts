import { type Mask, patterns } from 'flashattn';
import { describe, expect, it } from 'vitest';
import { codeOf } from '../support/codeOf.js';
import { div, expectVisible, LENGTHS, range } from './visible.js';

describe('DeepSpeed', () => {
  type Config = patterns.DeepSpeedConfig;
  /** Whether block row r sees block column c. */
  type Blocks = (r: number, c: number, head: number) => boolean;

  const maskOf: { [Mode in Config['mode']]: (config: Extract<Config, { mode: Mode }>) => Mask } = {
    dense: patterns.deepspeedDense,
    fixed: patterns.deepspeedFixed,
    variable: patterns.deepspeedVariable,
    bigbird: patterns.deepspeedBigBird,
    bslongformer: patterns.deepspeedBSLongformer,
    localslidingwindow: patterns.deepspeedLocalSlidingWindow,
  };
  const build = (config: Config): Mask => (maskOf[config.mode] as (config: Config) => Mask)(config);
  const sizeOf = ({ length, block = 16 }: Config) => Math.ceil(length / block);
  /** Rows of the layout as lists of columns: [head][row]. */
  const columnsOf = (config: Config): number[][][] => {
    const layout = patterns.deepspeedLayout(config);
    const size = sizeOf(config);
    return range(0, config.heads ?? 1).map((h) =>
      range(0, size).map((r) => range(0, size).filter((c) => layout[(h * size + r) * size + c] === 1)),
    );
  };

  function expectBlocks(config: Config, sees: Blocks): void {
    const { length, block = 16, heads = 1 } = config;
    const rows = range(0, sizeOf(config));
    expect(columnsOf(config)).toEqual(range(0, heads).map((h) => rows.map((r) => rows.filter((c) => sees(r, c, h)))));
    expectVisible(build(config), { queries: length, heads }, (i, j, h) => sees(div(i, block), div(j, block), h));
  }

  it('Dense shows everything', () => {
    for (const length of LENGTHS) expectBlocks({ mode: 'dense', length, heads: 2 }, () => true);
  });

  const fixedCases: Omit<patterns.DeepSpeedFixedOptions, 'length'>[] = [
    {},
    { attention: 'unidirectional', block: 8 },
    { block: 5, numLocalBlocks: 6, numGlobalBlocks: 3, horizontalGlobalAttention: true },
    {
      block: 4,
      heads: 5,
      differentLayoutPerHead: true,
      numDifferentGlobalPatterns: 4,
      horizontalGlobalAttention: true,
    },
    {
      block: 4,
      heads: 3,
      differentLayoutPerHead: true,
      numLocalBlocks: 6,
      numGlobalBlocks: 2,
      numDifferentGlobalPatterns: 3,
      attention: 'unidirectional',
    },
  ];
  it.each(fixedCases)('Fixed %j', (options) => {
    for (const length of [1, 16, 60, 64, 150]) {
      const config = { mode: 'fixed', length, ...options } as const;
      const { numLocalBlocks: L = 4, numGlobalBlocks: G = 1, numDifferentGlobalPatterns: P = 1 } = options;
      const size = sizeOf(config);
      const past = options.attention === 'unidirectional';
      expectBlocks(config, (r, c, h) => {
        if (div(r, L) === div(c, L) && !(past && c > r)) return true;
        return range(0, Math.ceil(size / L)).some((window) => {
          const wanted = window * L + L - (1 + (h % P)) * G;
          const start = (window + 1) * L <= size ? wanted : Math.max(0, Math.min(wanted, size - G));
          const isIn = (block: number) => block >= start && block < start + G;
          return (isIn(c) && (!past || r >= start)) || (options.horizontalGlobalAttention === true && isIn(r));
        });
      });
    }
  });

  const variableCases: Omit<patterns.DeepSpeedVariableOptions, 'length'>[] = [
    {},
    { block: 4, localWindowBlocks: [1, 3, 2], globalBlockIndices: [0, 7, 99], heads: 2 },
    { block: 4, globalBlockIndices: [3], horizontalGlobalAttention: true },
    {
      block: 4,
      localWindowBlocks: [2, 5],
      globalBlockIndices: [3, 9, 60],
      globalBlockEndIndices: [5, 10, 61],
      attention: 'unidirectional',
    },
    { block: 8, globalBlockIndices: [1, 4], globalBlockEndIndices: [3, 50], horizontalGlobalAttention: true },
  ];
  it.each(variableCases)('Variable %j', (options) => {
    for (const length of LENGTHS) {
      const { localWindowBlocks: sizes = [4], globalBlockIndices: begins = [0], globalBlockEndIndices: ends } = options;
      const past = options.attention === 'unidirectional';
      // The window of every block, by walking over them.
      const windowOf: number[] = [];
      for (let window = 0; windowOf.length < 200; window++)
        windowOf.push(...Array<number>(sizes[Math.min(window, sizes.length - 1)] ?? 0).fill(window));
      expectBlocks({ mode: 'variable', length, ...options }, (r, c) => {
        if (windowOf[r] === windowOf[c] && !(past && c > r)) return true;
        return begins.some((begin, n) => {
          const isIn = (block: number) => block >= begin && block < (ends?.[n] ?? begin + 1);
          return (isIn(c) && (!past || r >= begin)) || (options.horizontalGlobalAttention === true && isIn(r));
        });
      });
    }
  });

  it.each(['bidirectional', 'unidirectional'] as const)(
    'BigBird, BSLongformer and LocalSlidingWindow, %s',
    (attention) => {
      const past = attention === 'unidirectional';
      const allowed = (r: number, c: number) => !past || c <= r;
      for (const [length, block] of [
        [48, 16],
        [150, 4],
        [130, 7],
      ] as const) {
        const common = { length, block, attention, heads: 2 };
        expectBlocks(
          { mode: 'bigbird', ...common, numRandomBlocks: 0, numGlobalBlocks: 2 },
          (r, c) => allowed(r, c) && (Math.abs(r - c) <= 1 || r < 2 || c < 2),
        );
        expectBlocks(
          { mode: 'bslongformer', ...common, globalBlockIndices: [0, 6] },
          (r, c) => allowed(r, c) && (Math.abs(r - c) <= 1 || [r, c].some((at) => at === 0 || at === 6)),
        );
        expectBlocks(
          { mode: 'bslongformer', ...common, globalBlockIndices: [1, 5], globalBlockEndIndices: [3, 7] },
          (r, c) => allowed(r, c) && (Math.abs(r - c) <= 1 || [r, c].some((at) => [1, 2, 5, 6].includes(at))),
        );
        for (const count of [1, 2, 3])
          expectBlocks(
            { mode: 'localslidingwindow', ...common, numSlidingWindowBlocks: count },
            (r, c) => allowed(r, c) && Math.abs(r - c) <= div(count, 2),
          );
      }
    },
  );

  it('LocalSlidingWindow is unidirectional by default', () => {
    expectBlocks({ mode: 'localslidingwindow', length: 100 }, (r, c) => c <= r && r - c <= 1);
  });

  describe('random blocks', () => {
    const bare = { length: 100, block: 5, heads: 3, differentLayoutPerHead: true } as const;
    const bigBird = { ...bare, mode: 'bigbird', numSlidingWindowBlocks: 1, numGlobalBlocks: 0 } as const;
    const variable = { ...bare, mode: 'variable', localWindowBlocks: [1], globalBlockIndices: [] } as const;

    it.each([bigBird, variable])('$mode: as many as asked for in each row, besides the diagonal', (config) => {
      for (const count of [0, 1, 4, 20])
        for (const row of columnsOf({ ...config, numRandomBlocks: count }).flat()) {
          expect(row.length).toBeGreaterThanOrEqual(Math.max(1, count));
          expect(row.length).toBeLessThanOrEqual(Math.min(20, count + 1));
        }
    });

    it('BigBird draws from the past when unidirectional, Variable from everywhere', () => {
      const options = { numRandomBlocks: 3, attention: 'unidirectional' } as const;
      for (const rows of columnsOf({ ...bigBird, ...options }))
        for (const [r, row] of rows.entries()) {
          expect(Math.max(...row)).toBe(r);
          expect(row.length).toBeGreaterThanOrEqual(Math.min(3, r + 1));
        }
      const future = columnsOf({ ...variable, ...options }).map((rows) =>
        rows.some((row, r) => row.some((c) => c > r)),
      );
      expect(future).toEqual([true, true, true]);
    });

    it.each([bigBird, variable])('$mode: the seed decides, and heads differ only when asked to', (config) => {
      const layout = (seed: number, heads = {}) => columnsOf({ ...config, numRandomBlocks: 2, seed, ...heads });
      expect(layout(7)).toEqual(layout(7));
      expect(layout(7)).not.toEqual(layout(8));
      const [a, b] = layout(7);
      expect(a).not.toEqual(b);
      const [c, d] = layout(7, { differentLayoutPerHead: false });
      expect(c).toEqual(a);
      expect(d).toEqual(a);
    });

    it.each([bigBird, variable])('$mode: given blocks replace those of the seed', (config) => {
      const random = range(0, 3).map((h) => range(0, 20).map((r) => [(r + h) % 20, (3 * r) % 20]));
      expectBlocks(
        { ...config, numRandomBlocks: 2, random },
        (r, c, h) => r === c || c === (r + h) % 20 || c === (3 * r) % 20,
      );
    });
  });

  it.each<[string, Config]>([
    ['a length of 0', { mode: 'dense', length: 0 }],
    ['a block of 0', { mode: 'dense', length: 64, block: 0 }],
    ['no heads', { mode: 'dense', length: 64, heads: 0 }],
    ['an unknown mode', { mode: 'sparse', length: 64 } as unknown as Config],
    ['a flag that is none', { mode: 'dense', length: 64, differentLayoutPerHead: 1 } as unknown as Config],
    ['an unknown direction', { mode: 'fixed', length: 64, attention: 'both' } as unknown as Config],
    ['a summary that does not divide its window', { mode: 'fixed', length: 64, numGlobalBlocks: 3 }],
    ['patterns for heads that are alike', { mode: 'fixed', length: 64, numDifferentGlobalPatterns: 2 }],
    [
      'too many patterns',
      { mode: 'fixed', length: 64, heads: 8, differentLayoutPerHead: true, numDifferentGlobalPatterns: 5 },
    ],
    [
      'horizontal unidirectional',
      { mode: 'fixed', length: 64, attention: 'unidirectional', horizontalGlobalAttention: true },
    ],
    ['no local window', { mode: 'variable', length: 64, localWindowBlocks: [] }],
    ['ends without begins', { mode: 'variable', length: 64, globalBlockIndices: [0], globalBlockEndIndices: [1, 2] }],
    ['an end at its begin', { mode: 'variable', length: 64, globalBlockIndices: [2], globalBlockEndIndices: [2] }],
    ['a broken seed', { mode: 'bigbird', length: 64, seed: 0.5 }],
    ['random blocks for too few rows', { mode: 'bigbird', length: 64, random: [[[0]]] }],
    ['a random block outside', { mode: 'bigbird', length: 64, random: [[[0], [1], [4], [0]]] }],
    ['a misspelt option', { mode: 'bigbird', length: 64, numGlobalBlock: 1 } as unknown as Config],
    ['an option of another mode', { mode: 'dense', length: 64, numGlobalBlocks: 1 } as unknown as Config],
    ['a negative global block', { mode: 'bslongformer', length: 64, globalBlockIndices: [-1] }],
  ])('refuses %s', (_, config) => {
    expect(codeOf(() => patterns.deepspeedLayout(config))).toBe('ERR_OPTION');
  });

  it('shows what there is of a sequence shorter than its windows, global and random blocks', () => {
    const everything = Array.from({ length: 16 }, () => 1);
    for (const config of [
      { mode: 'variable', length: 64, numRandomBlocks: 5, localWindowBlocks: [1] },
      { mode: 'bigbird', length: 64, numGlobalBlocks: 5 },
      { mode: 'bigbird', length: 64, numSlidingWindowBlocks: 9, numGlobalBlocks: 0, numRandomBlocks: 0 },
    ] as const)
      expect([...patterns.deepspeedLayout(config)]).toEqual(everything);
    expect([...patterns.deepspeedLayout({ mode: 'localslidingwindow', length: 32 })]).toEqual([1, 0, 1, 1]);
  });
});
