import type { AttentionProblem } from '../attention/problem.js';
import type { DType } from '../base/dtype.js';
import type { RowMap } from '../ops/gather.js';

/** Memory of a device. `address` is the device's own; host code only offsets it. */
export interface DeviceBuffer {
  readonly address: number;
  readonly byteLength: number;
}

/** The part of a backend that hands out memory. */
export interface Allocator {
  /** @throws ERR_OUT_OF_MEMORY. `hostWritten` memory is not in use by any pending launch. */
  allocate(byteLength: number, purpose: 'hostWritten' | 'deviceWritten'): DeviceBuffer;
  free(buffer: DeviceBuffer): void;
  /** Overwrites once pending launches that use the buffer are done; `bytes` is the caller's again on return. */
  write(buffer: DeviceBuffer, byteOffset: number, bytes: Uint8Array): void;
}

/** A tensor as kernels see it: [batch, seq, heads, dim] with element strides and a contiguous last dim. */
export interface View {
  readonly buffer: DeviceBuffer;
  /** In elements. */
  readonly offset: number;
  readonly dtype: DType;
  readonly batchStride: number;
  readonly seqStride: number;
  readonly headStride: number;
}

/** A contiguous array of `count` elements. */
export interface Flat {
  readonly buffer: DeviceBuffer;
  readonly offset: number;
  readonly dtype: DType;
  readonly count: number;
}

/** The tensors that options bring along, shared by forward and backward. */
export interface AttentionExtras {
  /** Contiguous, of shape `problem.biasShape`. */
  readonly bias?: Flat;
  /** Contiguous [heads] or [batch, heads]. */
  readonly alibi?: Flat;
  /** Contiguous [buckets, heads]. */
  readonly relativeTable?: Flat;
  /** Contiguous [heads]. */
  readonly sink?: Flat;
}

export interface ForwardOperands extends AttentionExtras {
  readonly query: View;
  readonly key: View;
  readonly value: View;
  readonly out: View;
  /** Contiguous [batch, heads, query rows], or [heads, query rows]. */
  readonly lse: Flat;
}

export interface BackwardOperands extends ForwardOperands {
  readonly dOut: View;
  readonly dLse?: Flat;
  readonly dQuery: View;
  readonly dKey: View;
  readonly dValue: View;
  readonly dBias?: Flat;
  readonly dRelativeTable?: Flat;
  readonly dSink?: Flat;
}

export interface MergePart {
  readonly out: View;
  readonly lse: Flat;
}

export interface MergeShape {
  readonly batch: number;
  readonly heads: number;
  readonly queryLength: number;
  readonly valueDim: number;
}

export interface MergeOperands {
  readonly parts: readonly MergePart[];
  readonly out: View;
  readonly lse: Flat;
}

export interface MergeBackwardOperands extends MergeOperands {
  readonly dOut: View;
  readonly dLse?: Flat;
  readonly dParts: readonly MergePart[];
}

/** Arguments of `gatherRows`. */
export interface GatherOperands {
  /** [batch, source rows, row elements], its rows contiguous. */
  readonly source: {
    readonly buffer: DeviceBuffer;
    readonly offset: number;
    readonly dtype: DType;
    readonly batchStride: number;
    readonly rowStride: number;
  };
  /** Contiguous [batch, rows, row elements]. */
  readonly result: Flat;
  readonly batch: number;
  readonly rowElements: number;
  readonly scale: number;
}

/** What one launch of a problem will use, before anything runs. */
export interface KernelChoice {
  readonly kernel: string;
  readonly queryTile: number;
  readonly keyTile: number;
  readonly items: number;
  /** Of a CUDA launch, forward. */
  readonly block?: { readonly threads: number; readonly sharedMemoryBytes: number };
  readonly workspaceBytes: number;
}

/** See `memory()`. */
export interface MemoryReport {
  readonly device: string;
  readonly bytesInUse: number;
  readonly bytesPeak: number;
  readonly bytesReserved: number;
  readonly bytesLimit: number;
  readonly tensors: number;
}

/**
 * A device with one in-order stream. Launches return at once; arguments have been validated by the caller.
 * Scratch memory that a launch needs can be brought along (`scratch`), so that a plan allocates nothing when it runs.
 */
export interface Backend extends Allocator {
  readonly device: string;

  fillZero(buffer: DeviceBuffer): void;
  /** A copy of the bytes as every launch before this call leaves them, whatever is written or launched after it. */
  read(buffer: DeviceBuffer, byteOffset: number, byteLength: number): Promise<Uint8Array>;
  /** Like `read`, but blocks the thread. */
  readSync(buffer: DeviceBuffer, byteOffset: number, byteLength: number): Uint8Array;
  /** Resolves when every launch before this call that writes the buffer is done. */
  wait(buffer: DeviceBuffer): Promise<void>;
  /** @throws ERR_WORKER when the launch that was to write the buffer was lost. */
  checkIntact(buffer: DeviceBuffer, argument: string): void;

  forward(problem: AttentionProblem, operands: ForwardOperands, scratch?: Scratch): void;
  backward(problem: AttentionProblem, operands: BackwardOperands, scratch?: Scratch): void;
  merge(shape: MergeShape, operands: MergeOperands): void;
  mergeBackward(shape: MergeShape, operands: MergeBackwardOperands): void;
  gatherRows(map: RowMap, operands: GatherOperands): void;

  /** Scratch for repeated runs of one problem, to be disposed by the caller. */
  createScratch(problem: AttentionProblem, extras: AttentionExtras, backward: boolean): Scratch;
  describe(problem: AttentionProblem, backward: boolean): KernelChoice;

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

  synchronize(): Promise<void>;
  memory(): MemoryReport;
  tensorCreated(): void;
  tensorDisposed(): void;
}

export interface Scratch {
  dispose(): void;
}
