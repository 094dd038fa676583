import { FlashAttnError } from '../base/errors.js';
import { BlockQueue } from './blockQueue.js';
import { PrefixTree } from './prefixTree.js';

/** Numbers of a pool; `used + cached + free` is all blocks. Those that count events only rise. */
export interface BlockPoolStats {
  readonly blocks: number;
  /** Blocks of living sequences. */
  readonly used: number;
  /** Those of them that several sequences have. */
  readonly shared: number;
  /** Blocks that no sequence has and that are kept for their prefix, until others need them. */
  readonly cached: number;
  readonly free: number;
  /** Tokens of prompts that were found stored. */
  readonly hits: number;
  /** Tokens of prompts that were not. */
  readonly misses: number;
  /** Cached blocks that were given to others. */
  readonly evictions: number;
  /** Blocks that were copied before a sequence wrote into its own. */
  readonly copies: number;
}

/**
 * Who holds which block. A block is free, or held by sequences, or it is held by none and kept, because its prefix is in the
 * tree. Who holds a block of the tree holds all blocks before it; so those that are kept can be queued such that children
 * stand before their parents, if a sequence lets go of its last block first: the queue's first is then always a leaf.
 */
export class Blocks {
  readonly count: number;
  readonly tree: PrefixTree;
  readonly #copy: (from: number, to: number) => void;
  readonly #holders: Int32Array;
  readonly #kept: BlockQueue;
  readonly #free: number[];
  #shared = 0;
  #hits = 0;
  #misses = 0;
  #evictions = 0;
  #copies = 0;

  constructor(count: number, blockSize: number, copy: (from: number, to: number) => void) {
    this.count = count;
    this.tree = new PrefixTree(count, blockSize);
    this.#copy = copy;
    this.#holders = new Int32Array(count);
    this.#kept = new BlockQueue(count);
    this.#free = Array.from({ length: count }, (_, at) => count - 1 - at); // the last is taken first
  }

  get available(): number {
    return this.#free.length + this.#kept.size;
  }

  get stats(): BlockPoolStats {
    return {
      blocks: this.count,
      used: this.count - this.available,
      shared: this.#shared,
      cached: this.#kept.size,
      free: this.#free.length,
      hits: this.#hits,
      misses: this.#misses,
      evictions: this.#evictions,
      copies: this.#copies,
    };
  }

  countPrompt(hits: number, misses: number): void {
    this.#hits += hits;
    this.#misses += misses;
  }

  /** @throws ERR_OUT_OF_MEMORY where there are not as many to be had */
  check(wanted: number): void {
    if (wanted <= this.available) return;
    const { used, shared } = this.stats;
    throw new FlashAttnError(
      'ERR_OUT_OF_MEMORY',
      `${wanted} more blocks are wanted and ${this.available} of ${this.count} are available: sequences hold ${used}, of which ${shared} are shared`,
    );
  }

  /** A block of one's own, with anything in it. */
  take(): number {
    let block = this.#free.pop();
    if (block === undefined) {
      this.check(1);
      block = this.#kept.shift() as number;
      this.tree.delete(block);
      this.#evictions++;
    }
    this.#holders[block] = 1;
    return block;
  }

  /** Holds a block that others hold, or that is kept. */
  share(block: number): void {
    const holders = ++this.#holders[block];
    if (holders === 1) this.#kept.delete(block);
    if (holders === 2) this.#shared++;
  }

  release(block: number): void {
    const holders = --this.#holders[block];
    if (holders === 1) this.#shared--;
    if (holders > 0) return;
    if (this.tree.has(block)) this.#kept.push(block);
    else this.#free.push(block);
  }

  /** Whether nobody else has the block. */
  isSole(block: number): boolean {
    return this.#holders[block] === 1;
  }

  /**
   * A block with the same in it that can be written: the same one if nobody else has it, otherwise a copy. A whole block that
   * is known to the tree stays there if others follow it, and is forgotten otherwise.
   */
  writable(block: number): number {
    if (this.isSole(block)) {
      if (!this.tree.has(block)) return block;
      if (this.tree.isLeaf(block)) {
        this.tree.delete(block);
        return block;
      }
    }
    const own = this.take();
    try {
      this.#copy(block, own);
    } catch (error) {
      this.release(own);
      throw error;
    }
    this.#copies++;
    this.release(block);
    return own;
  }
}
