import { FlashAttnError } from '../../base/errors.js';
import { type AttentionProblem, attentionPartition, attentionShape, shapeOf } from '../../kernels/attention.js';
import { asStrided, copy, peak } from '../../kernels/copy.js';
import type { Backend, MemoryReport, Recording } from '../../kernels/device.js';
import type { DeviceBuffer, HostArray, Uploaded } from '../../kernels/memory.js';
import type { Launch, Operation } from '../../kernels/operation.js';
import type { Fields, Struct } from '../../kernels/struct.js';
import { NativeBuild } from '../shared/nativeBuild.js';
import { Recorder } from '../shared/recorder.js';
import { StructMemory } from '../shared/structWriter.js';
import { Uploads } from '../shared/uploads.js';
import { Heap } from './heap.js';
import { CallingThread, type RunExports } from './inPlace.js';
import { instantiate, loadModule, type SimdBuild } from './module.js';
import { Pool, threadCount, workerError } from './pool.js';
import { headerStruct, slotParamBytes, slotStruct } from './queue.js';
import { type PendingRead, PendingReads, type Readable } from './reads.js';

const peakIterations = 1 << 14;
const peakFlopsPerIteration = 2 * 8 * 4; // multiply and add, 8 chains, 4 lanes

/** native/cpu/wasm/module.cc */
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

/** Memory in the heap, with the numbers of the launches that matter to it. */
class WasmBuffer implements DeviceBuffer, Readable {
  /** The last launch that writes it: reading waits for this one. */
  lastWrite = 0;
  /** The last launch that touches it at all: overwriting or freeing waits for this one. */
  lastUse = 0;
  readonly pendingReads: PendingRead[] = [];

  constructor(
    readonly address: number,
    readonly byteLength: number,
  ) {}
}

/** An operation with its parameters, ready to be queued. */
interface PreparedLaunch extends Pick<Launch<Fields>, 'reads' | 'writes' | 'work'> {
  /** The number of its first phase. */
  readonly first: number;
  readonly params: Uint32Array;
}

export interface WasmStatus {
  /** Which WebAssembly build runs. */
  readonly simd: SimdBuild;
  /** How many threads work on a launch. */
  readonly threads: number;
  /** Why there are no worker threads, where there are none: the calling thread then does all of the work. */
  readonly threadless?: string;
}

/** WebAssembly with SIMD on a pool of threads; one for each JavaScript environment. */
class WasmBackend implements Backend {
  readonly device = 'wasm';
  readonly simd: SimdBuild;
  readonly threads = threadCount();
  readonly workspaceBytes: number;
  readonly #module: WebAssembly.Module;
  readonly #heap: Heap;
  /** The host's own instance: it only asks the module about itself. */
  readonly #exports: Exports;
  readonly #build: NativeBuild;
  readonly #maxPhases: number;
  /** Where the params of a launch are made. */
  readonly #staging = new StructMemory(new ArrayBuffer(slotParamBytes));
  /** Where the module reads a shape and writes a partition. */
  readonly #asked: number;
  readonly #callingThread: CallingThread;
  #pool: Pool;
  /** Launches (from, to] that were lost with a dead pool, and why it died. */
  readonly #lost: { readonly from: number; readonly to: number; readonly cause: unknown }[] = [];
  readonly #reads: PendingReads;
  readonly #uploads = new Uploads(this);
  readonly #recorder = new Recorder<PreparedLaunch>();
  #tensors = 0;

  constructor() {
    const { module, simd } = loadModule();
    this.#module = module;
    this.simd = simd;
    const heap = new Heap();
    const exports = instantiate(module, heap.memory) as unknown as Exports;
    this.#heap = heap;
    this.#exports = exports;
    this.#maxPhases = exports.max_phases();
    const structs = [slotStruct, headerStruct, attentionShape, attentionPartition] as readonly Struct[];
    this.#build = new NativeBuild('the WebAssembly build', readText(heap.memory, exports.describe()), structs);
    heap.start(exports.__heap_base.value);
    const workspaceBytes = exports.workspace_bytes();
    this.workspaceBytes = this.threads * workspaceBytes;
    const asked = attentionShape.byteLength + attentionPartition.byteLength;
    const address = heap.allocate(asked, 0);
    if (address === undefined) throw heap.outOfMemory(asked);
    this.#asked = address;
    this.#callingThread = new CallingThread(exports, heap, workspaceBytes);
    this.#pool = this.#createPool(0);
    this.#reads = new PendingReads({
      memory: heap.memory,
      isDone: (launch) => launch <= this.#pool.queue.completed,
      wait: (launch) => this.#waitFor(launch),
      waitSync: (launch) => this.#waitSync(launch),
      copy: (from, byteOffset, words) => this.#copy(from as WasmBuffer, byteOffset, words),
      free: (buffer) => this.free(buffer as WasmBuffer),
    });
  }

  get status(): WasmStatus {
    const { threads, threadless } = this.#pool;
    return { simd: this.simd, threads, ...(threadless !== undefined && { threadless }) };
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
      this.#settle(queue.published);
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
    const target = buffer as WasmBuffer;
    this.#settle(target.lastUse);
    this.#reads.beforeOverwriting(target);
    this.#window(target, byteOffset, bytes.length).set(bytes);
    target.lastWrite = 0;
  }

  upload<Owner extends object>(owner: Owner, arraysOf: (owner: Owner) => readonly HostArray[]): Uploaded {
    return this.#recorder.using(this.#uploads.get(owner, arraysOf));
  }

  read(buffer: DeviceBuffer, byteOffset: number, byteLength: number): Promise<Uint8Array> {
    return this.#reads.read(buffer as WasmBuffer, byteOffset, byteLength);
  }

  readSync(buffer: DeviceBuffer, byteOffset: number, byteLength: number): Uint8Array {
    this.#waitSync((buffer as WasmBuffer).lastWrite);
    return this.#window(buffer, byteOffset, byteLength).slice();
  }

  async wait(buffer: DeviceBuffer): Promise<void> {
    await this.#waitFor((buffer as WasmBuffer).lastWrite);
  }

  checkIntact(buffer: DeviceBuffer, argument: string): void {
    const { lastWrite } = buffer as WasmBuffer;
    if (this.#pool.queue.faulted) this.#replacePool();
    const lost = this.#findLost(lastWrite);
    if (lost)
      throw new FlashAttnError('ERR_WORKER', `${argument} was never computed: a worker thread died before it`, {
        cause: lost.cause,
      });
  }

  launch<Operands, F extends Fields>(operation: Operation<Operands, F>, operands: Operands): void {
    const launch = operation.describe(operands);
    if (!launch) return;
    const { reads, writes, work } = launch;
    const first = this.#build.numberOf(operation) * this.#maxPhases;
    const records = this.#recorder.active;
    if (!records) this.#beforeWriting(writes);
    this.#staging.write(operation.struct, launch.params);
    const params = this.#staging.words.subarray(0, operation.struct.byteLength / 4);
    if (records) this.#recorder.keep({ first, params: params.slice(), reads, writes, work });
    else this.#queue({ first, params, reads, writes, work });
  }

  record(run: () => void): Recording {
    return this.#recorder.record(run, (kept) => ({
      replay: () => {
        for (const launch of kept) {
          this.#beforeWriting(launch.writes);
          this.#queue(launch);
        }
      },
      dispose: () => {},
    }));
  }

  /** May launch copies of what pending reads have not had yet. */
  #beforeWriting(buffers: readonly DeviceBuffer[]): void {
    if (this.#pool.queue.faulted) this.#replacePool();
    for (const buffer of buffers) this.#reads.beforeOverwriting(buffer as WasmBuffer);
  }

  /** Launches each phase that has items. */
  #queue({ first, params, reads, writes, work }: PreparedLaunch): void {
    const number = this.#pool.launch(first, this.#maxPhases, params, this.#exports.count_items, work);
    for (const buffer of writes as readonly WasmBuffer[]) buffer.lastWrite = buffer.lastUse = number;
    for (const buffer of reads as readonly WasmBuffer[]) buffer.lastUse = number;
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

  /** The memory of a WebAssembly module never shrinks. */
  emptyCache(): void {}

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

  #window(buffer: DeviceBuffer, byteOffset: number, byteLength: number): Uint8Array {
    return new Uint8Array(this.#heap.memory.buffer, buffer.address + byteOffset, byteLength);
  }

  #createPool(launched: number): Pool {
    return new Pool({
      heap: this.#heap,
      module: this.#module,
      inPlace: this.#callingThread,
      threads: this.threads,
      workspaceBytes: this.workspaceBytes / this.threads,
      launched,
    });
  }

  #replacePool(): void {
    const { queue, cause } = this.#pool;
    this.#pool.settle();
    this.#lost.push({ from: queue.completed, to: queue.published, cause });
    // What the new pool does in place counts as its last launch, which must not be one that was lost.
    this.#pool = this.#createPool(queue.published + 1);
  }

  #findLost(launch: number): { readonly cause: unknown } | undefined {
    return this.#lost.find(({ from, to }) => launch > from && launch <= to);
  }

  async #waitFor(launch: number): Promise<void> {
    await this.#pool.wait(launch);
    this.#checkComputed(launch);
  }

  #waitSync(launch: number): void {
    this.#pool.waitSync(launch);
    this.#checkComputed(launch);
  }

  #checkComputed(launch: number): void {
    const lost = this.#findLost(launch);
    if (lost) throw workerError(lost.cause);
  }

  /** Blocks until a launch is done or lost. */
  #settle(launch: number): void {
    this.#pool.queue.waitSync(launch);
    if (this.#pool.queue.faulted) this.#replacePool();
  }

  /** A copy of some words of a buffer, made in order behind what has been launched. @throws ERR_OUT_OF_MEMORY */
  #copy(from: WasmBuffer, byteOffset: number, words: number): WasmBuffer {
    const to = this.allocate(4 * words, 'deviceWritten');
    const array = (buffer: WasmBuffer, offset: number) => asStrided({ buffer, offset, dtype: 'float32', count: words });
    this.launch(copy, { from: array(from, byteOffset / 4), to: array(to, 0) });
    return to;
  }
}

const noPointers = (message: string) => new FlashAttnError('ERR_DEVICE', message);

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
  return wasmBackend().status;
}
