/**
 * Every kernel for every bucket of head dims, every dtype and every kind of mask and term, forward and backward, at
 * sizes that are small and no multiples of any tile.
 */
import type { Case } from '../cases/case.js';
import type { Expression } from '../cases/maskExpression.js';
import type { CaseDType } from '../cases/views.js';
import { type Check, type Settings, scheduledCheck } from './check.js';

export const DTYPES = ['float16', 'bfloat16', 'float32'] as const satisfies readonly CaseDType[];

/** [query and key dim, value dim] of each bucket that kernels are compiled for: whole, ragged, and unequal. */
export const HEAD_DIMS: Readonly<Record<number, readonly (readonly [number, number])[]>> = {
  32: [
    [32, 32],
    [20, 20],
    [7, 31],
  ],
  64: [
    [64, 64],
    [33, 33],
    [64, 40],
  ],
  96: [
    [96, 96],
    [81, 81],
    [24, 96],
  ],
  128: [
    [128, 128],
    [127, 127],
    [128, 72],
  ],
  192: [
    [192, 192],
    [129, 129],
    [192, 128],
  ],
  256: [
    [256, 256],
    [250, 250],
    [193, 256],
  ],
};

type Variant = Omit<Case, 'seed' | 'dtype' | 'headDim' | 'valueDim'>;

const blocks = (density: number, seed = 4): Expression => ({
  kind: 'blocks',
  blockSize: 64,
  heads: 1,
  seed,
  density,
  bsr: false,
});
const either = (...parts: Expression[]): Expression => ({ kind: 'or', parts });
const every = (step: number): Expression => ({ kind: 'strided', step });
const near: Expression = { kind: 'window', left: 20, right: 9, align: 'bottomRight' };

/** One and two heads make few blocks, four and more make enough to occupy an emulated device: those get larger tiles. */
const VARIANTS: Readonly<Record<string, Variant>> = {
  dense: { layout: 'bshd', queryLength: 37, keyLength: 70, dLse: true },
  'dense, larger tiles': { layout: 'bhsd', kvHeads: 4, queryLength: 70, keyLength: 37 },
  'one query': { layout: 'bshd', kvHeads: 2, queryLength: 1, keyLength: 67, causal: true },
  'one key': { layout: 'bhsd', queryLength: 40, keyLength: 1, dLse: true },
  'one of each': { layout: 'bshd', queryLength: 1, keyLength: 1 },
  causal: { layout: 'bshd', queryLength: 67, keyLength: 67, causal: true },
  'causal, larger tiles': { layout: 'bshd', kvHeads: 4, queryLength: 35, keyLength: 69, causal: true },
  'causal, empty rows': { layout: 'bhsd', kvHeads: 2, queryLength: 70, keyLength: 33, causal: true, dLse: true },
  'causal from the top left': { layout: 'bshd', queryLength: 20, keyLength: 70, causal: true, align: 'topLeft' },
  window: { layout: 'bshd', queryLength: 70, keyLength: 80, window: [9, 4] },
  'window, larger tiles': { layout: 'bhsd', kvHeads: 2, batch: 2, queryLength: 40, keyLength: 70, window: [3, 33] },
  'causal window': { layout: 'bhsd', queryLength: 66, keyLength: 66, causal: true, window: [17, 0] },
  packed: { layout: 'varlen', qLens: [1, 0, 33, 20], kLens: [5, 7, 40, 0], dLse: true },
  'packed, causal': { layout: 'varlen', kvHeads: 2, qLens: [3, 66, 1], kLens: [17, 40, 2], causal: true },
  'padded lengths': { layout: 'bshd', batch: 2, queryLength: 34, keyLength: 70, qLens: [34, 5], kLens: [67, 0] },
  'grouped heads': { layout: 'bshd', kvHeads: 2, group: 3, queryLength: 17, keyLength: 40 },
  'grouped heads, causal': { layout: 'bhsd', group: 2, queryLength: 33, keyLength: 33, causal: true, dLse: true },
  bias: { layout: 'bshd', kvHeads: 2, queryLength: 21, keyLength: 66, bias: [false, false, false, false] },
  'bias that hides': {
    layout: 'bhsd',
    batch: 2,
    queryLength: 36,
    keyLength: 40,
    bias: [true, false, false, true],
    biasHides: true,
  },
  'bias over queries': { layout: 'bshd', group: 2, queryLength: 66, keyLength: 20, bias: [true, true, true, false] },
  softcap: { layout: 'bhsd', queryLength: 34, keyLength: 66, softcap: 1.5, causal: true },
  alibi: { layout: 'bshd', kvHeads: 2, queryLength: 33, keyLength: 68, alibi: 'heads', causal: true },
  'relative distance': { layout: 'bshd', kvHeads: 2, queryLength: 35, keyLength: 41, relative: 'distance' },
  'relative positions': { layout: 'bhsd', queryLength: 20, keyLength: 67, relative: 'positions', window: [30, 30] },
  'score function': { layout: 'bshd', kvHeads: 2, queryLength: 35, keyLength: 69, scoreMod: 'softcap', causal: true },
  'score function that hides': { layout: 'bhsd', batch: 2, queryLength: 40, keyLength: 67, scoreMod: 'documents' },
  'score function of a table': {
    layout: 'bshd',
    batch: 2,
    group: 2,
    queryLength: 33,
    keyLength: 40,
    scoreMod: 'table',
    bias: [true, false, true, false],
    softcap: 3,
    dLse: true,
  },
  sink: { layout: 'bhsd', kvHeads: 2, queryLength: 40, keyLength: 35, sink: true, causal: true, dLse: true },
  dropout: { layout: 'bshd', kvHeads: 2, queryLength: 35, keyLength: 66, dropout: { p: 0.3, seed: 99 } },
  'negative scale': { layout: 'bshd', queryLength: 18, keyLength: 34, scale: -0.3 },
  'full blocks': {
    layout: 'bshd',
    queryLength: 130,
    keyLength: 140,
    blockMask: { expression: blocks(0.6), blockSize: 64 },
  },
  'partial blocks': {
    layout: 'bhsd',
    queryLength: 70,
    keyLength: 100,
    blockMask: { expression: every(3), blockSize: 64 },
  },
  'full and partial blocks': {
    layout: 'bshd',
    kvHeads: 1,
    group: 2,
    queryLength: 130,
    keyLength: 130,
    dLse: true,
    blockMask: { expression: either(blocks(0.3, 8), near), blockSize: 64 },
  },
  'blocks of 128, larger tiles': {
    layout: 'bhsd',
    kvHeads: 4,
    queryLength: 130,
    keyLength: 70,
    blockMask: { expression: either(blocks(0.4, 5), every(7)), blockSize: 128 },
  },
  'blocks, packed': {
    layout: 'varlen',
    kvHeads: 2,
    qLens: [20, 70, 0],
    kLens: [70, 9, 4],
    blockMask: { expression: { kind: 'perHead', parts: [near, every(2)] }, blockSize: 64 },
  },
  'blocks with every term': {
    layout: 'bshd',
    kvHeads: 2,
    queryLength: 70,
    keyLength: 70,
    causal: true,
    softcap: 3,
    bias: [true, false, true, false],
    sink: true,
    blockMask: { expression: either(blocks(0.5, 2), near), blockSize: 64 },
  },
  'every term': {
    layout: 'bshd',
    batch: 2,
    group: 2,
    queryLength: 20,
    keyLength: 37,
    causal: true,
    window: [30, 1],
    softcap: 2,
    bias: [false, true, false, false],
    alibi: 'batch',
    relative: 'distance',
    sink: true,
    dropout: { p: 0.2, seed: 5 },
    qLens: [20, 11],
    kLens: [37, 30],
    dLse: true,
  },
  'elements apart': {
    layout: 'bshd',
    kvHeads: 2,
    queryLength: 35,
    keyLength: 33,
    views: ['dimSlice', 'interleaved', 'transposed', 'headSlice'],
  },
};

export interface GridCell {
  readonly name: string;
  readonly bucket: number;
  readonly dtype: CaseDType;
  readonly variant: string;
  readonly case: Case;
}

function gridCells(): GridCell[] {
  let seed = 0;
  return Object.entries(HEAD_DIMS).flatMap(([bucket, dims], b) =>
    DTYPES.flatMap((dtype, d) =>
      Object.entries(VARIANTS).map(([variant, options], v) => {
        const [headDim, valueDim] = dims[(v + b + d) % dims.length] as readonly [number, number];
        return {
          name: `${variant}, ${dtype}, head dim ${headDim}${valueDim === headDim ? '' : ` and ${valueDim}`}`,
          bucket: Number(bucket),
          dtype,
          variant,
          case: { seed: ++seed, ...options, dtype, headDim, valueDim, deterministic: (v + d) % 2 === 0 },
        };
      }),
    ),
  );
}

/** Of one dtype, or of all. */
export const gridChecks = (settings: Settings, dtype?: CaseDType): Check[] =>
  gridCells()
    .filter((cell) => dtype === undefined || cell.dtype === dtype)
    .map((cell) => scheduledCheck(cell.name, cell.case, settings));
