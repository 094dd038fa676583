import type { FlashAttnError } from '../../base/errors.js';

const alignment = 64;

/** Addresses that a heap hands out. */
export interface AddressSpace {
  readonly start: number;
  /** Where what is usable now ends. */
  readonly end: number;
  /** The most bytes that there can be. */
  readonly limit: number;
  /** Makes what lies before `end` usable, or more; false where the system has no more memory. */
  grow(end: number): boolean;
  /** Gives memory back to the system, where that can be done; it is there again when it is used, and what it held is lost. */
  discard(address: number, byteLength: number): void;
  /** The error for memory that is not there, where `available` bytes are not in use. */
  outOfMemory(byteLength: number, available: number): FlashAttnError;
}

interface Block {
  address: number;
  byteLength: number;
  /** The last launch that may still touch this memory: until it is done, only later launches may write here. */
  busyUntil: number;
}

const align = (n: number) => Math.ceil(n / alignment) * alignment;

/**
 * First-fit allocator. Launches run in order, so memory freed behind a pending
 * launch can be given to a later one at once; only the host has to wait for it.
 */
export class Heap {
  readonly #space: AddressSpace;
  /** Sorted by address, never adjacent. */
  #free: Block[] = [];
  #end: number;
  #inUse = 0;
  #peak = 0;

  constructor(space: AddressSpace) {
    this.#space = space;
    this.#end = align(space.start);
  }

  get inUse(): number {
    return this.#inUse;
  }

  get peak(): number {
    return this.#peak;
  }

  get reserved(): number {
    return this.#space.end - this.#space.start;
  }

  get limit(): number {
    return this.#space.limit;
  }

  /**
   * @param completed free memory whose launches are done up to here may be used; Infinity for memory that only
   *   launches write
   * @returns the address, or undefined when nothing fits and memory cannot grow
   */
  allocate(byteLength: number, completed: number): number | undefined {
    const needed = align(Math.max(byteLength, 1));
    const found = this.#free.findIndex((block) => block.byteLength >= needed && block.busyUntil <= completed);
    const address = found >= 0 ? this.#take(found, needed) : this.#extend(needed);
    if (address === undefined) return undefined;
    this.#inUse += needed;
    this.#peak = Math.max(this.#peak, this.#inUse);
    return address;
  }

  free(address: number, byteLength: number, busyUntil: number): void {
    const size = align(Math.max(byteLength, 1));
    this.#inUse -= size;
    const block = { address, byteLength: size, busyUntil };
    const at = this.#indexBehind(address);
    this.#free.splice(at, 0, block);
    this.#join(at);
    this.#join(at - 1);
  }

  /** Gives back what is free, where launches up to `completed` are done. */
  discard(completed: number): void {
    for (const { address, byteLength, busyUntil } of this.#free)
      if (busyUntil <= completed) this.#space.discard(address, byteLength);
  }

  /** Memory that the host writes first. @throws ERR_OUT_OF_MEMORY */
  claim(byteLength: number): number {
    const address = this.allocate(byteLength, 0);
    if (address === undefined) throw this.outOfMemory(byteLength);
    return address;
  }

  outOfMemory(byteLength: number): FlashAttnError {
    return this.#space.outOfMemory(byteLength, this.limit - this.#inUse);
  }

  /** The index of the first free block behind an address. */
  #indexBehind(address: number): number {
    let low = 0;
    let high = this.#free.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#free[middle] as Block).address > address) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  #take(at: number, byteLength: number): number {
    const block = this.#free[at] as Block;
    const { address } = block;
    block.address += byteLength;
    block.byteLength -= byteLength;
    if (block.byteLength === 0) this.#free.splice(at, 1);
    return address;
  }

  #extend(byteLength: number): number | undefined {
    const address = this.#end;
    const end = address + byteLength;
    if (end > this.#space.end && !this.#space.grow(end)) return undefined;
    this.#end = end;
    return address;
  }

  /** Joins a block with the next one where they touch. */
  #join(at: number): void {
    const block = this.#free[at];
    const next = this.#free[at + 1];
    if (!block || !next || block.address + block.byteLength !== next.address) return;
    block.byteLength += next.byteLength;
    block.busyUntil = Math.max(block.busyUntil, next.busyUntil);
    this.#free.splice(at + 1, 1);
  }
}
