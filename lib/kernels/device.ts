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

  /** Queues a launch and returns at once; operands have been validated by the caller. */
  launch<Operands, F extends Fields>(operation: Operation<Operands, F>, operands: Operands): void;
  /**
   * Keeps what `run` launches instead of queueing it, as one graph where the device has such. `run` must not do anything
   * else here, and has done the same before: what a first launch has to load or to upload is not part of a recording.
   */
  record(run: () => void): Recording;
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
