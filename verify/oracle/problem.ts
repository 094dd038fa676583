/**
 * An attention problem in plain float64 arrays, and the geometry that the references share: which rows belong to
 * a sequence, where an element lies in memory, and which keys a query sees.
 */
import type { Dropout } from './philox.js';
import type { ScoreMod } from './scoreMods.js';

/** Row-major [batch, seq, heads, dim], [batch, heads, seq, dim], or packed sequences [total, heads, dim]. */
export type Layout = 'bshd' | 'bhsd' | 'varlen';

/** A term of shape [batch|1, heads|1, queries|1, keys|1]. */
export interface Broadcast<Values = Float64Array> {
  readonly values: Values;
  readonly shape: readonly [number, number, number, number];
}

/** Adds table[buckets[keyPosition[j] - queryPosition[i] + origin]][head]; the table is [bucketCount, queryHeads]. */
export interface RelativeTable {
  readonly table: Float64Array;
  readonly bucketCount: number;
  readonly buckets: Int32Array;
  readonly origin: number;
  readonly queryPosition?: Int32Array | undefined;
  readonly keyPosition?: Int32Array | undefined;
}

export interface Problem {
  readonly layout: Layout;
  /** Batch entries, or packed sequences. */
  readonly batch: number;
  /** Rows of the query tensor: the padded length, or the total of all packed sequences. */
  readonly queryLength: number;
  readonly keyLength: number;
  readonly queryHeads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly valueDim: number;
  readonly query: Float64Array;
  readonly key: Float64Array;
  readonly value: Float64Array;
  readonly cuSeqlensQ?: readonly number[] | undefined;
  readonly cuSeqlensK?: readonly number[] | undefined;
  /** How much of each batch entry or packed sequence is real. */
  readonly qLens?: readonly number[] | undefined;
  readonly kLens?: readonly number[] | undefined;
  readonly scale?: number | undefined;
  readonly causal?: boolean | undefined;
  readonly align?: 'bottomRight' | 'topLeft' | undefined;
  /** Keys that came before the first query: where the diagonal lies, instead of `align`. */
  readonly offset?: number | undefined;
  readonly window?: readonly [left: number, right: number] | undefined;
  readonly softcap?: number | undefined;
  readonly bias?: Broadcast | undefined;
  /** Slopes of shape [queryHeads] or [batch, queryHeads]. */
  readonly alibi?: Float64Array | undefined;
  readonly relative?: RelativeTable | undefined;
  /** What replaces the score, after all terms above. */
  readonly scoreMod?: ScoreMod | undefined;
  /** One logit a query head. */
  readonly sink?: Float64Array | undefined;
  readonly dropout?: Dropout | undefined;
  /** Nonzero where a query may see a key, beside all other rules. */
  readonly mask?: Broadcast<Uint8Array> | undefined;
}

/** One sequence: where it begins in its tensors, and how long it really is. */
export interface Extent {
  readonly queryBegin: number;
  readonly queryLength: number;
  readonly keyBegin: number;
  readonly keyLength: number;
}

export function extent(p: Problem, b: number): Extent {
  if (p.layout === 'varlen') {
    const [queries, keys] = [p.cuSeqlensQ ?? [], p.cuSeqlensK ?? []];
    const queryBegin = queries[b] ?? 0;
    const keyBegin = keys[b] ?? 0;
    return {
      queryBegin,
      queryLength: p.qLens?.[b] ?? (queries[b + 1] ?? 0) - queryBegin,
      keyBegin,
      keyLength: p.kLens?.[b] ?? (keys[b + 1] ?? 0) - keyBegin,
    };
  }
  return {
    queryBegin: 0,
    queryLength: p.qLens?.[b] ?? p.queryLength,
    keyBegin: 0,
    keyLength: p.kLens?.[b] ?? p.keyLength,
  };
}

function rowOf(layout: Layout, b: number, h: number, position: number, length: number, heads: number): number {
  if (layout === 'varlen') return position * heads + h;
  return layout === 'bshd' ? (b * length + position) * heads + h : (b * heads + h) * length + position;
}

/** Row of (sequence, query head, local position) in query, out and their gradients. */
export function queryRow(p: Problem, b: number, h: number, i: number): number {
  return rowOf(p.layout, b, h, extent(p, b).queryBegin + i, p.queryLength, p.queryHeads);
}

/** Row in key, value and their gradients of the kv head that query head h reads. */
export function keyRow(p: Problem, b: number, h: number, j: number): number {
  const kvHead = Math.floor(h / (p.queryHeads / p.kvHeads));
  return rowOf(p.layout, b, kvHead, extent(p, b).keyBegin + j, p.keyLength, p.kvHeads);
}

/** The log-sum-exp is [batch, heads, queries], or [heads, total] for packed sequences. */
export function lseIndex(p: Problem, b: number, h: number, i: number): number {
  if (p.layout === 'varlen') return h * p.queryLength + extent(p, b).queryBegin + i;
  return (b * p.queryHeads + h) * p.queryLength + i;
}

export function lseSize(p: Problem): number {
  return (p.layout === 'varlen' ? 1 : p.batch) * p.queryHeads * p.queryLength;
}

export function outSize(p: Problem): number {
  return lseSize(p) * p.valueDim;
}

export function broadcastIndex(term: Broadcast<unknown>, b: number, h: number, i: number, j: number): number {
  const [batch, heads, queries, keys] = term.shape;
  const at = (size: number, index: number): number => (size === 1 ? 0 : index);
  return ((at(batch, b) * heads + at(heads, h)) * queries + at(queries, i)) * keys + at(keys, j);
}

export function scaleOf(p: Problem): number {
  return p.scale ?? 1 / Math.sqrt(p.headDim);
}

/** The key position that lies on the diagonal of query i. */
export function diagonal(p: Problem, b: number, i: number): number {
  if (p.offset !== undefined) return i + p.offset;
  if (p.align === 'topLeft') return i;
  const { queryLength, keyLength } = extent(p, b);
  return i + keyLength - queryLength;
}

export function visible(p: Problem, b: number, h: number, i: number, j: number): boolean {
  const centre = diagonal(p, b, i);
  if (p.causal && j > centre) return false;
  if (p.window) {
    const [left, right] = p.window;
    if (left >= 0 && j < centre - left) return false;
    if (right >= 0 && j > centre + right) return false;
  }
  if (p.bias?.values[broadcastIndex(p.bias, b, h, i, j)] === -Infinity) return false;
  return p.mask === undefined || p.mask.values[broadcastIndex(p.mask, b, h, i, j)] !== 0;
}

export function alibiSlope(p: Problem, b: number, h: number): number {
  if (!p.alibi) return 0;
  return p.alibi[p.alibi.length > p.queryHeads ? b * p.queryHeads + h : h] ?? 0;
}

/** Index into the relative position table for the pair (i, j) of head h. */
export function relativeIndex(p: Problem, relative: RelativeTable, h: number, i: number, j: number): number {
  const distance = (relative.keyPosition?.[j] ?? j) - (relative.queryPosition?.[i] ?? i);
  const bucket = relative.buckets[distance + relative.origin];
  if (bucket === undefined) throw new RangeError(`no bucket for distance ${distance}`);
  return bucket * p.queryHeads + h;
}

/** Calls visit for every query row of every head of every sequence; padded rows are not visited. */
export function forEachRow(p: Problem, visit: (b: number, h: number, i: number) => void): void {
  for (let b = 0; b < p.batch; b++) {
    for (let h = 0; h < p.queryHeads; h++) {
      for (let i = 0; i < extent(p, b).queryLength; i++) visit(b, h, i);
    }
  }
}
