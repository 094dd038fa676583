import type { DeviceBuffer } from '../../kernels/memory.js';

const alignment = 256;
/** What is taken at once at least: small arrays share it. */
const leastBytes = 256 * 1024;

const align = (n: number) => Math.ceil(Math.max(n, 1) / alignment) * alignment;

/** Where an arena has its memory from. */
export interface ArenaSource {
  /** @throws ERR_OUT_OF_MEMORY */
  take(byteLength: number): DeviceBuffer;
  give(buffer: DeviceBuffer): void;
  /** A buffer within what was taken. */
  part(address: number, byteLength: number): DeviceBuffer;
}

interface Block {
  address: number;
  byteLength: number;
}

interface Chunk {
  readonly whole: DeviceBuffer;
  /** Sorted by address, never adjacent. */
  readonly free: Block[];
  buffers: number;
}

/** Memory of a recording: what is freed goes to what is allocated later within it, and all of it goes back at the end. */
export class Arena {
  readonly #source: ArenaSource;
  readonly #chunks: Chunk[] = [];
  readonly #live = new Map<DeviceBuffer, Chunk>();
  #closed = false;

  constructor(source: ArenaSource) {
    this.#source = source;
  }

  /** Buffers that have not been freed. */
  get live(): Iterable<DeviceBuffer> {
    return this.#live.keys();
  }

  owns(buffer: DeviceBuffer): boolean {
    return this.#live.has(buffer);
  }

  /** @throws ERR_OUT_OF_MEMORY */
  allocate(byteLength: number): DeviceBuffer {
    const needed = align(byteLength);
    const { chunk, block } = this.#bestFit(needed) ?? this.#grow(needed);
    const buffer = this.#source.part(block.address, byteLength);
    block.address += needed;
    block.byteLength -= needed;
    if (block.byteLength === 0) chunk.free.splice(chunk.free.indexOf(block), 1);
    chunk.buffers++;
    this.#live.set(buffer, chunk);
    return buffer;
  }

  free(buffer: DeviceBuffer): void {
    const chunk = this.#live.get(buffer) as Chunk;
    this.#live.delete(buffer);
    chunk.buffers--;
    if (this.#closed) {
      if (chunk.buffers === 0) this.#source.give(chunk.whole);
      return;
    }
    const { free } = chunk;
    let at = free.findIndex((block) => block.address > buffer.address);
    if (at < 0) at = free.length;
    free.splice(at, 0, { address: buffer.address, byteLength: align(buffer.byteLength) });
    this.#join(free, at);
    this.#join(free, at - 1);
  }

  /** Gives everything back: at once, or when the last buffer in it is freed. */
  close(): void {
    this.#closed = true;
    for (const { whole, buffers } of this.#chunks) if (buffers === 0) this.#source.give(whole);
  }

  #bestFit(needed: number): { readonly chunk: Chunk; readonly block: Block } | undefined {
    let best: { readonly chunk: Chunk; readonly block: Block } | undefined;
    for (const chunk of this.#chunks)
      for (const block of chunk.free)
        if (block.byteLength >= needed && !(best && best.block.byteLength <= block.byteLength)) best = { chunk, block };
    return best;
  }

  #grow(needed: number): { readonly chunk: Chunk; readonly block: Block } {
    const whole = this.#source.take(Math.max(needed, leastBytes));
    const block = { address: whole.address, byteLength: whole.byteLength };
    const chunk: Chunk = { whole, free: [block], buffers: 0 };
    this.#chunks.push(chunk);
    return { chunk, block };
  }

  /** Joins a block with the next one where they touch. */
  #join(free: Block[], at: number): void {
    const [block, next] = [free[at], free[at + 1]];
    if (!block || !next || block.address + block.byteLength !== next.address) return;
    block.byteLength += next.byteLength;
    free.splice(at + 1, 1);
  }
}
