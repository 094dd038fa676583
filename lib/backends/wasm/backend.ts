import type { AttentionProblem } from '../../attention/problem.js';
import { FlashAttnError } from '../../base/errors.js';
import type { BlockMask } from '../../blockmask/blockMask.js';
import type {
  AttentionExtras,
  Backend,
  BackwardOperands,
  DeviceBuffer,
  Flat,
  ForwardOperands,
  GatherOperands,
  KernelChoice,
  MemoryReport,
  MergeBackwardOperands,
  MergeOperands,
  MergeShape,
  Scratch,
} from '../../kernels/device.js';
import type { RowMap } from '../../ops/gather.js';
import {
  addressOf,
  blockMaskArrays,
  coversAllRows,
  finishGradient,
  lseRows,
  negativeInfinityBits,
  prepareOptions,
} from '../shared/operands.js';
import { type Elements, elementsBytes, type OptionArray, ScratchMemory, wideElements } from '../shared/scratch.js';
import { Constants } from '../shared/uploads.js';
import { Heap } from './heap.js';
import { loadModule, type SimdBuild } from './module.js';
import { type AttentionMemory, StructWriter, writeAttentionParams } from './params.js';
import { Pool, threadCount, workerError } from './pool.js';
import { queueBytes } from './queue.js';

// The order of `Kernel` in native/cpu/wasm/module.cc.
const kernel = {
  forward: 0,
  backwardRows: 1,
  backward: 2,
  finishQueryGradients: 3,
  backwardBias: 4,
  backwardRelative: 5,
  backwardSink: 6,
  merge: 7,
  mergeBackward: 8,
  gather: 9,
  fill: 10,
  convert: 11,
  peak: 12,
  finishDecode: 13,
} as const;

// Of native/cpu/params.h and merge.h.
const attentionParamsBytes = 104 * 4;
const gatherParamsBytes = 11 * 4;
const mergePartBytes = 12 * 4;
const mergeParamsBytes = 18 * 4;

const peakIterations = 1 << 14;
const peakFlopsPerIteration = 2 * 8 * 4; // multiply and add, 8 chains, 4 lanes

interface Exports {
  count_items(kernel: number, params: number): number;
  query_tile(): number;
  key_tile(): number;
  max_tiles_per_item(): number;
  decode_floats(
    queryLength: number,
    keyLength: number,
    group: number,
    valueDim: number,
    headsDiffer: number,
    blockMask: number,
  ): number;
  d_query_planes(keyLength: number, keySplits: number): number;
  workspace_bytes(): number;
  queue_bytes(): number;
  attention_params_bytes(): number;
  gather_params_bytes(): number;
  merge_part_bytes(): number;
  merge_params_bytes(): number;
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

const divideUp = (n: number, by: number) => Math.ceil(n / by);
const roundUp = (n: number, multiple: number) => divideUp(n, multiple) * multiple;

/** What backward passes between its launches. */
type PassedArray = 'decodeStates' | 'rowTerms' | 'dQueryPartial' | 'dRelativePartial';
type WasmScratch = ScratchMemory<PassedArray>;

/** WebAssembly with SIMD on a pool of threads; one for each JavaScript environment. */
export class WasmBackend implements Backend {
  readonly device = 'wasm';
  readonly readsLive = true;
  readonly simd: SimdBuild;
  readonly threads = threadCount();
  readonly #module: WebAssembly.Module;
  readonly #heap: Heap;
  /** The host's own instance: it only asks the module about itself. */
  readonly #exports: Exports;
  readonly #queryTile: number;
  readonly #keyTile: number;
  readonly #workspaceBytes: number;
  #pool: Pool;
  /** Launches (from, to] that were lost with a dead pool. */
  readonly #lost: { readonly from: number; readonly to: number }[] = [];
  readonly #masks = new Constants<BlockMask>(this, blockMaskArrays);
  readonly #rowMaps = new Constants<RowMap>(this, ({ offsets, indices }) => [offsets, indices]);
  #tensors = 0;

  constructor() {
    const { module, simd } = loadModule();
    this.#module = module;
    this.simd = simd;
    const { exports, heap } = instantiate(module);
    checkLayout(exports);
    this.#heap = heap;
    this.#exports = exports;
    this.#queryTile = exports.query_tile();
    this.#keyTile = exports.key_tile();
    this.#workspaceBytes = exports.workspace_bytes();
    this.#pool = this.#createPool(0);
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

  fillZero(buffer: DeviceBuffer): void {
    this.#fill(buffer, 0);
  }

  forward(problem: AttentionProblem, operands: ForwardOperands, scratch?: Scratch): void {
    this.#withScratch(problem, operands, false, scratch, (own) => {
      if (!coversAllRows(problem)) {
        this.#fill(operands.out.buffer, 0);
        this.#fill(operands.lse.buffer, negativeInfinityBits);
      }
      const memory = this.#prepare(problem, operands, own);
      const split = this.#split(problem);
      const used = this.#buffers(problem, operands, own);
      const launch = (id: number) =>
        this.#launch(id, [operands.out.buffer, operands.lse.buffer], used, (w) =>
          writeAttentionParams(w, problem, operands, memory, split),
        );
      launch(kernel.forward);
      if (memory.decodeStates) launch(kernel.finishDecode);
    });
  }

  backward(problem: AttentionProblem, operands: BackwardOperands, scratch?: Scratch): void {
    this.#withScratch(problem, operands, true, scratch, (own) => {
      const { dOut, dQuery, dKey, dValue, dBias, dRelativeTable, dSink } = operands;
      if (!coversAllRows(problem)) for (const { buffer } of [dQuery, dKey, dValue]) this.#fill(buffer, 0);
      const memory = this.#prepare(problem, operands, own);
      const split = this.#split(problem);
      const used = this.#buffers(problem, operands, own);
      used.push(dOut.buffer, dQuery.buffer, dKey.buffer, dValue.buffer);
      if (operands.dLse) used.push(operands.dLse.buffer);
      const launch = (id: number, written: readonly DeviceBuffer[]) =>
        this.#launch(id, written, used, (w) => writeAttentionParams(w, problem, operands, memory, split));

      launch(kernel.backwardRows, []);
      launch(kernel.backward, [dKey.buffer, dValue.buffer]);
      launch(kernel.finishQueryGradients, [dQuery.buffer]);
      const finish = (id: number, target: Flat | undefined, computed: 'dBias' | 'dRelative' | 'dSink') => {
        if (!target) return;
        const wide = own.get(computed);
        launch(id, [wide ?? target.buffer]);
        finishGradient(wide, target, this.#convert);
      };
      finish(kernel.backwardBias, dBias, 'dBias');
      finish(kernel.backwardRelative, dRelativeTable, 'dRelative');
      finish(kernel.backwardSink, dSink, 'dSink');
    });
  }

  merge(shape: MergeShape, operands: MergeOperands): void {
    this.#launchMerge(kernel.merge, shape, operands, [operands.out.buffer, operands.lse.buffer]);
  }

  mergeBackward(shape: MergeShape, operands: MergeBackwardOperands): void {
    const written = operands.dParts.flatMap(({ out, lse }) => [out.buffer, lse.buffer]);
    this.#launchMerge(kernel.mergeBackward, shape, operands, written);
  }

  gatherRows(map: RowMap, { source, result, batch, rowElements, scale }: GatherOperands): void {
    const { buffer, addresses } = this.#rowMaps.get(map);
    this.#launch(kernel.gather, [result.buffer], [source.buffer, buffer], (w) =>
      w
        .int(addressOf(source))
        .dtype(source.dtype)
        .int(source.batchStride, source.rowStride, addressOf(result), ...addresses, batch, map.rows, rowElements)
        .float(scale),
    );
  }

  createScratch(problem: AttentionProblem, operands: AttentionExtras, backward: boolean): WasmScratch {
    if (problem.blockMask) this.#masks.get(problem.blockMask);
    return new ScratchMemory(this, problem, this.#scratchElements(problem, operands, backward));
  }

  describe(problem: AttentionProblem, backward: boolean): KernelChoice {
    const split = this.#split(problem);
    return {
      kernel: `wasm-${this.simd}-simd`,
      queryTile: this.#queryTile,
      keyTile: this.#keyTile,
      items: problem.batch * problem.heads * divideUp(problem.queryLength, this.#queryTile * split.tilesPerItem),
      workspaceBytes:
        this.threads * this.#workspaceBytes +
        (backward ? elementsBytes(this.#scratchElements(problem, {}, backward)) : 0),
    };
  }

  async synchronize(): Promise<void> {
    await this.#waitFor(this.#pool.queue.published);
  }

  memory(): MemoryReport {
    const { inUse, peak, reserved, limit } = this.#heap;
    const { device } = this;
    return {
      device,
      bytesInUse: inUse,
      bytesPeak: peak,
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
    const buffer = this.allocate(64, 'hostWritten');
    this.write(buffer, 0, new Uint8Array(new Float32Array([0.9999, 1e-4]).buffer));
    await this.synchronize();
    const items = 256 * this.threads;
    const start = performance.now();
    this.#launch(kernel.peak, [buffer], [], (w) => w.int(items, peakIterations, buffer.address));
    await this.wait(buffer);
    const seconds = (performance.now() - start) / 1000;
    this.free(buffer);
    return (items * peakIterations * peakFlopsPerIteration) / seconds;
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

  #window(buffer: DeviceBuffer, byteOffset: number, byteLength: number): Uint8Array {
    return new Uint8Array(this.#heap.memory.buffer, buffer.address + byteOffset, byteLength);
  }

  #createPool(launched: number): Pool {
    return new Pool({
      heap: this.#heap,
      module: this.#module,
      threads: this.threads,
      workspaceBytes: this.#workspaceBytes,
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

  #launch(
    id: number,
    written: readonly DeviceBuffer[],
    used: readonly DeviceBuffer[],
    writeParams: (w: StructWriter) => void,
  ): void {
    if (this.#pool.queue.faulted) this.#replacePool();
    this.#pool.start();
    const number = this.#pool.queue.publish(id, writeParams, (params) => this.#exports.count_items(id, params));
    for (const buffer of written) (buffer as WasmBuffer).lastWrite = (buffer as WasmBuffer).lastUse = number;
    for (const buffer of used) (buffer as WasmBuffer).lastUse = number;
  }

  #launchMerge(
    id: number,
    shape: MergeShape,
    operands: MergeOperands | MergeBackwardOperands,
    written: readonly DeviceBuffer[],
  ): void {
    const { parts, out, lse } = operands;
    const backward = 'dOut' in operands ? operands : undefined;
    const table = this.allocate(parts.length * mergePartBytes, 'hostWritten');
    const w = new StructWriter(this.#heap.memory.buffer, table.address);
    for (const [i, part] of parts.entries()) {
      const gradient = backward?.dParts[i];
      w.tensor(part.out).int(addressOf(part.lse)).tensor(gradient?.out).int(addressOf(gradient?.lse));
    }
    const { batch, heads, queryLength, valueDim } = shape;
    const used = [table, out.buffer, lse.buffer, ...parts.flatMap((part) => [part.out.buffer, part.lse.buffer])];
    if (backward) used.push(backward.dOut.buffer, ...(backward.dLse ? [backward.dLse.buffer] : []));
    this.#launch(id, written, used, (params) =>
      params
        .int(table.address, parts.length, batch, heads, queryLength, valueDim)
        .tensor(out)
        .int(addressOf(lse))
        .tensor(backward?.dOut)
        .int(addressOf(backward?.dLse)),
    );
    this.free(table);
  }

  #fill(buffer: DeviceBuffer, bits: number): void {
    const words = divideUp(buffer.byteLength, 4); // allocations are padded to whole words
    this.#launch(kernel.fill, [buffer], [], (w) => w.int(buffer.address, words, bits));
  }

  readonly #convert = (from: Flat, to: Flat): void => {
    this.#launch(kernel.convert, [to.buffer], [from.buffer], (w) =>
      w.int(addressOf(from), addressOf(to)).dtype(from.dtype).dtype(to.dtype).int(from.count),
    );
  };

  /** How the work is cut: enough items to keep every thread busy, few enough to reuse each key tile. */
  #split(p: AttentionProblem): { tilesPerItem: number; keySplits: number } {
    const tiles = p.batch * p.heads * divideUp(p.queryLength, this.#queryTile);
    const most = this.#exports.max_tiles_per_item();
    const wanted = Math.min(most, Math.max(1, Math.floor(tiles / (4 * this.threads))));
    // Under a block mask an item is whole rows of its blocks.
    const tilesPerItem = p.blockMask && wanted < most ? p.blockMask.blockSize / this.#queryTile : wanted;
    const heads = Math.max(1, p.batch * p.kvHeads);
    const keySplits = Math.max(1, Math.min(divideUp(2 * this.threads, heads), divideUp(p.keyLength, this.#keyTile)));
    return { tilesPerItem, keySplits: heads >= 2 * this.threads ? 1 : keySplits };
  }

  #scratchElements(
    p: AttentionProblem,
    extras: AttentionExtras,
    backward: boolean,
  ): Elements<PassedArray | OptionArray> {
    const wide = wideElements(p, extras, backward);
    if (!backward) return { ...wide, decodeStates: lseRows(p) * this.#decodeFloats(p) };
    const { keySplits } = this.#split(p);
    return {
      ...wide,
      rowTerms: 3 * lseRows(p),
      dQueryPartial:
        keySplits * this.#exports.d_query_planes(p.keyLength, keySplits) * lseRows(p) * roundUp(p.headDim, 4),
      dRelativePartial: 2 * keySplits * p.batch * (p.relative?.bucketCount ?? 0) * p.heads, // float64
    };
  }

  /** Floats that each row needs when few queries meet many keys; 0 for other problems. */
  #decodeFloats(p: AttentionProblem): number {
    const headsDiffer = p.biasShape || p.alibi || p.relative || p.dropout ? 1 : 0;
    const group = p.heads / p.kvHeads;
    return this.#exports.decode_floats(p.queryLength, p.keyLength, group, p.valueDim, headsDiffer, p.blockMask ? 1 : 0);
  }

  /** What a launch of the problem reads or writes besides the gradients. */
  #buffers(problem: AttentionProblem, operands: ForwardOperands, scratch: WasmScratch): DeviceBuffer[] {
    const { query, key, value, out, lse, bias, alibi, relativeTable, sink } = operands;
    const given = [query, key, value, out, lse, bias, alibi, relativeTable, sink];
    const mask = problem.blockMask && this.#masks.get(problem.blockMask).buffer;
    return [
      ...given.flatMap((operand) => (operand ? [operand.buffer] : [])),
      ...(mask ? [mask] : []),
      ...scratch.buffers(),
    ];
  }

  #withScratch(
    problem: AttentionProblem,
    extras: AttentionExtras,
    backward: boolean,
    scratch: Scratch | undefined,
    run: (scratch: WasmScratch) => void,
  ): void {
    const own = scratch === undefined ? this.createScratch(problem, extras, backward) : (scratch as WasmScratch);
    try {
      run(own);
    } finally {
      if (scratch === undefined) own.dispose();
    }
  }

  /** Widens what the kernels read as float32; returns where everything is. */
  #prepare(
    problem: AttentionProblem,
    operands: ForwardOperands | BackwardOperands,
    scratch: WasmScratch,
  ): AttentionMemory {
    const mask = problem.blockMask && this.#masks.get(problem.blockMask);
    return {
      ...prepareOptions(operands, scratch, mask, this.#convert),
      decodeStates: scratch.address('decodeStates'),
      rowTerms: scratch.address('rowTerms'),
      dQueryPartial: scratch.address('dQueryPartial'),
      dRelativePartial: scratch.address('dRelativePartial'),
    };
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

/** The structs are written by hand on this side: a build that disagrees must not run. */
function checkLayout(exports: Exports): void {
  const expected: [string, number, number][] = [
    ['Queue', exports.queue_bytes(), queueBytes],
    ['AttentionParams', exports.attention_params_bytes(), attentionParamsBytes],
    ['GatherParams', exports.gather_params_bytes(), gatherParamsBytes],
    ['MergePart', exports.merge_part_bytes(), mergePartBytes],
    ['MergeParams', exports.merge_params_bytes(), mergeParamsBytes],
  ];
  for (const [name, built, written] of expected)
    if (built !== written)
      throw new FlashAttnError(
        'ERR_DEVICE',
        `the WebAssembly build has ${built} bytes in ${name}, this version writes ${written}: rebuild with npm run build:wasm`,
      );
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
