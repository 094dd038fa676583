import { FlashAttnError } from '../../base/errors.js';
import type { Struct } from '../../kernels/struct.js';
import type { Heap } from './heap.js';

/** An operation with its parameters, ready to be queued. */
export interface HostLaunch {
  /** The number of its first phase. */
  readonly first: number;
  readonly params: Uint32Array;
  /** Floating-point operations, roughly. */
  readonly work: number;
}

/**
 * Where the kernels of native/cpu run: on worker threads of WebAssembly or on native ones. Launches are numbered from 1,
 * run one after the other, and a launch is done when all before it are.
 */
export interface Host {
  readonly device: 'wasm' | 'cpu';
  /** How `explain` names the kernels. */
  readonly kernels: string;
  /** How many threads work on a launch, as far as they can be had. */
  readonly threads: number;
  /** Floats in a vector. */
  readonly lanes: number;
  /** Bytes that a thread keeps for itself. */
  readonly workspaceBytes: number;
  /** Names of operations and the fields of structs: see native/structs/fields.h. */
  readonly description: string;
  /** Who says that, as messages call it. */
  readonly build: string;
  /** Structs that it has besides those of operations. */
  readonly structs: readonly Struct[];
  readonly maxPhases: number;
  /** The memory of tensors, and what the host needs itself. */
  readonly heap: Heap;

  /** Copies of memory; the caller knows that nothing is writing there. */
  copyIn(address: number, bytes: Uint8Array): void;
  copyOut(address: number, byteLength: number): Uint8Array;

  /** From the bytes of an AttentionShape to those of an AttentionPartition. */
  partition(shape: Uint8Array, into: Uint8Array): void;

  /** The number of the last launch. */
  readonly published: number;
  /** The number of the last launch that is done. */
  readonly completed: number;
  /** Whether what is pending will never be done. */
  readonly faulted: boolean;
  /**
   * Runs the phases of an operation that have items, here and now when they are small and nothing is pending, or on the
   * threads.
   *
   * @returns the number of the launch that has to be done for all of them to be
   */
  launch(launch: HostLaunch): number;
  /** Resolves when a launch is done. @throws ERR_WORKER */
  wait(launch: number): Promise<void>;
  /** Blocks until a launch is done, working on it meanwhile. @throws ERR_WORKER */
  waitSync(launch: number): void;
  /** Blocks until a launch is done or lost. */
  settle(launch: number): void;
  /** Goes on with new threads after a fault; what was pending is lost, and `lost` says why. */
  replace(): LostLaunches;
}

/** Launches (from, to] that were lost with their threads. */
export interface LostLaunches {
  readonly from: number;
  readonly to: number;
  readonly cause: unknown;
}

/** What a read of a result gets that was lost with a thread. */
export const workerError = (cause: unknown) =>
  new FlashAttnError(
    'ERR_WORKER',
    `a worker thread died before this result was computed (${describeCause(cause)}); later calls use new threads`,
    { cause },
  );

export const describeCause = (cause: unknown) => (cause instanceof Error ? cause.message : String(cause));
