const none = -1;

/** A queue of block numbers, out of which any can be taken: a list that is linked both ways through two arrays. */
export class BlockQueue {
  readonly #before: Int32Array;
  readonly #after: Int32Array;
  #first = none;
  #last = none;
  #size = 0;

  constructor(blocks: number) {
    this.#before = new Int32Array(blocks);
    this.#after = new Int32Array(blocks);
  }

  get size(): number {
    return this.#size;
  }

  /** The block that has waited longest, taken out. */
  shift(): number | undefined {
    const block = this.#first;
    if (block === none) return undefined;
    this.delete(block);
    return block;
  }

  /** Puts a block that is not in the queue at its end. */
  push(block: number): void {
    this.#before[block] = this.#last;
    this.#after[block] = none;
    if (this.#last === none) this.#first = block;
    else this.#after[this.#last] = block;
    this.#last = block;
    this.#size++;
  }

  /** Takes out a block that is in the queue. */
  delete(block: number): void {
    const before = this.#before[block];
    const after = this.#after[block];
    if (before === none) this.#first = after;
    else this.#after[before] = after;
    if (after === none) this.#last = before;
    else this.#before[after] = before;
    this.#size--;
  }
}
