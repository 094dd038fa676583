/**
 * A test case in a few numbers: everything about an attention problem but its data, which follow from the seed.
 * It survives JSON, so a failure is replayed from one line.
 */
import { round } from '../oracle/float16.js';
import { type Broadcast, type Layout, lseSize, outSize, type Problem, type RelativeTable } from '../oracle/problem.js';
import { normal, uniform } from '../oracle/random.js';
import { type ScoreModKind, scoreModOf } from '../oracle/scoreMods.js';
import { type Dims, type Expression, toElements } from './maskExpression.js';
import type { CaseDType, ViewKind } from './views.js';

export type { CaseDType } from './views.js';

/** Axes [batch, head, query, key] of the bias that are 1 and broadcast. */
export type BroadcastAxes = readonly [boolean, boolean, boolean, boolean];

/** A block mask, compiled before the call or by it. */
export interface CaseMask {
  readonly expression: Expression;
  readonly blockSize: 64 | 128;
  readonly compiled?: boolean;
}

export interface Case {
  readonly seed: number;
  readonly layout: Layout;
  readonly dtype?: CaseDType;
  readonly batch?: number;
  /** Padded lengths of a dense problem; without meaning for packed sequences. */
  readonly queryLength?: number;
  readonly keyLength?: number;
  /** Real lengths, one per batch entry or packed sequence. */
  readonly qLens?: readonly number[];
  readonly kLens?: readonly number[];
  /** How much of each packed sequence is real. */
  readonly usedQ?: readonly number[];
  readonly usedK?: readonly number[];
  readonly kvHeads?: number;
  readonly group?: number;
  readonly headDim: number;
  readonly valueDim?: number;
  readonly scale?: number;
  readonly causal?: boolean;
  readonly align?: 'bottomRight' | 'topLeft';
  /** Instead of `align`. */
  readonly offset?: number;
  readonly window?: readonly [number, number];
  readonly softcap?: number;
  readonly bias?: BroadcastAxes;
  /** A fifth of the bias is -Infinity. */
  readonly biasHides?: boolean;
  readonly alibi?: 'heads' | 'batch';
  readonly relative?: 'distance' | 'positions';
  readonly scoreMod?: ScoreModKind;
  readonly sink?: boolean;
  readonly dropout?: { readonly p: number; readonly seed: number };
  /** In positions of the longest queries and keys. */
  readonly blockMask?: CaseMask;
  readonly dLse?: boolean;
  readonly deterministic?: boolean;
  /** Bias, relative table and sink are float32 beside 16-bit q, k and v. */
  readonly wideExtras?: boolean;
  /** How q, k, v and dOut lie in memory. */
  readonly views?: readonly [ViewKind, ViewKind, ViewKind, ViewKind];
}

export interface Instance {
  readonly problem: Problem;
  readonly dOut: Float64Array;
  readonly dLse?: Float64Array | undefined;
}

export function roundTo(values: Float64Array, dtype: CaseDType): Float64Array {
  return dtype === 'float32' ? values.map(Math.fround) : values.map((x) => round(x, dtype));
}

export function extrasDType(c: { dtype?: CaseDType | undefined; wideExtras?: boolean | undefined }): CaseDType {
  return c.wideExtras ? 'float32' : (c.dtype ?? 'float32');
}

function cumulative(lengths: readonly number[]): number[] {
  const sums = [0];
  for (const length of lengths) sums.push((sums.at(-1) ?? 0) + length);
  return sums;
}

/** What a mask of the case spans. */
export function maskDims(c: Case): Dims {
  const longest = (lengths: readonly number[] = []): number => Math.max(0, ...lengths);
  const packed = c.layout === 'varlen';
  return {
    heads: (c.kvHeads ?? 1) * (c.group ?? 1),
    queries: packed ? longest(c.qLens) : (c.queryLength ?? 1),
    keys: packed ? longest(c.kLens) : (c.keyLength ?? 1),
  };
}

function maskOf(c: Case, { expression }: CaseMask): Broadcast<Uint8Array> {
  const dims = maskDims(c);
  const { heads, queries, keys } = dims;
  const sees = toElements(expression, dims);
  const values = new Uint8Array(heads * queries * keys);
  let at = 0;
  for (let h = 0; h < heads; h++)
    for (let i = 0; i < queries; i++) for (let j = 0; j < keys; j++) values[at++] = sees(h, i, j) ? 1 : 0;
  return { values, shape: [1, heads, queries, keys] };
}

function relativeTable(
  c: Case,
  queries: number,
  keys: number,
  heads: number,
  data: (size: number) => Float64Array,
): RelativeTable {
  const bucketCount = 6;
  const next = uniform(c.seed + 77);
  const integer = (limit: number): number => Math.floor(next() * limit);
  const positions = (size: number): Int32Array => Int32Array.from({ length: size }, () => integer(20));
  const byDistance = c.relative === 'distance';
  const [below, above] = byDistance ? [Math.max(queries - 1, 0), Math.max(keys - 1, 0)] : [19, 19];
  return {
    table: data(bucketCount * heads),
    bucketCount,
    buckets: Int32Array.from({ length: below + above + 1 }, () => integer(bucketCount)),
    origin: below,
    ...(!byDistance && { queryPosition: positions(queries), keyPosition: positions(keys) }),
  };
}

function biasOf(c: Case, full: readonly number[], data: (size: number) => Float64Array): Broadcast {
  const shape = full.map((size, axis) => (c.bias?.[axis] ? 1 : size)) as [number, number, number, number];
  const values = data(shape.reduce((a, b) => a * b, 1));
  const next = uniform(c.seed + 55);
  return { shape, values: c.biasHides ? values.map((x) => (next() < 0.2 ? -Infinity : x)) : values };
}

/** The data of a case: inputs are rounded to its dtype, so that every implementation starts from the same numbers. */
export function instantiate(c: Case): Instance {
  const varlen = c.layout === 'varlen';
  const dtype = c.dtype ?? 'float32';
  const [qLens = [], kLens = []] = [c.qLens, c.kLens];
  const batch = varlen ? qLens.length : (c.batch ?? 1);
  const kvHeads = c.kvHeads ?? 1;
  const queryHeads = kvHeads * (c.group ?? 1);
  const valueDim = c.valueDim ?? c.headDim;
  const sum = (lengths: readonly number[]): number => lengths.reduce((a, b) => a + b, 0);
  const queryLength = varlen ? sum(qLens) : (c.queryLength ?? 1);
  const keyLength = varlen ? sum(kLens) : (c.keyLength ?? 1);
  const { queries: longestQuery, keys: longestKey } = maskDims(c);

  let stream = c.seed * 16;
  const data = (size: number, target: CaseDType = dtype): Float64Array => roundTo(normal(size, stream++), target);
  const extra = (size: number): Float64Array => data(size, extrasDType(c));
  const copies = varlen ? 1 : batch;
  const problem: Problem = {
    layout: c.layout,
    batch,
    queryLength,
    keyLength,
    queryHeads,
    kvHeads,
    headDim: c.headDim,
    valueDim,
    query: data(copies * queryLength * queryHeads * c.headDim),
    key: data(copies * keyLength * kvHeads * c.headDim),
    value: data(copies * keyLength * kvHeads * valueDim),
    ...(varlen
      ? {
          ...{ cuSeqlensQ: cumulative(qLens), cuSeqlensK: cumulative(kLens) },
          ...(c.usedQ && { qLens: c.usedQ }),
          ...(c.usedK && { kLens: c.usedK }),
        }
      : { ...(c.qLens && { qLens }), ...(c.kLens && { kLens }) }),
    scale: c.scale,
    causal: c.causal,
    align: c.align,
    offset: c.offset,
    window: c.window,
    softcap: c.softcap,
    bias: c.bias && biasOf(c, [batch, queryHeads, longestQuery, longestKey], extra),
    alibi:
      c.alibi &&
      data(c.alibi === 'batch' ? batch * queryHeads : queryHeads, 'float32').map((x) => Math.fround(Math.abs(x) / 4)),
    relative: c.relative && relativeTable(c, longestQuery, longestKey, queryHeads, extra),
    sink: c.sink ? extra(queryHeads) : undefined,
    dropout: c.dropout,
    mask: c.blockMask && maskOf(c, c.blockMask),
    scoreMod:
      c.scoreMod &&
      scoreModOf(c.scoreMod, {
        heads: queryHeads,
        queries: longestQuery,
        keys: longestKey,
        data: (size) => normal(size, c.seed * 16 + 15),
        next: uniform(c.seed + 33),
      }),
  };
  return {
    problem,
    dOut: data(outSize(problem)),
    dLse: c.dLse ? data(lseSize(problem), 'float32') : undefined,
  };
}
