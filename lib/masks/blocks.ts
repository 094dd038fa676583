import { typedArrayName } from '../base/arrays.js';
import { checkInteger, checkIntegers, checkOptions, mustBe } from '../base/check.js';
import { optionError, shapeError, show } from '../base/errors.js';
import { type Coverage, checkTokens, type Grid, Mask, type Region, type Row, showKeys } from './mask.js';

/** Blocks of any size, visible or not as a whole: layout[(h * rows + r) * columns + c]. */
class LayoutMask extends Mask {
  override readonly heads: number;
  readonly #layout: Uint8Array;
  readonly #rows: number;
  readonly #columns: number;
  readonly #blockSize: number;

  constructor(layout: Uint8Array, heads: number, rows: number, columns: number, blockSize: number) {
    super();
    this.heads = heads;
    this.#layout = layout;
    this.#rows = rows;
    this.#columns = columns;
    this.#blockSize = blockSize;
  }

  override check(grid: Grid): void {
    const rows = Math.ceil(grid.queries / this.#blockSize);
    const columns = Math.ceil(grid.keys / this.#blockSize);
    if (rows !== this.#rows || columns !== this.#columns)
      throw shapeError(
        `the layout has ${this.#rows} x ${this.#columns} blocks of ${this.#blockSize}; ${grid.queries} queries x ${grid.keys} keys need ${rows} x ${columns}`,
      );
  }

  classify(r: Region): Coverage {
    const size = this.#blockSize;
    let seen = 0;
    let all = 0;
    for (let row = Math.floor(r.queryBegin / size); row * size < r.queryEnd; row++)
      for (let column = Math.floor(r.keyBegin / size); column * size < r.keyEnd; column++) {
        all++;
        if (this.#visible(r.head, row, column)) seen++;
      }
    return seen === 0 ? 'empty' : seen === all ? 'full' : 'partial';
  }

  writeRow(words: Uint32Array, row: Row): void {
    const size = this.#blockSize;
    const blockRow = Math.floor(row.query / size);
    for (let column = Math.floor(row.keyBegin / size); column * size < row.keyEnd; column++)
      if (this.#visible(row.head, blockRow, column)) showKeys(words, row, column * size, (column + 1) * size);
  }

  #visible(head: number, row: number, column: number): boolean {
    const at = this.heads === 1 ? 0 : head;
    return this.#layout[(at * this.#rows + row) * this.#columns + column] === 1;
  }
}

export interface BlockLayout {
  /** [heads, rows, columns] or [rows, columns], in blocks. */
  readonly shape: readonly number[];
  /** Tokens of a block, any size. */
  readonly blockSize: number;
}

const mostBlocks = 2 ** 30;

/** A layout of hidden blocks: 0, and 1 for visible ones. @throws ERR_OPTION when there are too many */
export function hiddenBlocks(heads: number, rows: number, columns: number): Uint8Array {
  const count = heads * rows * columns;
  if (count <= mostBlocks) return new Uint8Array(count);
  throw optionError(
    `${heads} heads of ${rows} x ${columns} blocks make ${count} blocks; a layout may have at most 2^30`,
  );
}

function readShape(shape: unknown): [heads: number, rows: number, columns: number] {
  const full: unknown[] = Array.isArray(shape) ? (shape.length === 2 ? [1, ...shape] : [...shape]) : [];
  if (full.length !== 3 || !full.every((n) => Number.isSafeInteger(n) && (n as number) >= 1))
    throw mustBe('shape', shape, '[heads, rows, columns] or [rows, columns], in blocks', 'ERR_SHAPE');
  return full as [number, number, number];
}

function readLayoutOptions(options: BlockLayout): { blockSize: number; dims: [number, number, number] } {
  checkOptions(options, ['shape', 'blockSize']);
  return { blockSize: checkTokens(options.blockSize, 'blockSize', 1), dims: readShape(options.shape) };
}

/** A dense layout of visible blocks, as DeepSpeed's sparsity configurations and Triton's block-sparse kernels use. */
export function blocks(layout: ArrayLike<number | boolean>, options: BlockLayout): Mask {
  const { blockSize, dims } = readLayoutOptions(options);
  const needed = 'an array of numbers or booleans, other than 0 and false where visible';
  if (!Array.isArray(layout) && typedArrayName(layout) === undefined) throw mustBe('layout', layout, needed);
  const count = dims.reduce((product, n) => product * n);
  if (layout.length !== count)
    throw shapeError(`layout has ${layout.length} entries; shape ${show(dims)} needs ${count}`);
  const visible = hiddenBlocks(...dims);
  for (let at = 0; at < count; at++) {
    const entry: unknown = layout[at];
    if (!['number', 'boolean', 'bigint'].includes(typeof entry))
      throw mustBe(`layout[${at}]`, entry, 'a number or a boolean');
    visible[at] = entry ? 1 : 0;
  }
  return new LayoutMask(visible, ...dims, blockSize);
}

/** The visible blocks in BSR form: the columns of block row r are indices[indptr[r]] to indices[indptr[r + 1] - 1]. */
export function blocksFromBsr(begins: ArrayLike<number>, blockColumns: ArrayLike<number>, options: BlockLayout): Mask {
  const { blockSize, dims } = readLayoutOptions(options);
  const [heads, rows, columns] = dims;
  const count = heads * rows;
  const indptr = checkIntegers(begins, 'indptr', 0);
  const indices = checkIntegers(blockColumns, 'indices');
  if (indptr.length !== count + 1 || indptr[0] !== 0 || indptr[count] !== indices.length)
    throw shapeError(
      `indptr must have heads * rows + 1 = ${count + 1} entries, from 0 to the ${indices.length} indices`,
    );
  const layout = hiddenBlocks(...dims);
  for (let row = 0; row < count; row++) {
    if (indptr[row + 1] < indptr[row])
      throw optionError(`indptr falls at row ${row}: ${indptr[row]}, ${indptr[row + 1]}`);
    for (let at = indptr[row]; at < indptr[row + 1]; at++) {
      const column = indices[at];
      if (column < 0 || column >= columns)
        throw optionError(`indices[${at}] is ${show(column)}; there are ${columns} block columns`);
      if (at > indptr[row] && column <= indices[at - 1])
        throw optionError(`indices[${at}] is ${column} after ${indices[at - 1]}; the columns of a row must rise`);
      layout[row * columns + column] = 1;
    }
  }
  return new LayoutMask(layout, heads, rows, columns, blockSize);
}

/** mulberry32, a generator of 32 random bits with a 32-bit state. */
export function mulberry32(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = state;
    x = Math.imul(x ^ (x >>> 15), x | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return (x ^ (x >>> 14)) >>> 0;
  };
}

/** `count` different integers of [0, below): a partial Fisher-Yates shuffle. */
export function sample(random: () => number, count: number, below: number): number[] {
  const pool = Array.from({ length: below }, (_, i) => i);
  for (let i = 0; i < count; i++) {
    const pick = i + (random() % (below - i));
    [pool[i], pool[pick]] = [pool[pick], pool[i]];
  }
  return pool.slice(0, count);
}

export interface RandomBlocksOptions {
  readonly queries: number;
  readonly keys: number;
  readonly blockSize: number;
  /** Visible blocks in each block row; all of them where there are fewer. */
  readonly count: number;
  readonly seed: number;
  /** Patterns for so many heads. Default 1, shared by all. */
  readonly heads?: number;
}

/**
 * `count` random blocks in every block row. The generator is mulberry32, seeded with `seed`; each block row, head by
 * head, takes the first `count` places of a Fisher-Yates shuffle of its columns, picks modulo what is left.
 */
export function randomBlocks(options: RandomBlocksOptions): Mask {
  checkOptions(options, ['queries', 'keys', 'blockSize', 'count', 'seed', 'heads']);
  const { queries, keys, blockSize, count, seed, heads = 1 } = options;
  checkTokens(blockSize, 'blockSize', 1);
  const rows = Math.ceil(checkTokens(queries, 'queries') / blockSize);
  const columns = Math.ceil(checkTokens(keys, 'keys') / blockSize);
  checkInteger(count, 'count', 0);
  checkInteger(seed, 'seed');
  const layout = hiddenBlocks(checkInteger(heads, 'heads', 1), rows, columns);
  const random = mulberry32(seed);
  for (let row = 0; row < heads * rows; row++)
    for (const column of sample(random, Math.min(count, columns), columns)) layout[row * columns + column] = 1;
  return new LayoutMask(layout, heads, rows, columns, blockSize);
}
