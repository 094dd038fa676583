/** The named patterns against their formulas, element by element. */
import { blockMask, FlashAttnError, type Mask, masks, patterns } from 'flashattn';
import { describe, expect, it } from 'vitest';

type Sees = (i: number, j: number, head: number, batch: number) => boolean;

interface Dims {
  readonly queries: number;
  readonly keys?: number;
  readonly heads?: number;
  readonly batch?: number;
}

/** Compares every pair, with blocks of both sizes. */
function expectVisible(mask: Mask, dims: Dims, sees: Sees): void {
  const { queries, keys = queries, heads = 1, batch = 1 } = dims;
  for (const blockSize of [64, 128] as const) {
    const compiled = blockMask(mask, { nq: queries, nk: keys, blockSize });
    const wrong: string[] = [];
    for (let b = 0; b < batch; b++)
      for (let h = 0; h < heads; h++)
        for (let i = 0; i < queries; i++)
          for (let j = 0; j < keys; j++)
            if (compiled.visible(b, h, i, j) !== sees(i, j, h, b)) wrong.push(`batch ${b} head ${h}: ${i} -> ${j}`);
    expect(wrong.slice(0, 5)).toEqual([]);
  }
}

const div = (a: number, b: number) => Math.floor(a / b);
const mod = (a: number, b: number) => ((a % b) + b) % b;
const range = (begin: number, end: number) => Array.from({ length: Math.max(0, end - begin) }, (_, n) => begin + n);
const LENGTHS = [1, 50, 64, 65, 150];

function codeOf(action: () => unknown): string {
  try {
    action();
  } catch (error) {
    return error instanceof FlashAttnError ? error.code : String(error);
  }
  return 'none';
}

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

describe('caches', () => {
  it('streamingLLM keeps the first and the latest tokens', () => {
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

  it('ringCache shows what the ring holds and is not later than the query', () => {
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
  ])('ringCache refuses %j', (options) => {
    expect(codeOf(() => patterns.ringCache(options))).toBe('ERR_OPTION');
  });
});

describe('trees', () => {
  /** Parents in any order, not only before their children. */
  const forest = (nodes: number, seed: number) =>
    range(0, nodes).map((t) => (t < nodes - 3 && (t * seed) % 7 !== 0 ? t + 1 + ((t * seed) % (nodes - t - 1)) : -1));

  it('treeEdges shows one level of a forest', () => {
    for (const nodes of [1, 15, 70, 130]) {
      const parents = forest(nodes, 5);
      const dims = { queries: nodes };
      expectVisible(patterns.treeEdges(parents, 'childToParent'), dims, (i, j) => i === j || parents[i] === j);
      expectVisible(patterns.treeEdges(parents, 'parentFromChildren'), dims, (i, j) => parents[j] === i);
      expectVisible(
        patterns.treeEdges(parents, 'siblings'),
        dims,
        (i, j) => i === j || (parents[i] !== -1 && parents[i] === parents[j]),
      );
    }
  });

  it('treeEdges refuses what is no forest', () => {
    for (const parents of [[1, 0], [0], [5], [-2], [0.5]])
      expect(codeOf(() => patterns.treeEdges(parents, 'siblings'))).toBe('ERR_OPTION');
    expect(codeOf(() => patterns.treeEdges([-1], 'cousins' as patterns.TreeEdges))).toBe('ERR_OPTION');
  });

  it('medusaParents sorts choices by length and then by picks', () => {
    // Nodes: root, [0], [2], [10], [0, 0], [0, 1], [2, 0], [0, 1, 0]
    const parents = patterns.medusaParents([[0, 1, 0], [10], [2, 0], [0, 1], [2], [0], [0, 0]]);
    expect(parents).toEqual([-1, 0, 0, 0, 1, 1, 2, 5]);
    const ancestors = (t: number): number[] => (t < 0 ? [] : [t, ...ancestors(parents[t] ?? -1)]);
    expectVisible(
      masks.tree(parents, { prefix: 3 }),
      { queries: 8, keys: 11 },
      (i, j) => j < 3 || ancestors(i).includes(j - 3),
    );
    expect(patterns.medusaParents([])).toEqual([-1]);
    for (const choices of [[[0, 0]], [[]], [[-1]]])
      expect(codeOf(() => patterns.medusaParents(choices))).toBe('ERR_OPTION');
  });
});
