import type { AttentionPartition, AttentionProblem } from './attention.js';
import type { DeviceBuffer, HostArray, Memory, Uploaded } from './memory.js';
import type { Operation } from './operation.js';
import type { Fields } from './struct.js';

/** See `memory()`. */
export interface MemoryReport {
  readonly device: string;
  readonly bytesInUse: number;
  readonly bytesPeak: number;
  readonly bytesReserved: number;
  readonly bytesLimit: number;
  readonly tensors: number;
}

/** What multiplies matrices on a CUDA device; told apart by `kernels`. */
export type MatmulKernels =
  | {
      /** NVIDIA's library, and this package's kernels for what it does not do in the same way. */
      readonly kernels: 'cublasLt';
      readonly path: string;
      readonly version: string;
    }
  | {
      /** Those of this package; 'none': every product throws. */
      readonly kernels: 'flashattn' | 'none';
      readonly because: string;
    };

/** A launch that somebody observes. */
export interface ObservedLaunch {
  readonly operation: string;
  readonly operands: unknown;
  readonly reads: readonly DeviceBuffer[];
  readonly writes: readonly DeviceBuffer[];
  /** See `Launch`. */
  readonly work: number;
  /** What it took; may wait for it. To be called once. */
  readonly milliseconds: () => number;
}

/** Launches that can be queued again and again. */
export interface Recording {
  /** Queues all of them, on the memory that they were recorded with. */
  replay(): void;
  dispose(): void;
}

/** A device: memory, one in-order stream, and the operations that its kernels have. */
export interface Backend extends Memory {
  readonly device: string;
  /** How `explain` names the kernels. */
  readonly kernels: string;
  /** What multiplies matrices, where that is a question: looks for it when it is first asked. */
  readonly matmulKernels?: MatmulKernels;

  /** Whether the kernels have an operation that not all devices have. */
  has(operation: Pick<Operation<never>, 'name'>): boolean;
  /** Queues a launch and returns at once; operands have been validated by the caller. */
  launch<Operands, F extends Fields>(operation: Operation<Operands, F>, operands: Operands): void;
  /** Told of every launch while it is set; each then runs alone. */
  observer: ((launch: ObservedLaunch) => void) | undefined;
  /**
   * Keeps what `run` launches instead of queueing it, as one graph where the device has such. What `run` allocates belongs
   * to the recording, which reuses it within itself and gives it back when it is disposed; what its launches use besides
   * stays until then. `run` has done the same before: what a first launch has to load is not part of a recording.
   *
   * @throws ERR_OPTION when `run` reads what is not computed yet, or records
   */
  record(run: () => void): Recording;
  /** Whether what is launched now is kept and not run. */
  readonly isRecording: boolean;
  /** Whether kernels of attention turn q and k by rotary positions as they load them. */
  readonly turnsRows: boolean;
  /** Whether products of matrices read their factors from packed copies, in scratch memory that the host allocates. */
  readonly packsFactors: boolean;
  /** How attention is cut into pieces here. */
  partition(problem: AttentionProblem): AttentionPartition;
  /** Bytes that every thread keeps for itself, all threads together. */
  readonly workspaceBytes: number;
  /** The arrays of an immutable object in device memory: uploaded at their first use, freed with the object. */
  upload<Owner extends object>(owner: Owner, arraysOf: (owner: Owner) => readonly HostArray[]): Uploaded;

  /** A copy of the bytes as every launch before this call leaves them, whatever is written or launched after it. */
  read(buffer: DeviceBuffer, byteOffset: number, byteLength: number): Promise<Uint8Array>;
  /** Like `read`, but blocks the thread. */
  readSync(buffer: DeviceBuffer, byteOffset: number, byteLength: number): Uint8Array;
  /** Resolves when every launch before this call that writes the buffer is done. */
  wait(buffer: DeviceBuffer): Promise<void>;
  /** Whether the host has to wait before it may write the buffer itself. */
  isInUse(buffer: DeviceBuffer): boolean;
  /** @throws ERR_WORKER when the launch that was to write the buffer was lost. */
  checkIntact(buffer: DeviceBuffer, argument: string): void;
  synchronize(): Promise<void>;

  /** Multiply-adds on registers alone, on the whole device: floating-point operations per second. */
  measurePeak(): Promise<number>;
  /** Milliseconds that the device spends on what `run` launches. */
  measure(run: () => void): Promise<number>;

  /** @throws ERR_DEVICE on a device whose memory other libraries cannot reach. */
  devicePointer(buffer: DeviceBuffer): bigint;
  /** Memory of this device that someone else owns. @throws ERR_DEVICE, also when it is not this device's. */
  adopt(pointer: bigint, byteLength: number): DeviceBuffer;
  /** Launches on this stream from now on, or on the backend's own. @throws ERR_DEVICE on a device without streams. */
  setStream(stream: bigint | undefined): void;

  memory(): MemoryReport;
  /** Gives memory that is kept for what comes back to the device, where that is possible. */
  emptyCache(): void;
  tensorCreated(): void;
  tensorDisposed(): void;
}
