// Attention in which every query has blocks of keys of its own, and the order in which those become visible.
import { attention } from '../attention/attention.js';
import type { DenseOptions } from '../attention/options.js';
import { shapeError } from '../base/errors.js';
import { Remember } from '../base/remember.js';
import { type Coverage, type Grid, Mask, type Region, type Row, showKeys } from '../masks/mask.js';
import { cumsum } from '../ops/alongAxis.js';
import { cast } from '../ops/cast.js';
import { fused } from '../ops/elementwise.js';
import { embedding, type Indices } from '../ops/embedding.js';
import { releaseCopies } from '../ops/gather.js';
import { filled } from '../tape/arithmetic.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { inChunks } from './chunks.js';
import type { Wide } from './inputs.js';

/** Whole numbers up to here are exact in float32. */
const mostCounted = 2 ** 24;

/** What one pass over queries may copy or weigh, in elements. */
const atOnce = 2 ** 24;

/** Query i sees the first `always` + floor((i + 1 - delay) / step) keys: one more every `step` positions. */
class StaircaseMask extends Mask {
  constructor(
    readonly step: number,
    readonly always: number,
    readonly delay: number,
  ) {
    super();
  }

  #seen(query: number): number {
    return this.always + Math.max(0, Math.floor((query + 1 - this.delay) / this.step));
  }

  classify({ queryBegin, queryEnd, keyBegin, keyEnd }: Region): Coverage {
    if (keyBegin >= this.#seen(queryEnd - 1)) return 'empty';
    return keyEnd <= this.#seen(queryBegin) ? 'full' : 'partial';
  }

  writeRow(words: Uint32Array, row: Row, _grid: Grid): void {
    showKeys(words, row, 0, this.#seen(row.query));
  }
}

const staircases = new Remember<Mask>(releaseCopies);

/**
 * Keys that stand for `step` tokens each, seen from the last of these on, or with `delay` 1 only after it; `always` keys in
 * front of them that all see.
 */
export const staircase = (step: number, always = 0, delay: 0 | 1 = 0): Mask =>
  staircases.get([step, always, delay], () => new StaircaseMask(step, always, delay));

/** 0, 1, ... count - 1 in float32. Made on the device, as a captured step must be. */
export const countUp = (count: number, { backend }: Tensor, from = 0): Wide => {
  if (count === 0) return filled(backend, [0], 'float32', 0) as Wide;
  return fromOne(cumsum(filled(backend, [count], 'float32', 1)), from - 1) as Wide;
};

const fromOne = fused((x, from) => x.add(from));

/** The block of a position. */
export const blockAt = fused((position, size) => position.add(0.5).div(size).floor());

/** Keys and values in blocks, as rows of tables. */
export interface Blocks {
  /** [batch * blocks * kv heads, size * dim]; the last block of a batch entry is filled up with zeros. */
  readonly keys: Tensor;
  readonly values: Tensor;
  readonly batch: number;
  /** Of a batch entry. */
  readonly count: number;
  readonly kvHeads: number;
  readonly size: number;
}

/** k [batch, tokens, kv heads, dim] and v in blocks of `size` tokens. */
export function blocksOf(k: Tensor, v: Tensor, size: number): Blocks {
  const [batch, tokens, kvHeads] = k.shape as readonly number[];
  const count = Math.ceil(tokens / size);
  if (batch * count * kvHeads > mostCounted)
    throw shapeError(
      `there are ${batch * count * kvHeads} blocks in all batch entries and heads; at most 2^24 can be told apart`,
    );
  const rows = (t: Tensor) =>
    inChunks(t, size)
      .contiguous()
      .reshape([batch * count * kvHeads, size * t.shape[3]]);
  return { keys: rows(k), values: rows(v), batch, count, kvHeads, size };
}

const rowOf = fused((block, entry, head, count, kvHeads) => entry.mul(count).add(block).mul(kvHeads).add(head));

/** The rows of the tables for blocks [batch, queries, kv heads, slots] of each batch entry and head. */
export function rowsOf(blocks: Tensor, { batch, count, kvHeads }: Blocks): Indices {
  const entries = countUp(batch, blocks).reshape([batch, 1, 1, 1]);
  const heads = countUp(kvHeads, blocks).reshape([kvHeads, 1]);
  return cast(rowOf(blocks, entries, heads, count, kvHeads), 'int32');
}

/**
 * Attention of each query, with all query heads that share a kv head, to the blocks in its slots.
 *
 * @param q [batch, queries, heads, dim]
 * @param rows [batch, queries, kv heads, slots], of the tables
 * @param weights [batch, queries, kv heads, slots] that the keys of a slot are multiplied by
 * @param options for batch * queries * kv heads entries of 1 query and slots * size keys
 * @returns [batch, queries, heads, value dim]
 */
export function attendBlocks(
  q: Tensor,
  rows: Indices,
  { keys, values, kvHeads, size }: Blocks,
  options: DenseOptions,
  weighted: (keys: Tensor) => Tensor = (keys) => keys,
): Tensor {
  const [batch, queries, heads, dim] = q.shape as readonly number[];
  const slots = rows.shape[3];
  const entries = batch * queries * kvHeads;
  const valueDim = values.shape[1] / size;
  const query = (q.isContiguous ? q : q.contiguous()).reshape([entries, 1, heads / kvHeads, dim]);
  const key = weighted(embedding(keys, rows)).reshape([entries, slots * size, 1, dim]);
  const value = embedding(values, rows).reshape([entries, slots * size, 1, valueDim]);
  return (attention(query, key, value, options).out as Tensor).reshape([batch, queries, heads, valueDim] as Shape);
}

/** How many queries to take at once where each needs so many elements. */
export const queriesAtOnce = (elementsOfQuery: number): number =>
  Math.max(1, Math.floor(atOnce / Math.max(1, elementsOfQuery)));

/** [from, to) of parts of at most `size` of `total`. */
export const ranges = (total: number, size: number): readonly (readonly [from: number, to: number])[] =>
  Array.from({ length: Math.ceil(total / size) }, (_, i) => [i * size, Math.min(total, (i + 1) * size)] as const);

/** What comes of no queries. */
export const emptyLike = (q: Tensor, v: Tensor): Tensor =>
  filled(q.backend, [...q.shape.slice(0, 3), v.shape[3]], q.dtype, 0) as Tensor;

/** What no queries have selected. */
export const noBlocks = (k: Tensor, slots: number): Indices =>
  filled(k.backend, [...k.shape.slice(0, 3), slots], 'int32', -1) as Indices;
