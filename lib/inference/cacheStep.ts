// Which rows of a cache a step writes and reads: what the host tells all layers once.
import { checkArray, checkInteger } from '../base/check.js';
import { optionError, shapeError, show } from '../base/errors.js';
import { tensor } from '../devices/create.js';
import type { DeviceName } from '../devices/registry.js';
import type { Indices } from '../ops/embedding.js';

/** A sequence of a cache: `CachedSequence`, or a block table of one's own. */
export interface SequenceBlocks {
  /** Blocks in the order of positions. */
  readonly table: ArrayLike<number>;
  /** Positions that are stored, with those of the step. */
  readonly length: number;
}

/** Queries that share an entry of the kernel's table. */
const queriesOfEntry = 16;

/** New positions [begin, begin + count) of a sequence, which are rows [row, row + count) of q, k and v. */
export interface Span {
  readonly row: number;
  readonly begin: number;
  readonly count: number;
  readonly table: ArrayLike<number>;
}

/** The row of the cache that a position of a sequence is at. */
export const rowOf = (table: ArrayLike<number>, blockSize: number, position: number): number =>
  (table[Math.floor(position / blockSize)] as number) * blockSize + (position % blockSize);

/** Positions of all rows of q. */
export const positionsOf = (spans: readonly Span[]): number[] =>
  spans.flatMap(({ begin, count }) => Array.from({ length: count }, (_, i) => begin + i));

interface Blocks {
  readonly blocks: number;
  readonly blockSize: number;
  /** Whether new positions are written: to blocks of which no other sequence writes any. */
  readonly writes: boolean;
}

/** @throws ERR_OPTION, ERR_SHAPE, naming the sequence */
export function spansOf({ blocks, blockSize, writes }: Blocks, sequences: unknown, counts: readonly number[]): Span[] {
  let row = 0;
  const list = checkArray(sequences, 'sequences', 'an array of sequences', (s) => s as SequenceBlocks);
  if (list.length !== counts.length)
    throw shapeError(`sequences has ${list.length} entries; q has the queries of ${counts.length}`);
  const writers = new Map<number, number>();
  return list.map(({ table, length }, at) => {
    const name = `sequences[${at}]`;
    const count = counts[at] as number;
    checkInteger(length, `${name}.length`, 0);
    if (table === null || typeof table !== 'object' || !Number.isInteger(table.length))
      throw optionError(`${name}.table is ${show(table)}; it must be an array of block numbers`);
    if (length > table.length * blockSize)
      throw optionError(
        `${name}.length is ${length}; its table has ${table.length} blocks of ${blockSize}, for ${table.length * blockSize} positions`,
      );
    if (count > length)
      throw optionError(`${name}.length is ${length} and q has ${count} queries of it; they are its last positions`);
    const used = Math.ceil(length / blockSize);
    for (let i = 0; i < used; i++) {
      const block = table[i];
      if (!Number.isInteger(block) || (block as number) < 0 || (block as number) >= blocks)
        throw optionError(`${name}.table[${i}] is ${show(block)}; blocks are from 0 to ${blocks - 1}`);
    }
    const begin = length - count;
    for (let i = Math.floor(begin / blockSize); writes && count > 0 && i < used; i++) {
      const block = table[i] as number;
      const other = writers.get(block);
      if (other !== undefined)
        throw optionError(`${name} and sequences[${other}] both write to block ${block}; each needs one of its own`);
      writers.set(block, at);
    }
    const span = { row, begin, count, table };
    row += count;
    return span;
  });
}

/** Rows of q, k and v, and what the device is told of each. */
export interface StepRows {
  /** int32 [rows]: the row of the cache that it goes to. */
  readonly slots: Indices;
  /** int32 [rows]: its position. */
  readonly positions: Indices;
}

/** @internal Tensors that the caller disposes. */
export function stepRows(spans: readonly Span[], blockSize: number, device: DeviceName): StepRows {
  const slots = spans.flatMap(({ begin, count, table }) =>
    Array.from({ length: count }, (_, i) => rowOf(table, blockSize, begin + i)),
  );
  const onDevice = (values: readonly number[]) => tensor(Int32Array.from(values), [values.length], { device });
  return { slots: onDevice(slots), positions: onDevice(positionsOf(spans)) };
}

/**
 * Whether kernels find the position of every query: an entry's queries are the last of its keys, so that pieces of a sequence
 * end at their last query, which is what causal ones see anyway.
 */
export const fitsEntries = (spans: readonly Span[], causal: boolean): boolean =>
  causal || spans.every(({ count }) => count <= queriesOfEntry);

/** Entries of the kernel's table: a few queries each, and the pages that they see. */
export interface StepEntries {
  /** Of each entry: query begin, query length, key begin, key length. */
  readonly sequences: Int32Array;
  /** int32 [entries, pages] */
  readonly pages: Indices;
  readonly entries: number;
  readonly queryLength: number;
  readonly keyLength: number;
}

/** @internal Of spans that fit. Tensors that the caller disposes. */
export function stepEntries(spans: readonly Span[], blockSize: number, device: DeviceName): StepEntries | undefined {
  const most = spans.some(({ count }) => count > 1) ? queriesOfEntry : 1;
  const cut = spans.flatMap(({ row, begin, count, table }) =>
    Array.from({ length: Math.ceil(count / most) }, (_, i) => {
      const first = i * most;
      const queries = Math.min(most, count - first);
      return { row: row + first, queries, keys: begin + first + queries, table };
    }),
  );
  if (cut.length === 0) return undefined;
  const keyLength = cut.reduce((longest, { keys }) => Math.max(longest, keys), 0);
  const width = Math.max(1, Math.ceil(keyLength / blockSize));
  const sequences = new Int32Array(cut.length * 4);
  const pages = new Int32Array(cut.length * width);
  for (const [at, { row, queries, keys, table }] of cut.entries()) {
    sequences.set([row, queries, 0, keys], at * 4);
    for (let i = 0; i < Math.ceil(keys / blockSize); i++) pages[at * width + i] = table[i] as number;
  }
  const queryLength = cut.reduce((longest, { queries }) => Math.max(longest, queries), 0);
  return {
    sequences,
    pages: tensor(pages, [cut.length, width], { device }),
    entries: cut.length,
    queryLength,
    keyLength,
  };
}
