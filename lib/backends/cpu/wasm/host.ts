import { FlashAttnError } from '../../../base/errors.js';
import { attentionPartition, attentionShape } from '../../../kernels/attention.js';
import type { Struct } from '../../../kernels/struct.js';
import { type AddressSpace, Heap } from '../heap.js';
import type { Host, HostLaunch, LostLaunches } from '../host.js';
import { threadCount } from '../threadCount.js';
import { CallingThread, type RunExports } from './inPlace.js';
import { createMemory, instantiate, loadModule, type SimdBuild } from './module.js';
import { Pool } from './pool.js';
import { headerStruct, slotStruct } from './queue.js';

const pageBytes = 65536;
/** wasm32 addresses 4 GiB. */
const maxPages = 65536;
const growthPages = (16 * 2 ** 20) / pageBytes;
const askedBytes = attentionShape.byteLength + attentionPartition.byteLength;

/** native/cpu/host/wasm/module.cc */
interface Exports extends RunExports {
  /** -1: there is no such phase. */
  count_items(launch: number, params: number): number;
  /** Where a text ended by 0 begins. */
  describe(): number;
  partition(shape: number, result: number, threads: number): void;
  max_phases(): number;
  workspace_bytes(): number;
  readonly __heap_base: WebAssembly.Global<'i32'>;
}

/** What lies behind the module's own data. */
class WasmSpace implements AddressSpace {
  readonly limit = maxPages * pageBytes;
  readonly #memory: WebAssembly.Memory;

  constructor(
    memory: WebAssembly.Memory,
    readonly start: number,
  ) {
    this.#memory = memory;
  }

  get end(): number {
    return this.#memory.buffer.byteLength;
  }

  grow(end: number): boolean {
    const pages = Math.ceil((end - this.end) / pageBytes);
    const room = maxPages - this.end / pageBytes;
    if (pages > room) return false;
    try {
      this.#memory.grow(Math.min(room, Math.max(pages, growthPages)));
      return true;
    } catch {
      return false; // the system has no more memory to map
    }
  }

  /** A module's memory cannot be given back. */
  discard(): void {}

  outOfMemory(byteLength: number, available: number): FlashAttnError {
    return new FlashAttnError(
      'ERR_OUT_OF_MEMORY',
      `wasm: ${byteLength} bytes were asked for and ${available} of the ${this.limit} bytes that WebAssembly can address are available; dispose tensors or split the problem`,
    );
  }
}

/** WebAssembly with SIMD on a pool of threads. */
export class WasmHost implements Host {
  readonly device = 'wasm';
  readonly build = 'the WebAssembly build';
  readonly structs = [slotStruct, headerStruct] as readonly Struct[];
  readonly simd: SimdBuild;
  readonly threads = threadCount();
  readonly lanes = 4;
  readonly workspaceBytes: number;
  readonly description: string;
  readonly maxPhases: number;
  readonly heap: Heap;
  readonly #memory: WebAssembly.Memory;
  readonly #module: WebAssembly.Module;
  /** The host's own instance: it asks the module about itself, and runs what is small. */
  readonly #exports: Exports;
  /** Where the module reads a shape and writes a partition. */
  readonly #asked: number;
  readonly #callingThread: CallingThread;
  #pool: Pool;

  constructor() {
    const { module, simd } = loadModule();
    this.#module = module;
    this.simd = simd;
    this.#memory = createMemory(16, maxPages);
    const exports = instantiate(module, this.#memory) as unknown as Exports;
    this.#exports = exports;
    this.maxPhases = exports.max_phases();
    this.workspaceBytes = exports.workspace_bytes();
    this.description = readText(this.#memory, exports.describe());
    this.heap = new Heap(new WasmSpace(this.#memory, exports.__heap_base.value));
    this.#asked = this.heap.claim(askedBytes);
    this.#callingThread = new CallingThread(exports, this.heap, this.workspaceBytes);
    this.#pool = this.#createPool(0);
  }

  get kernels(): string {
    return `wasm-${this.simd}-simd`;
  }

  /** Fewer than `threads` where they cannot be had. */
  get activeThreads(): number {
    return this.#pool.threads;
  }

  /** Why the calling thread does all of the work; undefined where there are threads. */
  get threadless(): string | undefined {
    return this.#pool.threadless;
  }

  copyIn(address: number, bytes: Uint8Array): void {
    this.#window(address, bytes.length).set(bytes);
  }

  copyOut(address: number, byteLength: number): Uint8Array {
    return this.#window(address, byteLength).slice();
  }

  partition(shape: Uint8Array, into: Uint8Array): void {
    const result = this.#asked + shape.byteLength;
    this.copyIn(this.#asked, shape);
    this.#exports.partition(this.#asked, result, this.threads);
    into.set(this.#window(result, into.byteLength));
  }

  get published(): number {
    return this.#pool.queue.published;
  }

  get completed(): number {
    return this.#pool.queue.completed;
  }

  get faulted(): boolean {
    return this.#pool.queue.faulted;
  }

  launch({ first, params, work }: HostLaunch): number {
    return this.#pool.launch(first, this.maxPhases, params, this.#exports.count_items, work);
  }

  wait(launch: number): Promise<void> {
    return this.#pool.wait(launch);
  }

  waitSync(launch: number): void {
    this.#pool.waitSync(launch);
  }

  settle(launch: number): void {
    this.#pool.queue.waitSync(launch);
  }

  replace(): LostLaunches {
    const { queue, cause } = this.#pool;
    this.#pool.settle();
    // What the new pool does in place counts as its last launch, which must not be one that was lost.
    this.#pool = this.#createPool(queue.published + 1);
    return { from: queue.completed, to: queue.published, cause };
  }

  #window(address: number, byteLength: number): Uint8Array {
    return new Uint8Array(this.#memory.buffer, address, byteLength);
  }

  #createPool(launched: number): Pool {
    return new Pool({
      heap: this.heap,
      memory: this.#memory,
      module: this.#module,
      inPlace: this.#callingThread,
      threads: this.threads,
      workspaceBytes: this.workspaceBytes,
      launched,
    });
  }
}

/** ASCII up to a 0. */
export function readText(memory: WebAssembly.Memory, address: number): string {
  const bytes = new Uint8Array(memory.buffer);
  return String.fromCharCode(...bytes.slice(address, bytes.indexOf(0, address)));
}
