// Attention in which every query has blocks of keys of its own, and the order in which those become visible.
import { attention } from '../attention/attention.js';
import { shapeError } from '../base/errors.js';
import { Remember } from '../base/remember.js';
import { type Coverage, type Grid, Mask, type Region, type Row, showKeys } from '../masks/mask.js';
import { cumsum, takeAlongAxis } from '../ops/alongAxis.js';
import { cast } from '../ops/cast.js';
import { concat } from '../ops/concat.js';
import { fused, mul } from '../ops/elementwise.js';
import { embedding, type Indices, scatterAdd } from '../ops/embedding.js';
import { releaseCopies } from '../ops/gather.js';
import { sum } from '../ops/reduce.js';
import { softmax } from '../ops/softmax.js';
import { sort } from '../ops/sort.js';
import { pad } from '../ops/split.js';
import { filled } from '../tape/arithmetic.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { inChunks } from './chunks.js';
import { narrow, type Wide, wide } from './inputs.js';

/** Whole numbers up to here are exact in float32. */
const mostCounted = 2 ** 24;

/** What one pass over queries may copy or weigh, in elements. */
const atOnce = 2 ** 25;

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

/** Attention so far: a result with the logarithm of the sum that it was divided by. */
export interface Attended {
  /** [batch, seq, heads, value dim] */
  readonly out: Tensor;
  /** [batch, seq, heads] */
  readonly lse: Tensor;
}

/** Attention of every token to those of its own block up to itself. */
export function attendOwnBlocks(q: Tensor, k: Tensor, v: Tensor, size: number, scale: number): Attended {
  const [batch, seq, heads] = q.shape as readonly number[];
  const count = Math.ceil(seq / size);
  const none = [0, 0] as const;
  const whole = (t: Tensor) =>
    count * size === seq ? t.contiguous() : pad(t, [none, [0, count * size - seq], none, none]);
  const inBlocks = (t: Tensor) => whole(t).reshape([batch * count, size, t.shape[2], t.shape[3]]) as Tensor;
  const { out, lse } = attention(inBlocks(q), inBlocks(k), inBlocks(v), { scale, causal: true });
  const tokens = (t: Tensor, rest: readonly number[]) =>
    t.reshape([batch, count * size, heads, ...rest] as Shape).slice(1, 0, seq);
  return {
    out: tokens(out as Tensor, [v.shape[3]]),
    lse: tokens((lse as Tensor).transpose(1, 2).contiguous(), []),
  };
}

const ifNone = fused((block, none) => block.less(0).where(none, block));
const place = fused((list, at, length) => list.mul(length).add(at));
const tilesFor = fused((count, size) => count.sub(0.5).div(size).floor().add(1));
const firstRow = fused((tileEnd, tiles, pairEnd, count, size) => tileEnd.sub(tiles).mul(size).sub(pairEnd.sub(count)));
const rowOfPair = fused((block, none, at, shift, list, rows, last) =>
  block.less(none).where(list.mul(rows).add(at).add(shift), last),
);
const queryRow = fused((pair, entry, head, slots, queries, kvHeads) =>
  entry.mul(queries).add(pair.add(0.5).div(slots).floor()).mul(kvHeads).add(head).add(1),
);
const tableRow = fused((block, entry, head, count, kvHeads) =>
  entry
    .mul(count)
    .add(block.minimum(count.sub(1)))
    .mul(kvHeads)
    .add(head),
);
const atMost = fused((row, last) => row.minimum(last));
const unlessNone = fused((block, x) => block.less(0).where(Number.NEGATIVE_INFINITY, x));
const weighed = fused((block, x, weight) => block.less(0).where(0, x.mul(weight)));
const ownWeighed = fused((sum, x, weight) => sum.add(x.mul(weight)));

/**
 * Attention of queries to blocks of their own, all of whose tokens they see, merged with what they have attended to before.
 *
 * Pairs of a query and a block are sorted by the block and cut into tiles, so that a block is copied for each tile of queries that have
 * selected it and not for each query. How many tiles there are depends on the choice, but not how many there can be: the others
 * hold queries of zeros, whose results nobody reads.
 *
 * @param q [batch, queries, heads, dim]
 * @param chosen [batch, queries, kv heads, slots], float32: blocks, or -1
 * @param before of these queries
 * @param weights [batch, queries, kv heads, slots] that logits are multiplied by
 * @returns [batch, queries, heads, value dim], float32
 */
export function attendBlocks(
  q: Tensor,
  chosen: Tensor,
  { keys, values, kvHeads, size, count }: Blocks,
  before: Attended,
  scale: number,
  weights?: Tensor,
): Tensor {
  const [batch, queries, heads, dim] = q.shape as readonly number[];
  const slots = chosen.shape[3];
  if (slots === 0) return wide(before.out);
  const [group, valueDim] = [heads / kvHeads, values.shape[1] / size];
  const [lists, pairs] = [batch * kvHeads, queries * slots];
  const tileSize = Math.min(64, Math.max(4, size));
  const tiles = Math.ceil(pairs / tileSize) + count;
  const rows = tiles * tileSize;
  if (lists * Math.max(rows, pairs) > mostCounted)
    throw shapeError(
      `there are more than 2^24 places for queries in the tiles of ${lists} heads and batch entries: give fewer`,
    );
  const list = countUp(lists, q).reshape([lists, 1]);
  const [entry, head] = [blockAt(list, kvHeads), remainder(list, kvHeads)];
  const inLists = (t: Tensor) => t.transpose(1, 2).contiguous().reshape([lists, pairs]);
  const own = inLists(chosen);

  // Where each pair stands among the rows of tiles.
  const { values: sorted, indices } = sort(ifNone(own, count) as Wide);
  const order = cast(indices, 'float32');
  const ones = (n: number) => filled(q.backend, [lists, n], 'float32', 1) as Wide;
  const bins = (at: Tensor, n: number) =>
    scatterAdd(lists * n, cast(place(list, at, n), 'int32'), ones(at.shape[1])).reshape([lists, n]);
  const counts = bins(sorted, count + 1);
  const tilesOf = tilesFor(counts.slice(1, 0, count), tileSize);
  const tileEnds = cumsum(tilesOf.contiguous(), 1);
  const pairEnds = cumsum(counts, 1);
  const shifts = firstRow(tileEnds, tilesOf, pairEnds.slice(1, 0, count), counts.slice(1, 0, count), tileSize);
  const noShift = filled(q.backend, [lists, 1], 'float32', 0) as Wide;
  const shift = takeAlongAxis(concat([shifts as Wide, noShift], 1), cast(sorted, 'int32'));
  const rowOf = rowOfPair(sorted, count, countUp(pairs, q), shift, list, rows, lists * rows);
  const rowIds = cast(rowOf, 'int32');
  // Pairs without a block have a row behind all others.
  const toRows = (t: Tensor) => scatterAdd(lists * rows + 1, rowIds, t).slice(0, 0, lists * rows);

  // The queries of each tile, and its block.
  const queryRows = toRows(queryRow(order, entry, head, slots, queries, kvHeads));
  const noQuery = filled(q.backend, [1, group * dim], q.dtype, 0) as Tensor;
  const table = concat([noQuery, q.contiguous().reshape([batch * queries * kvHeads, group * dim])], 0);
  let tiled = embedding(table, cast(queryRows, 'int32'));
  if (weights) {
    const ofRows = toRows(takeAlongAxis(inLists(weights), indices));
    tiled = narrow(mul(tiled, ofRows.reshape([lists * rows, 1])) as Tensor, q);
  }
  const blockOf = cumsum(bins(tileEnds, tiles + 1), 1).slice(1, 0, tiles);
  const blockRows = cast(tableRow(blockOf, entry, head, filled(q.backend, [1], 'float32', count), kvHeads), 'int32');
  const inTiles = (t: Tensor, n: number, h: number) => t.reshape([lists * tiles, n, h, -1]) as Tensor;
  const { out, lse } = attention(
    inTiles(tiled, tileSize, group),
    inTiles(embedding(keys, blockRows), size, 1),
    inTiles(embedding(values, blockRows), size, 1),
    { scale },
  );

  // Back to the slots of queries.
  const pairIds = cast(place(list, order, pairs), 'int32');
  const rowOfSlot = cast(scatterAdd(lists * pairs, pairIds, atMost(rowOf, lists * rows - 1) as Wide), 'int32');
  const ofSlots = (t: Tensor) => embedding(t, rowOfSlot).reshape([batch, kvHeads, queries, slots, group, -1]) as Tensor;
  const states = ofSlots((out as Tensor).reshape([lists * rows, group * valueDim]));
  const isNone = own.reshape([batch, kvHeads, queries, slots, 1, 1]);
  const rowLses = (lse as Tensor)
    .transpose(1, 2)
    .contiguous()
    .reshape([lists * rows, group]);
  const lses = unlessNone(isNone, ofSlots(rowLses));
  const first = (t: Tensor) =>
    t.contiguous().reshape([batch, queries, kvHeads, 1, group, -1]).transpose(1, 2).contiguous() as Tensor;
  const shares = softmax(concat([lses, wide(first(before.lse))], 3), 3);
  const selected = sum(weighed(isNone, states, shares.slice(3, 0, slots)), 3);
  const all = ownWeighed(selected, first(before.out).select(3, 0), shares.select(3, slots));
  return all.transpose(1, 2).contiguous().reshape([batch, queries, heads, valueDim]);
}

const remainder = fused((x, n) => x.sub(x.add(0.5).div(n).floor().mul(n)));

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
