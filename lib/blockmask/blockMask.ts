import { isTyped } from '../base/arrays.js';
import { checkInteger, checkObject, mustBe } from '../base/check.js';
import { optionError, shapeError } from '../base/errors.js';
import { checkTokens, countBits } from '../masks/mask.js';
import { type DrawOptions, drawSvg, drawText } from './draw.js';
import type { BlockLists, BlockMaskParts, BlockMaskShape, BlockMaskStatistics, TransposedLists } from './parts.js';

export type { BlockLists, BlockMaskParts, BlockMaskShape, BlockMaskStatistics } from './parts.js';

/** Lists of one direction, over all batch entries and heads: kernels count them in 32 bits. */
const mostLists = 2 ** 28;

const isBlockSize = (size: unknown): size is 64 | 128 => size === 64 || size === 128;

/** @internal */
export function checkBlockMaskShape(shape: BlockMaskShape): void {
  if (!isBlockSize(shape.blockSize)) throw mustBe('blockSize', shape.blockSize, '64 or 128');
  for (const name of ['batch', 'heads'] as const) checkTokens(shape[name], name, 1);
  for (const name of ['queries', 'keys'] as const) checkTokens(shape[name], name);
  const { batch, heads, queries, keys, blockSize } = shape;
  const lists = batch * heads * Math.max(1, Math.ceil(Math.max(queries, keys) / blockSize));
  if (lists > mostLists)
    throw optionError(
      `${batch} batch entries, ${heads} heads, ${queries} queries and ${keys} keys make ${lists} lists of blocks; at most ${mostLists} can be held`,
    );
}

function copyLists(lists: BlockLists, name: string): BlockLists {
  if (lists === null || typeof lists !== 'object') throw mustBe(name, lists, 'block lists');
  const { offsets, indices } = lists;
  if (!(isTyped(offsets, 'Int32Array') && isTyped(indices, 'Int32Array')))
    throw optionError(`${name} must have Int32Arrays offsets and indices`);
  return { offsets: new Int32Array(offsets), indices: new Int32Array(indices) };
}

function checkLists({ offsets, indices }: BlockLists, name: string, count: number, columns: number): void {
  if (offsets.length !== count + 1 || offsets[0] !== 0 || offsets[count] !== indices.length)
    throw shapeError(`${name}.offsets must have ${count + 1} entries, from 0 to the ${indices.length} indices`);
  for (let row = 0; row < count; row++) {
    if (offsets[row + 1] < offsets[row] || offsets[row + 1] > indices.length)
      throw optionError(
        `${name}.offsets[${row + 1}] is ${offsets[row + 1]} after ${offsets[row]} of ${indices.length}`,
      );
    for (let at = offsets[row]; at < offsets[row + 1]; at++) {
      if (indices[at] < 0 || indices[at] >= columns)
        throw optionError(`${name}.indices[${at}] is ${indices[at]}; there are ${columns} block columns`);
      if (at > offsets[row] && indices[at] <= indices[at - 1])
        throw optionError(
          `${name}.indices[${at}] is ${indices[at]} after ${indices[at - 1]}; the blocks of a row must rise`,
        );
    }
  }
}

/** No bit may lie outside of the mask: what is visible is counted by bits. */
function checkBits({ queries, keys, blockSize }: BlockMaskShape, { offsets, indices }: BlockLists, bits: Uint32Array) {
  const rowWords = blockSize / 32;
  const rows = Math.ceil(queries / blockSize);
  /** The bits of a word that stand for keys below `width`. */
  const within = (word: number, width: number) => {
    const count = width - word * 32;
    return count >= 32 ? 0xffffffff : count <= 0 ? 0 : 2 ** count - 1;
  };
  for (let list = 0; list + 1 < offsets.length; list++) {
    const height = Math.min(blockSize, queries - (list % rows) * blockSize);
    for (let block = offsets[list]; block < offsets[list + 1]; block++) {
      const width = Math.min(blockSize, keys - indices[block] * blockSize);
      if (height === blockSize && width === blockSize) continue;
      for (let at = 0; at < blockSize * rowWords; at++) {
        const allowed = at < height * rowWords ? within(at % rowWords, width) : 0;
        if (bits[block * blockSize * rowWords + at] & ~allowed)
          throw optionError(`bits of partial block ${block} lie outside of the ${queries} queries x ${keys} keys`);
      }
    }
  }
}

/** No block may be both full and partial: rows are sorted, so a merge finds it. */
function checkDisjoint(full: BlockLists, partial: BlockLists): void {
  for (let row = 0; row + 1 < full.offsets.length; row++) {
    let at = partial.offsets[row];
    for (let f = full.offsets[row]; f < full.offsets[row + 1]; f++) {
      while (at < partial.offsets[row + 1] && partial.indices[at] < full.indices[f]) at++;
      if (at < partial.offsets[row + 1] && partial.indices[at] === full.indices[f])
        throw optionError(`block ${full.indices[f]} of row ${row} is listed as full and as partial`);
    }
  }
}

/** Turns lists of columns for each row into lists of rows for each column, head by head. */
function transpose(lists: BlockLists, grids: number, rows: number, columns: number) {
  const offsets = new Int32Array(grids * columns + 1);
  const indices = new Int32Array(lists.indices.length);
  const blocks = new Int32Array(lists.indices.length);
  const each = (visit: (list: number, row: number, block: number) => void) => {
    for (let list = 0; list < grids * rows; list++)
      for (let block = lists.offsets[list]; block < lists.offsets[list + 1]; block++)
        visit(Math.floor(list / rows) * columns + lists.indices[block], list % rows, block);
  };
  each((list) => offsets[list + 1]++);
  for (let list = 0; list < grids * columns; list++) offsets[list + 1] += offsets[list];
  const next = offsets.slice();
  each((list, row, block) => {
    const at = next[list]++;
    indices[at] = row;
    blocks[at] = block;
  });
  return { lists: { offsets, indices }, blocks };
}

/**
 * A mask as the kernels read it: for each row of query blocks the full blocks, which pay nothing for the mask, and the
 * partial ones with a bit for each pair. Made by `blockMask`, or from outside by `BlockMask.from` and `fromBytes`,
 * which check everything. Immutable.
 */
export class BlockMask implements BlockMaskParts {
  readonly batch: number;
  readonly heads: number;
  readonly queries: number;
  readonly keys: number;
  readonly blockSize: 64 | 128;
  readonly full: BlockLists;
  readonly partial: BlockLists;
  readonly bits: Uint32Array;
  #transposed: TransposedLists | undefined;

  /** @internal The parts are trusted. */
  constructor(parts: BlockMaskParts) {
    this.batch = parts.batch;
    this.heads = parts.heads;
    this.queries = parts.queries;
    this.keys = parts.keys;
    this.blockSize = parts.blockSize;
    this.full = parts.full;
    this.partial = parts.partial;
    this.bits = parts.bits;
  }

  /** A block mask from parts made elsewhere, which are copied. @throws ERR_OPTION, ERR_SHAPE */
  static from(parts: BlockMaskParts): BlockMask {
    checkObject(parts, 'parts');
    const { batch, heads, queries, keys, blockSize } = parts;
    const shape = { batch, heads, queries, keys, blockSize };
    checkBlockMaskShape(shape);
    const rows = batch * heads * Math.ceil(queries / blockSize);
    const columns = Math.ceil(keys / blockSize);
    // Copied before they are checked: whoever made them may still write to them.
    const full = copyLists(parts.full, 'full');
    const partial = copyLists(parts.partial, 'partial');
    checkLists(full, 'full', rows, columns);
    checkLists(partial, 'partial', rows, columns);
    checkDisjoint(full, partial);
    const words = (partial.indices.length * blockSize * blockSize) / 32;
    const given = parts.bits;
    const bits = isTyped(given, 'Uint32Array') ? new Uint32Array(given) : undefined;
    if (bits?.length !== words)
      throw shapeError(`bits must be a Uint32Array of ${words} words for ${partial.indices.length} partial blocks`);
    checkBits(shape, partial, bits);
    return new BlockMask({ ...shape, full, partial, bits });
  }

  /** Made when first asked for: bytes of a mask hold only the other direction. */
  get transposed(): TransposedLists {
    if (!this.#transposed) {
      const grids = this.batch * this.heads;
      const full = transpose(this.full, grids, this.rows, this.columns);
      const partial = transpose(this.partial, grids, this.rows, this.columns);
      this.#transposed = { full: full.lists, partial: partial.lists, partialBlocks: partial.blocks };
    }
    return this.#transposed;
  }

  /** Rows of query blocks. */
  get rows(): number {
    return Math.ceil(this.queries / this.blockSize);
  }

  /** Columns of key blocks. */
  get columns(): number {
    return Math.ceil(this.keys / this.blockSize);
  }

  /** Words of one partial block in `bits`. */
  get wordsPerBlock(): number {
    return (this.blockSize * this.blockSize) / 32;
  }

  /** Whether a query sees a key. For tests and drawings, not for speed. @throws ERR_OPTION */
  visible(batch: number, head: number, query: number, key: number): boolean {
    const { blockSize } = this;
    const below = (count: number) => (count === 1 ? Number.POSITIVE_INFINITY : count - 1);
    checkInteger(batch, 'batch', 0, below(this.batch));
    checkInteger(head, 'head', 0, below(this.heads));
    checkInteger(query, 'query', 0, this.queries - 1);
    checkInteger(key, 'key', 0, this.keys - 1);
    const list = this.listOf(batch, head, Math.floor(query / blockSize));
    const column = Math.floor(key / blockSize);
    const find = ({ offsets, indices }: BlockLists) => {
      const at = indices.subarray(offsets[list], offsets[list + 1]).indexOf(column);
      return at < 0 ? -1 : offsets[list] + at;
    };
    if (find(this.full) >= 0) return true;
    const block = find(this.partial);
    if (block < 0) return false;
    const bit = (query % blockSize) * blockSize + (key % blockSize);
    return ((this.bits[block * this.wordsPerBlock + (bit >> 5)] >>> (bit & 31)) & 1) === 1;
  }

  /** @internal The list of a row of query blocks; batch and head may exceed a mask that all of them share. */
  listOf(batch: number, head: number, row: number): number {
    return ((this.batch === 1 ? 0 : batch) * this.heads + (this.heads === 1 ? 0 : head)) * this.rows + row;
  }

  /** A picture of one head: full, partial and empty blocks, a legend, the density and what it saves. */
  toSVG(options: DrawOptions = {}): string {
    return drawSvg(this, options);
  }

  /** The same in characters, for a terminal of `columns` columns. */
  toText(options: DrawOptions & { readonly columns?: number } = {}): string {
    return drawText(this, options);
  }

  statistics(): BlockMaskStatistics {
    const { batch, heads, queries, keys, blockSize, rows, columns } = this;
    let visiblePairs = countBits(this.bits);
    for (let list = 0; list + 1 < this.full.offsets.length; list++) {
      const height = Math.min(blockSize, queries - (list % rows) * blockSize);
      for (let at = this.full.offsets[list]; at < this.full.offsets[list + 1]; at++)
        visiblePairs += height * Math.min(blockSize, keys - this.full.indices[at] * blockSize);
    }
    const totalPairs = batch * heads * queries * keys;
    const all = batch * heads * rows * columns;
    const fullBlocks = this.full.indices.length;
    const partialBlocks = this.partial.indices.length;
    const arrays = [this.full.offsets, this.full.indices, this.partial.offsets, this.partial.indices, this.bits];
    return {
      fullBlocks,
      partialBlocks,
      emptyBlocks: all - fullBlocks - partialBlocks,
      visiblePairs,
      totalPairs,
      density: totalPairs === 0 ? 0 : visiblePairs / totalPairs,
      blockDensity: all === 0 ? 0 : (fullBlocks + partialBlocks) / all,
      byteLength: arrays.reduce((sum, { byteLength }) => sum + byteLength, 0),
    };
  }
}
