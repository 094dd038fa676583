import { FlashAttnError } from '../../base/errors.js';
import { createMemory } from './module.js';

const pageBytes = 65536;
const alignment = 64;
/** wasm32 addresses 4 GiB. */
const maxPages = 65536;
const growthBytes = 16 * 2 ** 20;

interface Block {
  address: number;
  byteLength: number;
  /** The last launch that may still touch this memory: until it is done, only later launches may write here. */
  busyUntil: number;
}

const align = (n: number) => Math.ceil(n / alignment) * alignment;

/**
 * First-fit allocator over one shared WebAssembly memory. Launches run in order, so memory freed behind a pending
 * launch can be given to a later one at once; only the host has to wait for it.
 */
export class Heap {
  readonly memory = createMemory(16, maxPages);
  /** Sorted by address, never adjacent. */
  #free: Block[] = [];
  #end = 0;
  #inUse = 0;
  #peak = 0;

  /** Hands over the memory behind `address`, where the module's own data ends. */
  start(address: number): void {
    this.#end = align(address);
  }

  get inUse(): number {
    return this.#inUse;
  }

  get peak(): number {
    return this.#peak;
  }

  get reserved(): number {
    return this.memory.buffer.byteLength;
  }

  get limit(): number {
    return maxPages * pageBytes;
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

  outOfMemory(byteLength: number): FlashAttnError {
    const available = this.limit - this.#inUse;
    return new FlashAttnError(
      'ERR_OUT_OF_MEMORY',
      `wasm: ${byteLength} bytes were asked for and ${available} of the ${this.limit} bytes that WebAssembly can address are available; dispose tensors or split the problem`,
    );
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
    const missing = address + byteLength - this.reserved;
    if (missing > 0) {
      const pages = Math.ceil(missing / pageBytes);
      const room = maxPages - this.reserved / pageBytes;
      if (pages > room) return undefined;
      try {
        this.memory.grow(Math.min(room, Math.max(pages, growthBytes / pageBytes)));
      } catch {
        return undefined; // the system has no more memory to map
      }
    }
    this.#end = address + byteLength;
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
