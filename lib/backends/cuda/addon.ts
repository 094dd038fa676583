import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join, resolve } from 'node:path';
import { packageFolder, urlOf } from '../../base/package.js';
import { attentionForward, attentionPartition, attentionShape } from '../../kernels/attention.js';
import { checkFields, parseDescription, type Struct } from '../../kernels/struct.js';
import { type AddonFailure, type Attempt, explainLoadError, isCheckout } from '../shared/addon/search.js';
import { cudaAddon, findAddon } from './search.js';

/** A device as the CUDA runtime describes it. */
export interface DeviceDescription {
  readonly index: number;
  readonly name: string;
  /** Compute capability. */
  readonly major: number;
  readonly minor: number;
  /** In bytes. */
  readonly memory: number;
  /** That a block may opt in to, in bytes. */
  readonly sharedMemory: number;
  readonly multiprocessors: number;
  readonly pciBusId: string;
  /** A CUDA error, where the device cannot be asked. */
  readonly error?: string;
  readonly message?: string;
}

export interface DeviceList {
  /** As CUDA numbers its versions: 13020 is 13.2. 0: there is no driver. */
  readonly driverVersion: number;
  readonly runtimeVersion: number;
  readonly devices: readonly DeviceDescription[];
  /** A CUDA error, where the devices cannot be counted. */
  readonly error?: string;
  readonly message?: string;
}

/** native/addon/cuda/context.h: a device's memory and stream. Pointers are numbers. */
export interface Context {
  allocate(bytes: number): number;
  free(pointer: number): void;
  /** Gives memory that is not in use back to the device. */
  trim(): void;
  memoryInfo(): { free: number; total: number; reserved: number };
  pointerAttributes(pointer: number): { kind: 'device' | 'managed' | 'host' | 'unregistered'; device: number };
  write(pointer: number, bytes: Uint8Array): void;
  read(pointer: number, into: Uint8Array): Promise<void>;
  readSync(pointer: number, into: Uint8Array): void;
  synchronize(): Promise<void>;
  setStream(stream: number | undefined): void;
  recordEvent(): number;
  /** Milliseconds; waits for `end`. Both events are used up. */
  elapsed(start: number, end: number): number;
  /** `operation` counts the operations of the addon's description; `params` are the bytes of its struct. */
  launch(operation: number, params: Uint8Array): void;
  /** Calls `run`, whose launches are kept and not queued; what else it asks of the device throws. The graph's number. */
  record(run: () => void): number;
  /** Queues the launches of a graph. */
  replay(graph: number): void;
  forget(graph: number): void;
  /**
   * Takes the first library that can be used: one of the names that is loaded already, or one of the files. `version` is
   * 130101 for 13.1.1; `tried` is what came of the others.
   */
  openCublasLt(
    loaded: readonly string[],
    files: readonly string[],
  ): { readonly path?: string; readonly version?: number; readonly tried: readonly Attempt[] };
  /** From the bytes of an AttentionShape to those of an AttentionPartition. */
  partition(shape: Uint8Array, into: Uint8Array): void;
}

/** The emulator's switches and findings, for tests. */
export interface EmulatorControls {
  configure(config: {
    /** 0: lowest thread first, 1: highest first, 2 and up: random with this seed. */
    schedule?: number;
    /** Whether asynchronous copies land when issued instead of as late as allowed. */
    eagerCopies?: boolean;
    /** Whether tensor cores add as coarsely as any does. */
    cutSums?: boolean;
    races?: boolean;
    globalRaces?: boolean;
    bankConflicts?: boolean;
    maxReports?: number;
  }): void;
  /** The next launch ends with this error of CUDA, told by the next call that waits. */
  failLaunch(error: number): void;
  /** While events are held, whoever waits for one blocks. */
  holdEvents(held: boolean): void;
  /** A stream of another user of the device. */
  createStream(): number;
  /** Begins to capture a stream into a graph, or ends it and forgets the graph. */
  setCapturing(stream: number, capturing: boolean): void;
  /** Whether a device has a primary context. */
  hasContext(device: number): boolean;
  /** What a library that stands in for one of NVIDIA's is to do: see test/cuda/cublaslt. '': what it should. */
  setStandIn(behaviour: string): void;
  reports(): string[];
  clearReports(): void;
  statistics(): Record<string, number>;
}

/** native/addon/cuda/addon.cc */
export interface Addon {
  readonly kind: 'cuda' | 'emulator';
  /** The text of native/structs/fields.h: operations and structs. */
  readonly description: string;
  readonly Context: new (device: number) => Context;
  readonly emulator?: EmulatorControls;
  devices(): DeviceList;
}

/** What a failing call into the addon throws. */
export interface AddonError extends Error {
  readonly code?: 'ERR_DEVICE' | 'ERR_OUT_OF_MEMORY';
  /** The name of a CUDA error. */
  readonly cuda?: string;
  /** What was being launched: a kernel, or the operation that has been waited for (`ended`). */
  readonly launch?: string;
  readonly ended?: boolean;
  /** In bytes, when memory ran out. */
  readonly requested?: number;
  readonly free?: number;
  readonly total?: number;
}

/** An addon and where it was loaded from, or why there is none. */
export type LoadResult = { readonly addon: Addon; readonly path?: string } | AddonFailure;

const require = createRequire(urlOf(import.meta.url));

/** `given`: the user named the file. */
function loadFile(path: string, given: boolean): LoadResult {
  let addon: Addon;
  try {
    addon = require(path) as Addon;
  } catch (error) {
    return explainLoadError(cudaAddon, path, given, error);
  }
  // Every struct is checked before it is first written; these tell at once whether the addon is of this version.
  try {
    const description = parseDescription(addon.description ?? '');
    for (const struct of [attentionShape, attentionPartition, attentionForward.struct])
      checkFields(description, struct as Struct, `the addon ${path}`);
  } catch (error) {
    const again = given ? 'correct or unset FLASHATTN_ADDON' : 'build it or install flashattn again';
    const { message } = error as Error;
    return { problem: 'OTHER_VERSION', missing: `${message}: ${again}`, tried: [{ path, result: message }] };
  }
  return { addon, path };
}

/**
 * The addon with the CUDA kernels: the file that the environment variable FLASHATTN_ADDON names, the one of the package
 * for this platform, or the one that was built in this checkout.
 */
export function loadAddon(): LoadResult {
  const { FLASHATTN_ADDON: given } = process.env;
  if (given) return loadFile(resolve(given), true);
  const found = findAddon();
  return 'path' in found ? loadFile(found.path, false) : found;
}

/** The emulated addon, which only a checkout has: the file that FLASHATTN_EMULATOR_ADDON names, or what was built. */
export function loadEmulator(): LoadResult {
  const root = packageFolder();
  if (root === undefined || !isCheckout(root)) {
    const missing = 'the emulator is for tests and not part of the package: use another device';
    return { problem: 'NO_PREBUILD', missing, tried: [] };
  }
  const { FLASHATTN_EMULATOR_ADDON: given } = process.env;
  const path = given ? resolve(given) : join(root, 'build', 'emulator', 'Release', 'flashattn_emulator.node');
  if (existsSync(path)) return loadFile(path, false);
  const missing = 'the emulator has not been built: run npm run build:emulator, which needs g++ and cmake';
  return { problem: 'NOT_BUILT', missing, tried: [{ path, result: 'is not there' }] };
}
