import { FlashAttnError } from '../../base/errors.js';
import {
  type AttentionLaunch,
  type AttentionPartition,
  type AttentionProblem,
  attentionPartition,
  attentionShape,
  type ForwardOperands,
  shapeOf,
} from '../../kernels/attention.js';
import { peak } from '../../kernels/copy.js';
import type { Backend, MemoryReport, Recording } from '../../kernels/device.js';
import type { DeviceBuffer, HostArray, Uploaded } from '../../kernels/memory.js';
import type { Operation } from '../../kernels/operation.js';
import type { Fields, Struct } from '../../kernels/struct.js';
import { NativeBuild } from '../shared/nativeBuild.js';
import { Recorder } from '../shared/recorder.js';
import { mostParamsBytes, Staged } from '../shared/staged.js';
import { Uploads } from '../shared/uploads.js';
import type { Context, EmulatorControls } from './addon.js';
import { DeviceErrors } from './errors.js';
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

const peakTargetMilliseconds = 10;
const mostPeakIterations = 1 << 20;
const peakBlocksPerMultiprocessor = 2;
const peakFlopsPerIteration = 8 * 8 * 2 * 16 * 8 * 16; // 8 warps, each 8 products of 16 x 8 x 16

// Fills write whole words.
const padded = (byteLength: number) => Math.max(4, Math.ceil(byteLength / 4) * 4);

/** One CUDA device; one for each JavaScript environment, with a stream of its own. */
export class CudaBackend implements Backend {
  readonly device: CudaDeviceName;
  readonly kernels = 'cuda-sm80';
  readonly workspaceBytes = 0;
  readonly status: CudaStatus;
  /** Switches and findings of the emulator. */
  readonly emulator: EmulatorControls | undefined;
  readonly #index: number;
  readonly #errors: DeviceErrors;
  readonly #multiprocessors: number;
  readonly #context: Context;
  readonly #build: NativeBuild;
  readonly #params = new Staged(mostParamsBytes);
  readonly #shape = new Staged(attentionShape.byteLength);
  readonly #partition = new Staged(attentionPartition.byteLength);
  readonly #uploads = new Uploads(this);
  readonly #recorder = new Recorder<never>();
  #inUse = 0;
  #peak = 0;
  #tensors = 0;

  /** @throws ERR_DEVICE when the device cannot be set up */
  constructor(device: CudaDeviceName, { addon, list, description }: UsableDevice) {
    this.device = device;
    this.#errors = new DeviceErrors(device);
    this.emulator = addon.emulator;
    this.#index = description.index;
    this.#multiprocessors = description.multiprocessors;
    const structs = [attentionShape, attentionPartition] as readonly Struct[];
    this.#build = new NativeBuild('the addon', addon.description, structs);
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

  upload<Owner extends object>(owner: Owner, arraysOf: (owner: Owner) => readonly HostArray[]): Uploaded {
    return this.#recorder.using(this.#uploads.get(owner, arraysOf));
  }

  async read(buffer: DeviceBuffer, byteOffset: number, byteLength: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(byteLength);
    try {
      if (byteLength > 0) await this.#context.read(buffer.address + byteOffset, bytes);
    } catch (error) {
      throw this.#errors.of(error);
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

  launch<Operands, F extends Fields>(operation: Operation<Operands, F>, operands: Operands): void {
    const launch = operation.describe(operands);
    if (!launch) return;
    const number = this.#build.numberOf(operation);
    this.#params.memory.write(operation.struct, launch.params);
    const bytes = this.#params.first(operation.struct.byteLength);
    const { problem } = operands as Partial<AttentionLaunch<ForwardOperands>>;
    this.#run(() => this.#context.launch(number, bytes), problem);
  }

  /** As a CUDA graph. */
  record(run: () => void): Recording {
    let graph = 0;
    const capture = () => {
      graph = this.#run(() => this.#context.record(run));
    };
    return this.#recorder.record(capture, () => ({
      replay: () => this.#run(() => this.#context.replay(graph)),
      dispose: () => this.#context.forget(graph),
    }));
  }

  partition(problem: AttentionProblem): AttentionPartition {
    this.#shape.memory.write(attentionShape, shapeOf(problem));
    const result = this.#partition.first(attentionPartition.byteLength);
    this.#run(() => this.#context.partition(this.#shape.first(attentionShape.byteLength), result));
    return this.#partition.memory.read(attentionPartition);
  }

  async measurePeak(): Promise<number> {
    const sink = this.allocate(16);
    const items = peakBlocksPerMultiprocessor * this.#multiprocessors;
    const measure = (iterations: number) => this.measure(() => this.launch(peak, { sink, items, iterations }));
    try {
      let iterations = 1;
      let milliseconds = await measure(iterations);
      while (milliseconds < peakTargetMilliseconds && iterations < mostPeakIterations) {
        iterations *= 2;
        milliseconds = await measure(iterations);
      }
      return (items * iterations * peakFlopsPerIteration) / (milliseconds / 1000);
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
      throw this.#errors.of(error);
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

  emptyCache(): void {
    this.#run(() => this.#context.trim());
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
      throw this.#errors.of(error, problem);
    }
  }
}
