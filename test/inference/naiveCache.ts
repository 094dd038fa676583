/** What a pool of blocks promises, written down without any cleverness: prefixes as text, all blocks looked at every time. */

import { FlashAttnError } from '../../lib/index.js';
import type { CachedSequence } from '../../lib/inference/blockPool.js';

interface Kept {
  /** All tokens up to the end of the block. */
  readonly prefix: string;
  /** When its last holder let it go; undefined while there is one. */
  released: number | undefined;
}

/** A sequence by what must be in it. Its whole committed blocks are known by their prefixes, others are its own or shared. */
export interface NaiveSequence {
  readonly real: CachedSequence;
  readonly salt: number | undefined;
  readonly tokens: number[];
  committed: number;
  /** By block: its prefix, where it is whole and was committed; otherwise an object that all holders have in common. */
  readonly blocks: (string | object)[];
}

export class NaiveCache {
  readonly living = new Set<NaiveSequence>();
  readonly #kept = new Map<string, Kept>();
  #clock = 0;
  evictions = 0;

  constructor(
    readonly blocks: number,
    readonly blockSize: number,
  ) {}

  prefix = (tokens: readonly number[], salt: number | undefined): string => `${salt}:${tokens.join()}`;

  holders(block: string | object): number {
    let count = 0;
    for (const { blocks } of this.living) if (blocks.includes(block)) count++;
    return count;
  }

  get used(): number {
    return new Set([...this.living].flatMap(({ blocks }) => blocks)).size;
  }

  get shared(): number {
    const all = [...this.living].flatMap(({ blocks }) => blocks);
    return [...new Set(all)].filter((block) => this.holders(block) > 1).length;
  }

  get cached(): number {
    return [...this.#kept.values()].filter(({ released }) => released !== undefined).length;
  }

  get available(): number {
    return this.blocks - this.used;
  }

  /** Every prefix that can be found has its beginning there too. */
  checkBeginnings(): void {
    for (const { prefix } of this.#kept.values()) {
      const [salt, tokens] = prefix.split(':');
      const shorter = tokens.split(',').slice(0, -this.blockSize);
      if (shorter.length > 0 && !this.#kept.has(`${salt}:${shorter.join()}`))
        throw new Error(`${prefix} has lost its beginning`);
    }
  }

  /** How many tokens of a prompt are found. */
  find(tokens: readonly number[], salt: number | undefined): number {
    let found = 0;
    while (found + this.blockSize < tokens.length) {
      if (!this.#kept.has(this.prefix(tokens.slice(0, found + this.blockSize), salt))) break;
      found += this.blockSize;
    }
    return found;
  }

  add(real: CachedSequence, tokens: readonly number[], salt: number | undefined): NaiveSequence {
    const blocks: string[] = [];
    for (let end = this.blockSize; end <= tokens.length; end += this.blockSize) {
      const prefix = this.prefix(tokens.slice(0, end), salt);
      (this.#kept.get(prefix) as Kept).released = undefined;
      blocks.push(prefix);
    }
    const sequence = { real, salt, tokens: [...tokens], committed: tokens.length, blocks };
    this.living.add(sequence);
    return sequence;
  }

  #drop(sequence: NaiveSequence): void {
    const block = sequence.blocks.pop() as string | object;
    if (typeof block === 'string' && this.holders(block) === 0)
      (this.#kept.get(block) as Kept).released = this.#clock++;
  }

  #hasFollowers(prefix: string): boolean {
    return [...this.#kept.keys()].some((other) => other.startsWith(`${prefix},`));
  }

  /** One block is taken: of those that are kept, what was let go first goes first when no other is free. */
  #take(): object {
    const free = this.blocks - this.used - this.cached;
    if (free === 0) {
      const kept = [...this.#kept.values()].filter(({ released }) => released !== undefined);
      const oldest = kept.reduce((a, b) => ((b.released as number) < (a.released as number) ? b : a));
      this.#kept.delete(oldest.prefix);
      this.evictions++;
    }
    return {};
  }

  /** What `extend` must do; what it must throw. */
  extend(sequence: NaiveSequence, tokens: readonly number[]): 'done' | 'exhausted' {
    if (tokens.length === 0) return 'done';
    const { blockSize } = this;
    const wanted = Math.ceil((sequence.tokens.length + tokens.length) / blockSize) - sequence.blocks.length;
    const isWithin = sequence.tokens.length % blockSize !== 0;
    const last = sequence.blocks.at(-1) as string | object;
    const mustCopy = isWithin && this.holders(last) > 1;
    if (wanted + (mustCopy ? 1 : 0) > this.available) return 'exhausted';
    const taken: object[] = [];
    // Held by a sequence of their own while they are taken, so that they count.
    const hands: NaiveSequence = { ...sequence, blocks: taken };
    this.living.add(hands);
    for (let n = 0; n < wanted; n++) taken.push(this.#take());
    if (isWithin) {
      if (mustCopy || (typeof last === 'string' && this.#hasFollowers(last))) {
        const own = this.#take();
        taken.push(own); // counts while the other is let go
        this.#drop(sequence);
        sequence.blocks.push(own);
        taken.pop();
      } else if (typeof last === 'string') {
        this.#kept.delete(last);
        sequence.blocks[sequence.blocks.length - 1] = {};
      }
    }
    this.living.delete(hands);
    sequence.blocks.push(...taken);
    sequence.tokens.push(...tokens);
    return 'done';
  }

  commit(sequence: NaiveSequence): void {
    const { blockSize } = this;
    sequence.committed = sequence.tokens.length;
    for (let at = 0; (at + 1) * blockSize <= sequence.committed; at++) {
      const prefix = this.prefix(sequence.tokens.slice(0, (at + 1) * blockSize), sequence.salt);
      const own = sequence.blocks[at];
      if (own === prefix) continue;
      const known = this.#kept.get(prefix);
      // The first that commits gives its block its name; a holder of the same block has it under that name from then on.
      if (!known) {
        this.#kept.set(prefix, { prefix, released: undefined });
        for (const other of this.living) {
          const place = other.blocks.indexOf(own);
          if (place >= 0) other.blocks[place] = prefix;
        }
      } else {
        known.released = undefined;
        sequence.blocks[at] = prefix;
      }
    }
  }

  truncate(sequence: NaiveSequence, length: number): void {
    while (sequence.blocks.length > Math.ceil(length / this.blockSize)) this.#drop(sequence);
    sequence.tokens.length = length;
    sequence.committed = Math.min(sequence.committed, length);
  }

  fork(sequence: NaiveSequence, real: CachedSequence): NaiveSequence {
    const copy = { ...sequence, real, tokens: [...sequence.tokens], blocks: [...sequence.blocks] };
    this.living.add(copy);
    return copy;
  }

  free(sequence: NaiveSequence): void {
    this.truncate(sequence, 0);
    this.living.delete(sequence);
  }
}

/** Whether a call throws for want of blocks. */
export function isExhausted(call: () => void): boolean {
  try {
    call();
    return false;
  } catch (error) {
    if (error instanceof FlashAttnError && error.code === 'ERR_OUT_OF_MEMORY') return true;
    throw error;
  }
}
