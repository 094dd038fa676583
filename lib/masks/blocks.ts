import { optionError, shapeError, show } from '../base/errors.js';
import { type Coverage, type Grid, Mask, type Region, type Row, showKeys } from './mask.js';

/** Blocks of any size, visible or not as a whole: layout[(h * rows + r) * columns + c]. */
class LayoutMask extends Mask {
  override readonly heads: number;
  readonly #layout: ArrayLike<number | boolean>;
  readonly #rows: number;
  readonly #columns: number;
  readonly #blockSize: number;

  constructor(layout: ArrayLike<number | boolean>, heads: number, rows: number, columns: number, blockSize: number) {
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
    return Boolean(this.#layout[(at * this.#rows + row) * this.#columns + column]);
  }
}

export interface BlockLayout {
  /** [heads, rows, columns] or [rows, columns], in blocks. */
  readonly shape: readonly number[];
  /** Tokens of a block, any size. */
  readonly blockSize: number;
}

function readShape(shape: readonly number[]): [heads: number, rows: number, columns: number] {
  const full = shape.length === 2 ? [1, ...shape] : shape;
  if (full.length !== 3 || !full.every((n) => Number.isInteger(n) && n >= 1))
    throw shapeError(`shape is ${show(shape)}; it must be [heads, rows, columns] or [rows, columns], in blocks`);
  return full as [number, number, number];
}

function checkBlockSize(blockSize: unknown): void {
  if (!Number.isInteger(blockSize) || (blockSize as number) < 1)
    throw optionError(`blockSize is ${show(blockSize)}; it must be an integer >= 1`);
}

/** A dense layout of visible blocks, as DeepSpeed's sparsity configurations and Triton's block-sparse kernels use. */
export function blocks(layout: ArrayLike<number | boolean>, options: BlockLayout): Mask {
  checkBlockSize(options.blockSize);
  const [heads, rows, columns] = readShape(options.shape);
  if (layout.length !== heads * rows * columns)
    throw shapeError(
      `layout has ${layout.length} entries; shape ${show(options.shape)} needs ${heads * rows * columns}`,
    );
  return new LayoutMask(layout, heads, rows, columns, options.blockSize);
}

/** The visible blocks in BSR form: the columns of block row r are indices[indptr[r]] to indices[indptr[r + 1] - 1]. */
export function blocksFromBsr(indptr: ArrayLike<number>, indices: ArrayLike<number>, options: BlockLayout): Mask {
  checkBlockSize(options.blockSize);
  const [heads, rows, columns] = readShape(options.shape);
  const count = heads * rows;
  if (indptr.length !== count + 1 || indptr[0] !== 0 || indptr[count] !== indices.length)
    throw shapeError(
      `indptr must have heads * rows + 1 = ${count + 1} entries, from 0 to the ${indices.length} indices`,
    );
  const layout = new Uint8Array(count * columns);
  for (let row = 0; row < count; row++) {
    if (indptr[row + 1] < indptr[row])
      throw optionError(`indptr falls at row ${row}: ${indptr[row]}, ${indptr[row + 1]}`);
    for (let at = indptr[row]; at < indptr[row + 1]; at++) {
      const column = indices[at];
      if (!Number.isInteger(column) || column < 0 || column >= columns)
        throw optionError(`indices[${at}] is ${show(column)}; there are ${columns} block columns`);
      if (at > indptr[row] && column <= indices[at - 1])
        throw optionError(`indices[${at}] is ${column} after ${indices[at - 1]}; the columns of a row must rise`);
      layout[row * columns + column] = 1;
    }
  }
  return new LayoutMask(layout, heads, rows, columns, options.blockSize);
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
  /** Visible blocks in each block row. */
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
  const { queries, keys, blockSize, count, seed, heads = 1 } = options;
  checkBlockSize(blockSize);
  const rows = Math.ceil(queries / blockSize);
  const columns = Math.ceil(keys / blockSize);
  if (!Number.isInteger(count) || count < 0 || count > columns)
    throw optionError(`count is ${show(count)}; it must be from 0 to the ${columns} blocks of a row`);
  if (!Number.isInteger(seed)) throw optionError(`seed is ${show(seed)}; it must be an integer`);
  const layout = new Uint8Array(heads * rows * columns);
  const random = mulberry32(seed);
  for (let row = 0; row < heads * rows; row++)
    for (const column of sample(random, count, columns)) layout[row * columns + column] = 1;
  return new LayoutMask(layout, heads, rows, columns, blockSize);
}
