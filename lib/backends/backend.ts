import type { DType } from '../dtype.js';
import type { RowMap } from '../gather.js';
import type { AttentionProblem } from '../problem.js';

/** Memory of a device. `address` is the device's own; host code only offsets it. */
export interface DeviceBuffer {
  readonly address: number;
  readonly byteLength: number;
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
export interface Backend {
  readonly device: string;

  /** @throws ERR_OUT_OF_MEMORY. `hostWritten` memory is not in use by any pending launch. */
  allocate(byteLength: number, purpose: 'hostWritten' | 'deviceWritten'): DeviceBuffer;
  free(buffer: DeviceBuffer): void;

  /** Waits for pending launches that use the buffer, then copies. */
  write(buffer: DeviceBuffer, byteOffset: number, bytes: Uint8Array): void;
  fillZero(buffer: DeviceBuffer): void;
  /** A live window on the memory; only to be read right after `ready` or `readySync`. */
  bytes(buffer: DeviceBuffer): Uint8Array;
  ready(buffer: DeviceBuffer): Promise<void>;
  readySync(buffer: DeviceBuffer): void;
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

  /** Multiply-adds on registers alone, all threads: floating-point operations per second. */
  measurePeak(): Promise<number>;

  synchronize(): Promise<void>;
  memory(): MemoryReport;
  tensorCreated(): void;
  tensorDisposed(): void;
}

export interface Scratch {
  dispose(): void;
}
