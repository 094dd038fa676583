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
  type AttentionTensors,
  blockMaskArrays,
  coversAllRows,
  finishGradient,
  negativeInfinityBits,
  prepareOptions,
} from '../shared/operands.js';
import { type Elements, elementsBytes, type OptionArray, ScratchMemory, wideElements } from '../shared/scratch.js';
import { Constants } from '../shared/uploads.js';
import type { BackwardScratch, Context, EmulatorControls } from './addon.js';
import { deviceError } from './errors.js';
import {
  type AttentionMemory,
  StructWriter,
  structSizes,
  writeAttentionParams,
  writeConvertParams,
  writeFillParams,
  writeGatherParams,
  writeMergeParams,
  writeMergePart,
} from './params.js';
import { standIns } from './standIns.js';
import { formatVersion, type UsableDevice } from './support.js';

export type CudaDeviceName = `cuda:${number}` | 'emulator';

/** A CUDA device. */
export interface CudaStatus {
  readonly name: string;
  /** Such as '9.0'. */
  readonly computeCapability: string;
  readonly memoryBytes: number;
  readonly multiprocessors: number;
  readonly pciBusId: string;
  /** The CUDA version that the driver is for. */
  readonly driver: string;
  /** The CUDA version that the addon was built with. */
  readonly runtime: string;
}

/** What backward passes between its kernels. */
type PassedArray = 'delta' | 'dQuerySum' | 'turns' | 'dRelativePartial';

/** Device memory of a problem, and how the device cuts its backward pass. */
class CudaScratch extends ScratchMemory<PassedArray> {
  readonly relativeSlices: number;

  constructor(
    backend: CudaBackend,
    problem: AttentionProblem,
    elements: Elements<PassedArray | OptionArray>,
    relativeSlices: number,
  ) {
    super(backend, problem, elements);
    this.relativeSlices = relativeSlices;
  }
}

const peakTargetMilliseconds = 10;
const mostPeakIterations = 1 << 20;
const peakBlocksPerMultiprocessor = 2;
const peakFlopsPerIteration = 8 * 8 * 2 * 16 * 8 * 16; // 8 warps, each 8 products of 16 x 8 x 16

// Fills write whole words.
const padded = (byteLength: number) => Math.max(4, Math.ceil(byteLength / 4) * 4);

const isEmpty = (...counts: readonly number[]) => counts.includes(0);

/** One CUDA device; one for each JavaScript environment, with a stream of its own. */
export class CudaBackend implements Backend {
  readonly device: CudaDeviceName;
  readonly status: CudaStatus;
  /** Switches and findings of the emulator. */
  readonly emulator: EmulatorControls | undefined;
  readonly #index: number;
  readonly #multiprocessors: number;
  readonly #context: Context;
  readonly #attention = new StructWriter(structSizes.AttentionParams);
  readonly #merge = new StructWriter(structSizes.MergeParams);
  readonly #gather = new StructWriter(structSizes.GatherParams);
  readonly #converted = new StructWriter(structSizes.ConvertParams);
  readonly #filled = new StructWriter(structSizes.FillParams);
  readonly #masks = new Constants<BlockMask>(this, blockMaskArrays);
  readonly #rowMaps = new Constants<RowMap>(this, ({ offsets, indices }) => [offsets, indices]);
  #inUse = 0;
  #peak = 0;
  #tensors = 0;

  /** @throws ERR_DEVICE when the device cannot be set up */
  constructor(device: CudaDeviceName, { addon, list, description }: UsableDevice) {
    this.device = device;
    this.emulator = addon.emulator;
    this.#index = description.index;
    this.#multiprocessors = description.multiprocessors;
    this.status = {
      name: description.name,
      computeCapability: `${description.major}.${description.minor}`,
      memoryBytes: description.memory,
      multiprocessors: description.multiprocessors,
      pciBusId: description.pciBusId,
      driver: formatVersion(list.driverVersion),
      runtime: formatVersion(list.runtimeVersion),
    };
    this.#context = this.#run(() => new addon.Context(description.index));
  }

  allocate(byteLength: number): DeviceBuffer {
    const size = padded(byteLength);
    const address = this.#run(() => this.#context.allocate(size));
    this.#inUse += size;
    this.#peak = Math.max(this.#peak, this.#inUse);
    return { address, byteLength };
  }

  free(buffer: DeviceBuffer): void {
    this.#inUse -= padded(buffer.byteLength);
    this.#context.free(buffer.address);
  }

  write(buffer: DeviceBuffer, byteOffset: number, bytes: Uint8Array): void {
    if (bytes.length > 0) this.#run(() => this.#context.write(buffer.address + byteOffset, bytes));
  }

  fillZero(buffer: DeviceBuffer): void {
    this.#fill(buffer, 0);
  }

  async read(buffer: DeviceBuffer, byteOffset: number, byteLength: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(byteLength);
    try {
      if (byteLength > 0) await this.#context.read(buffer.address + byteOffset, bytes);
    } catch (error) {
      throw deviceError(this.device, error);
    }
    return bytes;
  }

  readSync(buffer: DeviceBuffer, byteOffset: number, byteLength: number): Uint8Array {
    const bytes = new Uint8Array(byteLength);
    if (byteLength > 0) this.#run(() => this.#context.readSync(buffer.address + byteOffset, bytes));
    return bytes;
  }

  async wait(): Promise<void> {
    await this.synchronize();
  }

  /** A device that fails fails every later call too: the next read reports it. */
  checkIntact(): void {}

  forward(problem: AttentionProblem, operands: ForwardOperands, scratch?: Scratch): void {
    this.#fillUnseen(problem, operands);
    if (isEmpty(problem.batch, problem.queryLength)) return;
    this.#withScratch(problem, operands, false, scratch, (own) => {
      const params = this.#writeAttention(problem, operands, own);
      this.#run(() => this.#context.forward(params), problem);
    });
  }

  backward(problem: AttentionProblem, operands: BackwardOperands, scratch?: Scratch): void {
    this.#withScratch(problem, operands, true, scratch, (own) => {
      const { dQuery, dKey, dValue, dBias, dRelativeTable, dSink } = operands;
      const nothingSeen = isEmpty(problem.batch, problem.queryLength);
      if (nothingSeen || !coversAllRows(problem))
        for (const { buffer } of [dQuery, dKey, dValue]) this.#fill(buffer, 0);
      if (nothingSeen) {
        for (const gradient of [dBias, dRelativeTable, dSink]) if (gradient) this.#fill(gradient.buffer, 0);
        return;
      }
      const params = this.#writeAttention(problem, operands, own);
      this.#run(() => this.#context.backward(params), problem);
      finishGradient(own.get('dBias'), dBias, this.#convert);
      finishGradient(own.get('dRelative'), dRelativeTable, this.#convert);
      finishGradient(own.get('dSink'), dSink, this.#convert);
    });
  }

  merge(shape: MergeShape, operands: MergeOperands): void {
    this.#launchMerge(shape, operands, (params) => this.#context.merge(params));
  }

  mergeBackward(shape: MergeShape, operands: MergeBackwardOperands): void {
    this.#launchMerge(shape, operands, (params) => this.#context.mergeBackward(params));
  }

  gatherRows(map: RowMap, operands: GatherOperands): void {
    if (isEmpty(operands.batch, map.rows, operands.rowElements)) return;
    writeGatherParams(this.#gather.restart(), map, operands, this.#rowMaps.get(map));
    this.#run(() => this.#context.gather(this.#gather.buffer));
  }

  createScratch(problem: AttentionProblem, extras: AttentionExtras, backward: boolean): Scratch {
    if (problem.blockMask) this.#masks.get(problem.blockMask);
    const wide = wideElements(problem, extras, backward);
    if (!backward) return new CudaScratch(this, problem, wide, 0);
    const { relativeSlices, ...passed } = this.#backwardScratch(problem);
    return new CudaScratch(this, problem, { ...wide, ...passed }, relativeSlices);
  }

  describe(problem: AttentionProblem, backward: boolean): KernelChoice {
    const tiling = this.#context.forwardTiling(this.#writeStandIns(problem));
    const { relativeSlices: _, ...passed } = backward
      ? this.#backwardScratch(problem)
      : ({ relativeSlices: 0 } as { relativeSlices: number } & Partial<BackwardScratch>);
    return {
      kernel: 'cuda-sm80',
      queryTile: tiling.queryTile,
      keyTile: tiling.keyTile,
      items: tiling.blocks,
      block: { threads: tiling.threads, sharedMemoryBytes: tiling.sharedMemory },
      workspaceBytes: elementsBytes(passed),
    };
  }

  async measurePeak(): Promise<number> {
    const sink = this.allocate(4);
    const blocks = peakBlocksPerMultiprocessor * this.#multiprocessors;
    const launch = (iterations: number) => () => this.#run(() => this.#context.peak(blocks, iterations, sink.address));
    try {
      let iterations = 1;
      let milliseconds = await this.measure(launch(iterations));
      while (milliseconds < peakTargetMilliseconds && iterations < mostPeakIterations) {
        iterations *= 2;
        milliseconds = await this.measure(launch(iterations));
      }
      return (blocks * iterations * peakFlopsPerIteration) / (milliseconds / 1000);
    } finally {
      this.free(sink);
    }
  }

  async measure(run: () => void): Promise<number> {
    const start = this.#run(() => this.#context.recordEvent());
    run();
    const end = this.#run(() => this.#context.recordEvent());
    await this.synchronize();
    return this.#run(() => this.#context.elapsed(start, end));
  }

  devicePointer(buffer: DeviceBuffer): bigint {
    return BigInt(buffer.address);
  }

  adopt(pointer: bigint, byteLength: number): DeviceBuffer {
    const address = Number(pointer);
    const ends = byteLength > 0 ? [address, address + byteLength - 1] : [];
    for (const end of ends) {
      const { kind, device } = this.#run(() => this.#context.pointerAttributes(end));
      if ((kind === 'device' || kind === 'managed') && device === this.#index) continue;
      const found = kind === 'device' ? `memory of cuda:${device}` : `${kind} memory`;
      const place = end === address ? 'pointer' : `pointer + ${byteLength - 1}, the last byte of the tensor,`;
      throw new FlashAttnError('ERR_DEVICE', `${place} is ${found}; it must be memory of ${this.device}`);
    }
    return { address, byteLength };
  }

  setStream(stream: bigint | undefined): void {
    this.#run(() => this.#context.setStream(stream === undefined ? undefined : Number(stream)));
  }

  async synchronize(): Promise<void> {
    try {
      await this.#context.synchronize();
    } catch (error) {
      throw deviceError(this.device, error);
    }
  }

  memory(): MemoryReport {
    const { total, reserved } = this.#run(() => this.#context.memoryInfo());
    return {
      device: this.device,
      bytesInUse: this.#inUse,
      bytesPeak: this.#peak,
      bytesReserved: reserved,
      bytesLimit: total,
      tensors: this.#tensors,
    };
  }

  tensorCreated(): void {
    this.#tensors++;
  }

  tensorDisposed(): void {
    this.#tensors--;
  }

  /** Calls into the addon; what it throws becomes an error of this library. */
  #run<T>(call: () => T, problem?: AttentionProblem): T {
    try {
      return call();
    } catch (error) {
      throw deviceError(this.device, error, problem);
    }
  }

  #fill(buffer: DeviceBuffer, bits: number): void {
    if (buffer.byteLength === 0) return;
    writeFillParams(this.#filled.restart(), buffer.address, buffer.byteLength, bits);
    this.#run(() => this.#context.fill(this.#filled.buffer));
  }

  readonly #convert = (from: Flat, to: Flat): void => {
    if (from.count === 0) return;
    writeConvertParams(this.#converted.restart(), from, to);
    this.#run(() => this.#context.convert(this.#converted.buffer));
  };

  /** Rows outside of all sequences are the host's to fill. */
  #fillUnseen(problem: AttentionProblem, { out, lse }: ForwardOperands): void {
    if (coversAllRows(problem)) return;
    this.#fill(out.buffer, 0);
    this.#fill(lse.buffer, negativeInfinityBits);
  }

  #launchMerge(
    shape: MergeShape,
    operands: MergeOperands | MergeBackwardOperands,
    launch: (params: ArrayBuffer) => void,
  ): void {
    const { parts } = operands;
    if (isEmpty(shape.batch, shape.heads, shape.queryLength)) return;
    const table = new StructWriter(parts.length * structSizes.MergePart);
    const gradients = 'dParts' in operands ? operands.dParts : [];
    for (const [i, part] of parts.entries()) writeMergePart(table, part, gradients[i]);
    const buffer = this.allocate(table.buffer.byteLength);
    try {
      this.write(buffer, 0, new Uint8Array(table.buffer));
      writeMergeParams(this.#merge.restart(), shape, operands, buffer.address);
      this.#run(() => launch(this.#merge.buffer));
    } finally {
      this.free(buffer);
    }
  }

  #backwardScratch(problem: AttentionProblem): BackwardScratch {
    return this.#context.backwardScratch(this.#writeStandIns(problem));
  }

  /** `AttentionParams` of a problem without its tensors: enough to choose tiles. */
  #writeStandIns(problem: AttentionProblem): ArrayBuffer {
    const { tensors, memory } = standIns(problem);
    writeAttentionParams(this.#attention.restart(), problem, tensors, memory, 0);
    return this.#attention.buffer;
  }

  #writeAttention(problem: AttentionProblem, tensors: AttentionTensors, scratch: CudaScratch): ArrayBuffer {
    const mask = problem.blockMask && this.#masks.get(problem.blockMask);
    const memory: AttentionMemory = {
      ...prepareOptions(tensors as ForwardOperands, scratch, mask, this.#convert),
      delta: scratch.address('delta'),
      dQuerySum: scratch.address('dQuerySum'),
      turns: scratch.address('turns'),
      dRelativePartial: scratch.address('dRelativePartial'),
    };
    writeAttentionParams(this.#attention.restart(), problem, tensors, memory, scratch.relativeSlices);
    return this.#attention.buffer;
  }

  #withScratch(
    problem: AttentionProblem,
    extras: AttentionExtras,
    backward: boolean,
    scratch: Scratch | undefined,
    run: (scratch: CudaScratch) => void,
  ): void {
    const own = (scratch ?? this.createScratch(problem, extras, backward)) as CudaScratch;
    try {
      run(own);
    } finally {
      if (scratch === undefined) own.dispose();
    }
  }
}
