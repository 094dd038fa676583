import { checkInteger, checkOptions } from '../base/check.js';
import { optionError, show } from '../base/errors.js';
import { type Coverage, checkMask, countBits, type Grid, type Mask, type Region } from '../masks/mask.js';
import { type BlockLists, BlockMask, checkBlockMaskShape } from './blockMask.js';

export interface BlockMaskOptions {
  /** Queries and keys. */
  readonly nq: number;
  /** Default: as many as queries. */
  readonly nk?: number;
  /** Default: what the mask itself has. A mask that does not depend on the batch entry is stored once. */
  readonly batch?: number;
  /** Default: what the mask itself has. A mask that does not depend on the head is stored once. */
  readonly heads?: number;
  /** Default 64. */
  readonly blockSize?: 64 | 128;
}

/** Collects sorted lists, one after the other. */
class ListBuilder {
  readonly #offsets = [0];
  readonly #indices: number[] = [];

  add(index: number): void {
    this.#indices.push(index);
  }

  endList(): void {
    this.#offsets.push(this.#indices.length);
  }

  build(): BlockLists {
    return { offsets: Int32Array.from(this.#offsets), indices: Int32Array.from(this.#indices) };
  }
}

/** Words that grow by doubling. */
class WordBuilder {
  #words = new Uint32Array(1024);
  #length = 0;

  /** The next `count` words, zero; they stay only after `keep`. */
  draft(count: number): Uint32Array {
    while (this.#length + count > this.#words.length) {
      const larger = new Uint32Array(this.#words.length * 2);
      larger.set(this.#words);
      this.#words = larger;
    }
    return this.#words.subarray(this.#length, this.#length + count).fill(0);
  }

  keep(count: number): void {
    this.#length += count;
  }

  build(): Uint32Array {
    return this.#words.slice(0, this.#length);
  }
}

function checkCount(mask: Mask, dim: 'batch' | 'heads', wanted: number | undefined): void {
  if (wanted !== undefined) checkInteger(wanted, dim, 1);
  if (wanted !== undefined && mask[dim] !== 1 && mask[dim] !== wanted)
    throw optionError(
      `the mask is for ${mask[dim]} ${dim === 'heads' ? 'heads' : 'batch entries'}; ${dim} is ${show(wanted)}`,
    );
}

/** Writes the bits of a block and tells from them what it really is. */
function writeBlock(mask: Mask, r: Region, grid: Grid, words: Uint32Array, rowWords: number): Coverage {
  const { batch, head, keyBegin, keyEnd } = r;
  for (let query = r.queryBegin; query < r.queryEnd; query++) {
    const at = (query - r.queryBegin) * rowWords;
    mask.writeRow(words.subarray(at, at + rowWords), { batch, head, query, keyBegin, keyEnd }, grid);
  }
  const count = countBits(words);
  if (count === 0) return 'empty';
  return count === (r.queryEnd - r.queryBegin) * (keyEnd - keyBegin) ? 'full' : 'partial';
}

/**
 * Compiles a mask for given dims. Whole blocks are decided by `classify`; only blocks that may be partial are looked at
 * bit by bit, so time and memory follow the number of blocks.
 *
 * @throws ERR_OPTION, ERR_SHAPE
 */
export function blockMask(mask: Mask, options: BlockMaskOptions): BlockMask {
  checkMask(mask, 'mask');
  checkOptions(options, ['nq', 'nk', 'batch', 'heads', 'blockSize']);
  const { nq: queries, nk: keys = queries, blockSize = 64 } = options;
  const shape = { batch: mask.batch, heads: mask.heads, queries, keys, blockSize };
  checkBlockMaskShape(shape);
  checkCount(mask, 'batch', options.batch);
  checkCount(mask, 'heads', options.heads);
  const grid: Grid = { batch: options.batch ?? mask.batch, heads: options.heads ?? mask.heads, queries, keys };
  mask.check(grid);

  const rowWords = blockSize / 32;
  const blockWords = blockSize * rowWords;
  const full = new ListBuilder();
  const partial = new ListBuilder();
  const bits = new WordBuilder();
  // One object for all questions: a million small ones would cost more than the answers.
  const region = { batch: 0, head: 0, queryBegin: 0, queryEnd: 0, keyBegin: 0, keyEnd: 0 };
  for (region.batch = 0; region.batch < mask.batch; region.batch++)
    for (region.head = 0; region.head < mask.heads; region.head++)
      for (region.queryBegin = 0; region.queryBegin < queries; region.queryBegin += blockSize) {
        region.queryEnd = Math.min(region.queryBegin + blockSize, queries);
        for (region.keyBegin = 0; region.keyBegin < keys; region.keyBegin += blockSize) {
          region.keyEnd = Math.min(region.keyBegin + blockSize, keys);
          const cover = mask.classify(region, grid);
          if (cover === 'empty') continue;
          const column = region.keyBegin / blockSize;
          const refined = cover === 'full' ? cover : writeBlock(mask, region, grid, bits.draft(blockWords), rowWords);
          if (refined === 'full') full.add(column);
          if (refined === 'partial') {
            partial.add(column);
            bits.keep(blockWords);
          }
        }
        full.endList();
        partial.endList();
      }
  return new BlockMask({ ...shape, full: full.build(), partial: partial.build(), bits: bits.build() });
}
