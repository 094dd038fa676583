import { FlashAttnError } from '../../base/errors.js';
import { type AttentionProblem, attentionPartition, attentionShape, shapeOf } from '../../kernels/attention.js';
import { peak } from '../../kernels/copy.js';
import type { Backend, MemoryReport } from '../../kernels/device.js';
import type { DeviceBuffer, HostArray, Uploaded } from '../../kernels/memory.js';
import type { Operation } from '../../kernels/operation.js';
import {
  checkFields,
  type Fields,
  type NativeDescription,
  parseDescription,
  type Struct,
} from '../../kernels/struct.js';
import { StructMemory } from '../shared/structWriter.js';
import { Uploads } from '../shared/uploads.js';
import { Heap } from './heap.js';
import { loadModule, type SimdBuild } from './module.js';
import { Pool, threadCount, workerError } from './pool.js';
import { queueBytes, slotParamBytes } from './queue.js';

const peakIterations = 1 << 14;
const peakFlopsPerIteration = 2 * 8 * 4; // multiply and add, 8 chains, 4 lanes

/** native/cpu/wasm/module.cc */
interface Exports {
  /** -1: there is no such phase. */
  count_items(launch: number, params: number): number;
  /** Where a text ended by 0 begins. */
  describe(): number;
  partition(shape: number, result: number, threads: number): void;
  max_phases(): number;
  workspace_bytes(): number;
  queue_bytes(): number;
  readonly __heap_base: WebAssembly.Global<'i32'>;
}

/** Memory in the heap, with the numbers of the launches that matter to it. */
class WasmBuffer implements DeviceBuffer {
  /** The last launch that writes it: reading waits for this one. */
  lastWrite = 0;
  /** The last launch that touches it at all: overwriting or freeing waits for this one. */
  lastUse = 0;

  constructor(
    readonly address: number,
    readonly byteLength: number,
  ) {}
}

export interface WasmStatus {
  /** Which WebAssembly build runs. */
  readonly simd: SimdBuild;
  readonly threads: number;
}

const build = 'the WebAssembly build';

/** WebAssembly with SIMD on a pool of threads; one for each JavaScript environment. */
export class WasmBackend implements Backend {
  readonly device = 'wasm';
  readonly readsLive = true;
  readonly simd: SimdBuild;
  readonly threads = threadCount();
  readonly workspaceBytes: number;
  readonly #module: WebAssembly.Module;
  readonly #heap: Heap;
  /** The host's own instance: it only asks the module about itself. */
  readonly #exports: Exports;
  readonly #description: NativeDescription;
  readonly #maxPhases: number;
  /** The first launch number of each operation that has been checked. */
  readonly #launches = new Map<Operation<never>, number>();
  /** Where the params of a launch are made. */
  readonly #staging = new StructMemory(new ArrayBuffer(slotParamBytes));
  /** Where the module reads a shape and writes a partition. */
  readonly #asked: number;
  #pool: Pool;
  /** Launches (from, to] that were lost with a dead pool. */
  readonly #lost: { readonly from: number; readonly to: number }[] = [];
  readonly #uploads = new Uploads(this);
  #tensors = 0;

  constructor() {
    const { module, simd } = loadModule();
    this.#module = module;
    this.simd = simd;
    const { exports, heap } = instantiate(module);
    this.#heap = heap;
    this.#exports = exports;
    this.#maxPhases = exports.max_phases();
    this.#description = parseDescription(readText(heap.memory, exports.describe()));
    if (exports.queue_bytes() !== queueBytes)
      throw new FlashAttnError('ERR_DEVICE', `${build} is of another version: build it again`);
    this.workspaceBytes = this.threads * exports.workspace_bytes();
    const asked = attentionShape.byteLength + attentionPartition.byteLength;
    this.#asked = this.#heap.allocate(asked, 0) ?? 0;
    if (this.#asked === 0) throw this.#heap.outOfMemory(asked);
    for (const struct of [attentionShape, attentionPartition]) checkFields(this.#description, struct as Struct, build);
    this.#pool = this.#createPool(0);
  }

  get kernels(): string {
    return `wasm-${this.simd}-simd`;
  }

  allocate(byteLength: number, purpose: 'hostWritten' | 'deviceWritten'): WasmBuffer {
    const { queue } = this.#pool;
    let address = this.#heap.allocate(
      byteLength,
      purpose === 'hostWritten' ? queue.completed : Number.POSITIVE_INFINITY,
    );
    if (address === undefined && purpose === 'hostWritten') {
      // Memory freed behind pending launches is the host's once they are done.
      queue.waitSync(queue.published);
      address = this.#heap.allocate(byteLength, queue.published);
    }
    if (address === undefined) throw this.#heap.outOfMemory(byteLength);
    const buffer = new WasmBuffer(address, byteLength);
    // Its last owner's launches may still be pending, also when it is freed or written again before any launch of its own.
    if (purpose === 'deviceWritten') buffer.lastUse = queue.published;
    return buffer;
  }

  free(buffer: DeviceBuffer): void {
    this.#heap.free(buffer.address, buffer.byteLength, (buffer as WasmBuffer).lastUse);
  }

  write(buffer: DeviceBuffer, byteOffset: number, bytes: Uint8Array): void {
    this.#waitSync((buffer as WasmBuffer).lastUse);
    new Uint8Array(this.#heap.memory.buffer, buffer.address + byteOffset, bytes.length).set(bytes);
    (buffer as WasmBuffer).lastWrite = 0;
  }

  upload<Owner extends object>(owner: Owner, arraysOf: (owner: Owner) => readonly HostArray[]): Uploaded {
    return this.#uploads.get(owner, arraysOf);
  }

  async read(buffer: DeviceBuffer, byteOffset: number, byteLength: number): Promise<Uint8Array> {
    await this.wait(buffer);
    return this.#window(buffer, byteOffset, byteLength);
  }

  readSync(buffer: DeviceBuffer, byteOffset: number, byteLength: number): Uint8Array {
    this.#waitSync((buffer as WasmBuffer).lastWrite);
    return this.#window(buffer, byteOffset, byteLength);
  }

  async wait(buffer: DeviceBuffer): Promise<void> {
    await this.#waitFor((buffer as WasmBuffer).lastWrite);
  }

  checkIntact(buffer: DeviceBuffer, argument: string): void {
    const { lastWrite } = buffer as WasmBuffer;
    if (this.#pool.queue.faulted) this.#replacePool();
    if (this.#isLost(lastWrite))
      throw new FlashAttnError('ERR_WORKER', `${argument} was never computed: a worker thread died before it`);
  }

  /** Publishes one launch for each phase that has items. */
  launch<Operands, F extends Fields>(operation: Operation<Operands, F>, operands: Operands): void {
    const launch = operation.describe(operands);
    if (!launch) return;
    const first = this.#resolve(operation);
    this.#staging.write(operation.struct, launch.params);
    const params = this.#staging.words.subarray(0, operation.struct.byteLength / 4);
    if (this.#pool.queue.faulted) this.#replacePool();
    this.#pool.start();
    const { queue } = this.#pool;
    let number = queue.published;
    for (let phase = 0; phase < this.#maxPhases; phase++) {
      const at = queue.publish(first + phase, params, this.#exports.count_items);
      if (at < 0) break;
      number = at;
    }
    for (const buffer of launch.writes as readonly WasmBuffer[]) buffer.lastWrite = buffer.lastUse = number;
    for (const buffer of launch.reads as readonly WasmBuffer[]) buffer.lastUse = number;
  }

  partition(problem: AttentionProblem) {
    const memory = new StructMemory(this.#heap.memory.buffer);
    const result = this.#asked + attentionShape.byteLength;
    memory.write(attentionShape, shapeOf(problem), this.#asked);
    this.#exports.partition(this.#asked, result, this.threads);
    return memory.read(attentionPartition, result);
  }

  async synchronize(): Promise<void> {
    await this.#waitFor(this.#pool.queue.published);
  }

  memory(): MemoryReport {
    const { inUse, peak: most, reserved, limit } = this.#heap;
    return {
      device: this.device,
      bytesInUse: inUse,
      bytesPeak: most,
      bytesReserved: reserved,
      bytesLimit: limit,
      tensors: this.#tensors,
    };
  }

  tensorCreated(): void {
    this.#tensors++;
  }

  tensorDisposed(): void {
    this.#tensors--;
  }

  async measurePeak(): Promise<number> {
    const sink = this.allocate(64, 'hostWritten');
    this.write(sink, 0, new Uint8Array(new Float32Array([0.9999, 1e-4]).buffer));
    const items = 256 * this.threads;
    const milliseconds = await this.measure(() => this.launch(peak, { sink, items, iterations: peakIterations }));
    this.free(sink);
    return (items * peakIterations * peakFlopsPerIteration) / (milliseconds / 1000);
  }

  async measure(run: () => void): Promise<number> {
    await this.synchronize();
    const start = performance.now();
    run();
    await this.synchronize();
    return performance.now() - start;
  }

  devicePointer(): never {
    throw noPointers('a tensor on wasm has no device pointer: its memory is reached through data() and write()');
  }

  adopt(): never {
    throw noPointers('wasm cannot use memory by its pointer: copy the data with tensor()');
  }

  setStream(): never {
    throw noPointers('wasm has no streams');
  }

  /** @internal For tests. */
  async killOneWorker(): Promise<void> {
    if (this.#pool.queue.faulted) this.#replacePool();
    await this.#pool.killOneWorker();
  }

  /** The number of an operation's first phase. @throws ERR_DEVICE when the build has no such operation or another struct */
  #resolve<Operands, F extends Fields>(operation: Operation<Operands, F>): number {
    const known = this.#launches.get(operation as Operation<never>);
    if (known !== undefined) return known;
    const index = this.#description.operations.indexOf(operation.name);
    if (index < 0)
      throw new FlashAttnError('ERR_DEVICE', `${build} has no operation ${operation.name}: build it again`);
    checkFields(this.#description, operation.struct as Struct, build);
    const first = index * this.#maxPhases;
    this.#launches.set(operation as Operation<never>, first);
    return first;
  }

  #window(buffer: DeviceBuffer, byteOffset: number, byteLength: number): Uint8Array {
    return new Uint8Array(this.#heap.memory.buffer, buffer.address + byteOffset, byteLength);
  }

  #createPool(launched: number): Pool {
    return new Pool({
      heap: this.#heap,
      module: this.#module,
      threads: this.threads,
      workspaceBytes: this.workspaceBytes / this.threads,
      launched,
    });
  }

  #replacePool(): void {
    const { completed, published } = this.#pool.queue;
    this.#lost.push({ from: completed, to: published });
    this.#pool = this.#createPool(published);
  }

  #isLost(launch: number): boolean {
    return this.#lost.some(({ from, to }) => launch > from && launch <= to);
  }

  async #waitFor(launch: number): Promise<void> {
    await this.#pool.wait(launch);
    if (this.#isLost(launch)) throw workerError();
  }

  #waitSync(launch: number): void {
    this.#pool.waitSync(launch);
    if (this.#isLost(launch)) throw workerError();
  }
}

const noPointers = (message: string) => new FlashAttnError('ERR_DEVICE', message);

function instantiate(module: WebAssembly.Module): { exports: Exports; heap: Heap } {
  const heap = new Heap();
  const { exports } = new WebAssembly.Instance(module, { env: { memory: heap.memory } });
  const typed = exports as unknown as Exports;
  heap.start(typed.__heap_base.value);
  return { exports: typed, heap };
}

/** ASCII up to a 0. */
export function readText(memory: WebAssembly.Memory, address: number): string {
  const bytes = new Uint8Array(memory.buffer);
  return String.fromCharCode(...bytes.slice(address, bytes.indexOf(0, address)));
}

let backend: WasmBackend | undefined;

export function wasmBackend(): WasmBackend {
  backend ??= new WasmBackend();
  return backend;
}

export function describeWasm(): WasmStatus {
  const { simd, threads } = wasmBackend();
  return { simd, threads };
}
