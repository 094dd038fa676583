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
import type { Backend, MatmulKernels, MemoryReport, Recording } from '../../kernels/device.js';
import { matmul } from '../../kernels/matmul.js';
import type { DeviceBuffer, HostArray, Uploaded } from '../../kernels/memory.js';
import type { Launch, Operation } from '../../kernels/operation.js';
import { scoreProgram } from '../../kernels/scoreProgram.js';
import type { Fields, Struct } from '../../kernels/struct.js';
import { NativeBuild } from '../shared/nativeBuild.js';
import { Recorder } from '../shared/recorder.js';
import { mostParamsBytes, Staged } from '../shared/staged.js';
import { Uploads } from '../shared/uploads.js';
import type { Addon, Context, EmulatorControls } from './addon.js';
import { checkMatmulKernels, openCublasLt } from './cublaslt.js';
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

/** A launch that is going to be part of a graph. */
interface KeptLaunch extends Pick<Launch<Fields>, 'reads' | 'writes'> {
  readonly operation: number;
  readonly params: Uint8Array;
}

// Fills write whole words.
const padded = (byteLength: number) => Math.max(4, Math.ceil(byteLength / 4) * 4);

/** One CUDA device; one for each JavaScript environment, with a stream of its own. */
export class CudaBackend implements Backend {
  readonly device: CudaDeviceName;
  readonly kernels = 'cuda-sm80';
  readonly workspaceBytes = 0;
  readonly packsFactors = false;
  // Every block would turn the same keys again, on its way from memory to a product that does not wait for it.
  readonly turnsRows = false;
  readonly status: CudaStatus;
  /** Switches and findings of the emulator. */
  readonly emulator: EmulatorControls | undefined;
  readonly #addonKind: Addon['kind'];
  readonly #index: number;
  readonly #errors: DeviceErrors;
  readonly #multiprocessors: number;
  readonly #context: Context;
  readonly #build: NativeBuild;
  readonly #params = new Staged(mostParamsBytes);
  readonly #shape = new Staged(attentionShape.byteLength);
  readonly #partition = new Staged(attentionPartition.byteLength);
  readonly #uploads: Uploads;
  readonly #recorder: Recorder<KeptLaunch>;
  observer: Backend['observer'];
  #matmulKernels: MatmulKernels | undefined;
  #inUse = 0;
  #peak = 0;
  #tensors = 0;

  /** @throws ERR_DEVICE when the device cannot be set up */
  constructor(device: CudaDeviceName, { addon, list, description }: UsableDevice) {
    this.device = device;
    this.#errors = new DeviceErrors(device);
    this.emulator = addon.emulator;
    this.#addonKind = addon.kind;
    this.#index = description.index;
    this.#multiprocessors = description.multiprocessors;
    const structs = [attentionShape, attentionPartition, scoreProgram] as readonly Struct[];
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
    const free = (buffer: DeviceBuffer) => this.#free(buffer);
    this.#recorder = new Recorder({
      take: (byteLength) => this.#allocate(byteLength),
      give: free,
      part: (address, byteLength) => ({ address, byteLength, revision: 0 }),
    });
    this.#uploads = new Uploads({
      allocate: (byteLength) => this.#allocate(byteLength),
      free,
      write: (buffer, byteOffset, bytes) => this.#write(buffer, byteOffset, bytes),
    });
  }

  get matmulKernels(): MatmulKernels {
    this.#matmulKernels ??= this.#run(() => openCublasLt(this.#context, this.#addonKind));
    return this.#matmulKernels;
  }

  get isRecording(): boolean {
    return this.#recorder.active;
  }

  allocate(byteLength: number, purpose: 'hostWritten' | 'deviceWritten'): DeviceBuffer {
    if (!this.#recorder.active) return this.#allocate(byteLength);
    if (purpose === 'deviceWritten') return this.#recorder.allocate(byteLength);
    return this.#recorder.constant(this.#allocate(byteLength));
  }

  #allocate(byteLength: number): DeviceBuffer {
    const size = padded(byteLength);
    const address = this.#run(() => this.#context.allocate(size));
    this.#inUse += size;
    this.#peak = Math.max(this.#peak, this.#inUse);
    return { address, byteLength, revision: 0 };
  }

  free(buffer: DeviceBuffer): void {
    if (!this.#recorder.free(buffer)) this.#free(buffer);
  }

  #free(buffer: DeviceBuffer): void {
    this.#inUse -= padded(buffer.byteLength);
    this.#context.free(buffer.address);
  }

  write(buffer: DeviceBuffer, byteOffset: number, bytes: Uint8Array): void {
    this.#recorder.checkWrite(buffer);
    this.#write(buffer, byteOffset, bytes);
  }

  #write(buffer: DeviceBuffer, byteOffset: number, bytes: Uint8Array): void {
    if (bytes.length > 0) this.#run(() => this.#context.write(buffer.address + byteOffset, bytes));
  }

  upload<Owner extends object>(owner: Owner, arraysOf: (owner: Owner) => readonly HostArray[]): Uploaded {
    return this.#recorder.using(this.#uploads.get(owner, arraysOf));
  }

  async read(buffer: DeviceBuffer, byteOffset: number, byteLength: number): Promise<Uint8Array> {
    this.#recorder.refuse('reading a tensor');
    const bytes = new Uint8Array(byteLength);
    try {
      if (byteLength > 0) await this.#context.read(buffer.address + byteOffset, bytes);
    } catch (error) {
      throw this.#errors.of(error);
    }
    return bytes;
  }

  readSync(buffer: DeviceBuffer, byteOffset: number, byteLength: number): Uint8Array {
    this.#recorder.refuse('reading a tensor');
    const bytes = new Uint8Array(byteLength);
    if (byteLength > 0) this.#run(() => this.#context.readSync(buffer.address + byteOffset, bytes));
    return bytes;
  }

  /** The stream writes in order. */
  isInUse(): boolean {
    return false;
  }

  async wait(): Promise<void> {
    await this.synchronize();
  }

  /** A device that fails fails every later call too: the next read reports it. */
  checkIntact(): void {}

  has(operation: Pick<Operation<never>, 'name'>): boolean {
    return this.#build.has(operation);
  }

  launch<Operands, F extends Fields>(operation: Operation<Operands, F>, operands: Operands): void {
    const launch = operation.describe(operands);
    if (!launch) return;
    // Compared by name: every operation has another type.
    if (operation.name === matmul.name) checkMatmulKernels(this.device, this.matmulKernels);
    const number = this.#build.numberOf(operation);
    this.#params.memory.write(operation.struct, launch.params);
    const bytes = this.#params.first(operation.struct.byteLength);
    if (this.#recorder.active) {
      this.#recorder.keep({ operation: number, params: bytes.slice(), reads: launch.reads, writes: launch.writes });
      return;
    }
    const { problem } = operands as Partial<AttentionLaunch<ForwardOperands>>;
    const queue = () => this.#run(() => this.#context.launch(number, bytes), problem);
    if (this.observer) {
      const { reads, writes, work } = launch;
      this.observer({ operation: operation.name, operands, reads, writes, work, milliseconds: this.#timed(queue) });
    } else queue();
    for (const buffer of launch.writes) buffer.revision++;
  }

  /** What `queue` launches takes, between two events on the stream. */
  #timed(queue: () => void): () => number {
    const start = this.#run(() => this.#context.recordEvent());
    queue();
    const end = this.#run(() => this.#context.recordEvent());
    return () => this.#run(() => this.#context.elapsed(start, end));
  }

  /** As a CUDA graph, which is made when `run` is over: while a stream is captured nothing can be allocated. */
  record(run: () => void): Recording {
    return this.#recorder.record(run, (kept) => {
      const queue = () => {
        for (const { operation, params } of kept) this.#context.launch(operation, params);
      };
      const graph = this.#run(() => this.#context.record(queue));
      return {
        replay: () => {
          this.#run(() => this.#context.replay(graph));
          for (const { writes } of kept) for (const buffer of writes) buffer.revision++;
        },
        dispose: () => this.#context.forget(graph),
      };
    });
  }

  partition(problem: AttentionProblem): AttentionPartition {
    this.#shape.memory.write(attentionShape, shapeOf(problem));
    const result = this.#partition.first(attentionPartition.byteLength);
    this.#run(() => this.#context.partition(this.#shape.first(attentionShape.byteLength), result));
    return this.#partition.memory.read(attentionPartition);
  }

  async measurePeak(): Promise<number> {
    const sink = this.allocate(16, 'deviceWritten');
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
    this.#recorder.refuse('a measurement');
    const elapsed = this.#timed(run);
    await this.synchronize();
    return elapsed();
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
    return { address, byteLength, revision: 0 };
  }

  setStream(stream: bigint | undefined): void {
    this.#run(() => this.#context.setStream(stream === undefined ? undefined : Number(stream)));
  }

  async synchronize(): Promise<void> {
    this.#recorder.refuse('what waits for the device');
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
