/**
 * The sparsity configurations of DeepSpeed's sparse attention (microsoft/DeepSpeed,
 * deepspeed/ops/sparse_attention/sparsity_config.py), with its names and defaults.
 *
 * All of them are layouts of blocks: a query sees every key of the blocks that its own block row r shows. That holds for
 * attention 'unidirectional' too, which hides block columns but never tokens inside the diagonal block: use
 * `causal: true` of `attention` with it. A length that is no multiple of the block, which DeepSpeed refuses, ends with a
 * short block; windows and global blocks wider than a short sequence, and random blocks more than a row has, which it
 * refuses as well, are all that there is.
 */

import { checkBoolean, checkInteger, checkIntegers, checkObject, checkOptions, checkWord } from '../base/check.js';
import { optionError } from '../base/errors.js';
import { checkTokens, type Mask } from '../masks/mask.js';
import { BlockGrid, checkRandomColumns, type RandomColumns, sampler } from './blockGrid.js';

type Direction = 'bidirectional' | 'unidirectional';

export interface DeepSpeedOptions {
  /** Tokens of the sequence. */
  readonly length: number;
  /** Tokens of a block. Default 16. */
  readonly block?: number;
  /** Heads of the raw layout, and of the mask where they differ. Default 1. */
  readonly heads?: number;
  /** Whether each head has a layout of its own. Default false: all have that of head 0. */
  readonly differentLayoutPerHead?: boolean;
}

interface DirectionOptions {
  /** Default 'bidirectional'. */
  readonly attention?: Direction;
}

interface RandomOptions {
  readonly numRandomBlocks?: number;
  /** Of the generator of random blocks (mulberry32, row by row and head by head). Default 0. */
  readonly seed?: number;
  /** The random blocks themselves, [head][row] -> columns, instead of those of the seed; one head where all are equal. */
  readonly random?: RandomColumns;
}

interface GlobalOptions {
  /** Default [0]; those beyond the sequence are ignored. */
  readonly globalBlockIndices?: readonly number[];
  /** Where the global blocks that begin at `globalBlockIndices` end (exclusive). Default: after one block. */
  readonly globalBlockEndIndices?: readonly number[];
}

export interface DeepSpeedFixedOptions extends DeepSpeedOptions, DirectionOptions {
  /** Blocks of a local window. Default 4. */
  readonly numLocalBlocks?: number;
  /** Blocks of a window that represent it globally; must divide the window. Default 1. */
  readonly numGlobalBlocks?: number;
  /** Whether the representatives also see everything; bidirectional only. Default false. */
  readonly horizontalGlobalAttention?: boolean;
  /** Head h takes representative h % n, counted from the end of the window. Default 1. */
  readonly numDifferentGlobalPatterns?: number;
}

export interface DeepSpeedVariableOptions extends DeepSpeedOptions, DirectionOptions, RandomOptions, GlobalOptions {
  /** Blocks of the local windows, one after the other; the last size repeats. Default [4]. */
  readonly localWindowBlocks?: readonly number[];
  /** Whether the global blocks also see everything; bidirectional only. Default false. */
  readonly horizontalGlobalAttention?: boolean;
}

export interface DeepSpeedBigBirdOptions extends DeepSpeedOptions, DirectionOptions, RandomOptions {
  /** Default 3. */
  readonly numSlidingWindowBlocks?: number;
  /** The first blocks, which see everything and are seen by everything. Default 1. */
  readonly numGlobalBlocks?: number;
}

export interface DeepSpeedBSLongformerOptions extends DeepSpeedOptions, DirectionOptions, GlobalOptions {
  /** Default 3. */
  readonly numSlidingWindowBlocks?: number;
}

export interface DeepSpeedLocalSlidingWindowOptions extends Omit<DeepSpeedOptions, 'differentLayoutPerHead'> {
  /** Default 3. */
  readonly numSlidingWindowBlocks?: number;
  /** Default 'unidirectional', unlike all the others. */
  readonly attention?: Direction;
}

/** A configuration with its name. */
export type DeepSpeedConfig =
  | ({ readonly mode: 'dense' } & DeepSpeedOptions)
  | ({ readonly mode: 'fixed' } & DeepSpeedFixedOptions)
  | ({ readonly mode: 'variable' } & DeepSpeedVariableOptions)
  | ({ readonly mode: 'bigbird' } & DeepSpeedBigBirdOptions)
  | ({ readonly mode: 'bslongformer' } & DeepSpeedBSLongformerOptions)
  | ({ readonly mode: 'localslidingwindow' } & DeepSpeedLocalSlidingWindowOptions);

/** Shows blocks of one head; every head of a grid in turn. */
type Painter = (grid: BlockGrid, head: number) => void;

const isUnidirectional = (attention: unknown): boolean =>
  checkWord(attention, 'attention', ['bidirectional', 'unidirectional']) === 'unidirectional';

/** Consecutive windows; the last size repeats, and the last window may be cut off. */
function paintWindows(sizes: readonly number[], unidirectional: boolean): Painter {
  return (grid, head) => {
    for (let begin = 0, window = 0; begin < grid.size; window++) {
      const end = begin + sizes[Math.min(window, sizes.length - 1)];
      for (let row = begin; row < Math.min(end, grid.size); row++)
        grid.show(head, row, row + 1, begin, unidirectional ? row + 1 : end);
      begin = end;
    }
  };
}

function paintSlidingWindow(count: number, size: number, unidirectional: boolean): Painter {
  const side = Math.floor(checkInteger(count, 'numSlidingWindowBlocks', 1) / 2);
  return (grid, head) => {
    for (let row = 0; row < size; row++)
      grid.show(head, row, row + 1, row - side, unidirectional ? row + 1 : row + side + 1);
  };
}

/** `causal`: row r chooses among the columns up to r, all of them where these are fewer than it is to choose. */
function paintRandom(count: number, size: number, heads: number, causal: boolean, options: RandomOptions): Painter {
  checkInteger(count, 'numRandomBlocks', 0);
  const { seed = 0, random } = options;
  const given = random === undefined ? undefined : checkRandomColumns(random, heads, size, size);
  const draw = sampler(seed);
  const columns = Array.from({ length: size }, (_, column) => column);
  return (grid, head) => {
    for (let row = 0; row < size; row++) {
      const choice = causal ? columns.slice(0, row + 1) : columns;
      const chosen = given ? given[head][row] : draw(Math.min(count, choice.length), choice);
      for (const column of chosen) grid.show(head, row, row + 1, column, column + 1);
    }
  };
}

/** Ranges of global blocks. */
function readGlobals(options: GlobalOptions): [begin: number, end: number][] {
  const begins = checkIntegers(options.globalBlockIndices ?? [0], 'globalBlockIndices', 0);
  if (options.globalBlockEndIndices === undefined) return begins.map((begin) => [begin, begin + 1]);
  const ends = checkIntegers(options.globalBlockEndIndices, 'globalBlockEndIndices', 0);
  if (ends.length !== begins.length)
    throw optionError(`globalBlockEndIndices has ${ends.length} entries; globalBlockIndices has ${begins.length}`);
  return begins.map((begin, at) => [begin, checkInteger(ends[at], `globalBlockEndIndices[${at}]`, begin + 1)]);
}

function fixed(o: DeepSpeedFixedOptions, size: number): Painter {
  const { numLocalBlocks: local = 4, numGlobalBlocks: count = 1, numDifferentGlobalPatterns: patterns = 1 } = o;
  const unidirectional = isUnidirectional(o.attention ?? 'bidirectional');
  const horizontal = checkHorizontal(o.horizontalGlobalAttention, unidirectional);
  checkInteger(local, 'numLocalBlocks', 1);
  checkInteger(count, 'numGlobalBlocks', 1, local);
  if (local % count !== 0)
    throw optionError(`numGlobalBlocks is ${count}; it must divide the ${local} blocks of a local window`);
  checkInteger(patterns, 'numDifferentGlobalPatterns', 1, local / count);
  if (patterns > 1 && !o.differentLayoutPerHead)
    throw optionError(`numDifferentGlobalPatterns is ${patterns}; more than one needs differentLayoutPerHead`);
  const paintLocal = paintWindows([local], unidirectional);
  return (grid, head) => {
    paintLocal(grid, head);
    const offset = local - (1 + (head % patterns)) * count;
    for (let window = 0; window < size; window += local) {
      // The representative of a last window that is cut off moves back as far as it must.
      const begin = window + local <= size ? window + offset : Math.max(0, Math.min(window + offset, size - count));
      grid.show(head, unidirectional ? begin : 0, size, begin, begin + count);
      if (horizontal) grid.show(head, begin, begin + count, 0, size);
    }
  };
}

function checkHorizontal(horizontal: unknown, unidirectional: boolean): boolean {
  if (!checkBoolean(horizontal ?? false, 'horizontalGlobalAttention')) return false;
  if (unidirectional) throw optionError(`horizontalGlobalAttention needs attention 'bidirectional'`);
  return true;
}

function variable(o: DeepSpeedVariableOptions, size: number, heads: number): Painter {
  const { numRandomBlocks = 0 } = o;
  const localWindowBlocks = checkIntegers(o.localWindowBlocks ?? [4], 'localWindowBlocks', 1);
  const unidirectional = isUnidirectional(o.attention ?? 'bidirectional');
  const horizontal = checkHorizontal(o.horizontalGlobalAttention, unidirectional);
  if (localWindowBlocks.length === 0) throw optionError('localWindowBlocks is empty; it needs at least one size');
  const globals = readGlobals(o);
  // Its random blocks may lie in the future even when it is unidirectional.
  const paintRandomBlocks = paintRandom(numRandomBlocks, size, heads, false, o);
  const paintLocal = paintWindows(localWindowBlocks, unidirectional);
  return (grid, head) => {
    paintRandomBlocks(grid, head);
    paintLocal(grid, head);
    for (const [begin, end] of globals) {
      grid.show(head, unidirectional ? begin : 0, size, begin, end);
      if (horizontal) grid.show(head, begin, end, 0, size);
    }
  };
}

function bigBird(o: DeepSpeedBigBirdOptions, size: number, heads: number): Painter {
  const { numRandomBlocks = 1, numSlidingWindowBlocks = 3, numGlobalBlocks = 1 } = o;
  const unidirectional = isUnidirectional(o.attention ?? 'bidirectional');
  const paintRandomBlocks = paintRandom(numRandomBlocks, size, heads, unidirectional, o);
  const paintWindow = paintSlidingWindow(numSlidingWindowBlocks, size, false);
  checkInteger(numGlobalBlocks, 'numGlobalBlocks', 0);
  return (grid, head) => {
    paintRandomBlocks(grid, head);
    paintWindow(grid, head);
    grid.show(head, 0, numGlobalBlocks, 0, size);
    grid.show(head, 0, size, 0, numGlobalBlocks);
    if (unidirectional) grid.hideFuture(head);
  };
}

function bsLongformer(o: DeepSpeedBSLongformerOptions, size: number): Painter {
  const unidirectional = isUnidirectional(o.attention ?? 'bidirectional');
  const paintWindow = paintSlidingWindow(o.numSlidingWindowBlocks ?? 3, size, false);
  const globals = readGlobals(o);
  return (grid, head) => {
    paintWindow(grid, head);
    for (const [begin, end] of globals) {
      grid.show(head, begin, end, 0, size);
      grid.show(head, 0, size, begin, end);
    }
    if (unidirectional) grid.hideFuture(head);
  };
}

const common = ['mode', 'length', 'block', 'heads'] as const;
const perHead = [...common, 'differentLayoutPerHead', 'attention'] as const;
const random = ['numRandomBlocks', 'seed', 'random'] as const;
const globals = ['globalBlockIndices', 'globalBlockEndIndices'] as const;

const optionsOf = {
  dense: [...common, 'differentLayoutPerHead'],
  fixed: [...perHead, 'numLocalBlocks', 'numGlobalBlocks', 'horizontalGlobalAttention', 'numDifferentGlobalPatterns'],
  variable: [...perHead, ...random, ...globals, 'localWindowBlocks', 'horizontalGlobalAttention'],
  bigbird: [...perHead, ...random, 'numSlidingWindowBlocks', 'numGlobalBlocks'],
  bslongformer: [...perHead, ...globals, 'numSlidingWindowBlocks'],
  localslidingwindow: [...common, 'attention', 'numSlidingWindowBlocks'],
} as const satisfies {
  [Mode in DeepSpeedConfig['mode']]: readonly (keyof Extract<DeepSpeedConfig, { mode: Mode }>)[];
};

function checkConfig(config: DeepSpeedConfig): void {
  checkObject(config, 'config');
  const mode = checkWord(config.mode, 'mode', Object.keys(optionsOf) as DeepSpeedConfig['mode'][]);
  checkOptions<Record<string, unknown>>({ ...config }, optionsOf[mode]);
}

function painterOf(config: DeepSpeedConfig, size: number, heads: number): Painter {
  switch (config.mode) {
    case 'dense':
      return (grid, head) => grid.show(head, 0, size, 0, size);
    case 'fixed':
      return fixed(config, size);
    case 'variable':
      return variable(config, size, heads);
    case 'bigbird':
      return bigBird(config, size, heads);
    case 'bslongformer':
      return bsLongformer(config, size);
    case 'localslidingwindow': {
      const unidirectional = isUnidirectional(config.attention ?? 'unidirectional');
      return paintSlidingWindow(config.numSlidingWindowBlocks ?? 3, size, unidirectional);
    }
  }
}

/** One layout, or one for each head where they differ. */
function paint(config: DeepSpeedConfig): BlockGrid {
  checkConfig(config);
  const { length, block = 16, heads = 1 } = config;
  const different = config.mode !== 'localslidingwindow' && (config.differentLayoutPerHead ?? false);
  checkBoolean(different, 'differentLayoutPerHead');
  checkInteger(heads, 'heads', 1);
  const size = Math.ceil(checkTokens(length, 'length', 1) / checkInteger(block, 'block', 1));
  const grid = new BlockGrid(different ? heads : 1, size);
  const paintHead = painterOf(config, size, grid.heads);
  for (let head = 0; head < grid.heads; head++) paintHead(grid, head);
  return grid;
}

/**
 * The layout of a configuration as DeepSpeed's `make_layout` gives it: [heads, n, n] with n = ceil(length / block),
 * 1 where row block r sees column block c.
 *
 * @throws ERR_OPTION
 */
export const deepspeedLayout = (config: DeepSpeedConfig): Uint8Array => paint(config).repeat(config.heads ?? 1);

const maskOf = (config: DeepSpeedConfig): Mask => paint(config).toMask(config.block ?? 16);

/** DenseSparsityConfig: every block. @throws ERR_OPTION */
export const deepspeedDense = (options: DeepSpeedOptions): Mask => maskOf({ ...options, mode: 'dense' });

/**
 * FixedSparsityConfig, a variant of Child et al. 2019, "Generating Long Sequences with Sparse Transformers". With
 * windows of L blocks and G representatives, head h: row r sees column c when floor(r / L) = floor(c / L) (and c <= r
 * when unidirectional), or when c mod L lies in [s, s + G) with s = L - (1 + h mod patterns) * G. Unidirectional
 * representatives are seen from their own first row on, so with G > 1 a few lie above the diagonal.
 *
 * @throws ERR_OPTION
 */
export const deepspeedFixed = (options: DeepSpeedFixedOptions): Mask => maskOf({ ...options, mode: 'fixed' });

/**
 * VariableSparsityConfig: local windows of the listed sizes, listed global blocks, and `numRandomBlocks` (default 0)
 * random blocks in every row. @throws ERR_OPTION
 */
export const deepspeedVariable = (options: DeepSpeedVariableOptions): Mask => maskOf({ ...options, mode: 'variable' });

/**
 * BigBirdSparsityConfig (Zaheer et al. 2020, internal global blocks): row r sees |r - c| <= floor(window / 2), the first
 * global blocks, which see everything, and `numRandomBlocks` (default 1) random ones; when unidirectional all of that up
 * to the diagonal, with random blocks drawn from the past. A row with fewer columns than it is to draw takes all of them,
 * where DeepSpeed throws.
 *
 * @throws ERR_OPTION
 */
export const deepspeedBigBird = (options: DeepSpeedBigBirdOptions): Mask => maskOf({ ...options, mode: 'bigbird' });

/**
 * BSLongformerSparsityConfig (Beltagy et al. 2020 in blocks): row r sees |r - c| <= floor(window / 2) and the listed
 * global blocks, which see everything; when unidirectional up to the diagonal. @throws ERR_OPTION
 */
export const deepspeedBSLongformer = (options: DeepSpeedBSLongformerOptions): Mask =>
  maskOf({ ...options, mode: 'bslongformer' });

/**
 * LocalSlidingWindowSparsityConfig: with w = floor(window / 2), row r sees columns r - w to r, or to r + w when
 * bidirectional. @throws ERR_OPTION
 */
export const deepspeedLocalSlidingWindow = (options: DeepSpeedLocalSlidingWindowOptions): Mask =>
  maskOf({ ...options, mode: 'localslidingwindow' });
