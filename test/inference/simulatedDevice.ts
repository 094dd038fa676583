/** A device that is simulated: what lies in every position of every block. Only tokens in, and what is made of them. */

import { BlockPool, type BlockPoolOptions, type CachedSequence } from '../../lib/inference/blockPool.js';

/** What a position holds: a token, and a digest of all tokens up to it. */
export interface Cell {
  readonly token: number;
  readonly past: number;
}

/** A digest of one more token. */
export function digest(past: number, token: number): number {
  let word = Math.imul(past ^ token, 0x9e3779b1);
  word = Math.imul(word ^ (word >>> 15), 0x85ebca77);
  word = Math.imul(word ^ (word >>> 13), 0xc2b2ae3d);
  return (word ^ (word >>> 16)) >>> 0;
}

export class SimulatedDevice {
  readonly pool: BlockPool;
  readonly #cells: (Cell | undefined)[][];
  copies = 0;

  constructor(options: Omit<BlockPoolOptions, 'copy'>) {
    this.#cells = Array.from({ length: options.blocks }, () => new Array<Cell | undefined>(options.blockSize));
    this.pool = new BlockPool({
      ...options,
      copy: (from, to) => {
        if (from === to) throw new Error(`block ${from} is copied to itself`);
        this.copies++;
        this.#cells[to] = [...this.#cells[from]];
      },
    });
  }

  /** What a sequence finds at a position. */
  read({ table }: CachedSequence, position: number): Cell | undefined {
    const { blockSize } = this.pool;
    return this.#cells[table[Math.floor(position / blockSize)]][position % blockSize];
  }

  /**
   * Stores positions from `from` on: each digest is made of the one that lies before it in memory, so that a sequence which
   * finds something else there than its own past never comes right again.
   */
  write(sequence: CachedSequence, from: number, seed = 0): void {
    const { blockSize } = this.pool;
    const { table, tokens, length } = sequence;
    for (let at = from; at < length; at++) {
      const past = at === 0 ? seed : (this.read(sequence, at - 1)?.past ?? Number.NaN);
      this.#cells[table[Math.floor(at / blockSize)]][at % blockSize] = {
        token: tokens[at],
        past: digest(past, tokens[at]),
      };
    }
  }
}
