import { existsSync, readdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { structSizes } from './params.js';

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

export interface Tiling {
  readonly queryTile: number;
  readonly keyTile: number;
  readonly threads: number;
  readonly sharedMemory: number;
  readonly blocks: number;
}

/** In elements. */
export interface BackwardScratch {
  readonly delta: number;
  readonly dQuerySum: number;
  readonly turns: number;
  readonly dRelativePartial: number;
  readonly relativeSlices: number;
}

/** native/addon/context.h: a device's memory and stream. Pointers are numbers; launches take a struct of cuda/params.h. */
export interface Context {
  allocate(bytes: number): number;
  free(pointer: number): void;
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
  forward(params: ArrayBuffer): void;
  backward(params: ArrayBuffer): void;
  merge(params: ArrayBuffer): void;
  mergeBackward(params: ArrayBuffer): void;
  gather(params: ArrayBuffer): void;
  convert(params: ArrayBuffer): void;
  fill(params: ArrayBuffer): void;
  peak(blocks: number, iterations: number, sink: number): void;
  forwardTiling(params: ArrayBuffer): Tiling;
  backwardTiling(params: ArrayBuffer): Tiling;
  backwardScratch(params: ArrayBuffer): BackwardScratch;
}

/** The emulator's switches and findings, for tests. */
export interface EmulatorControls {
  configure(config: {
    /** 0: lowest thread first, 1: highest first, 2 and up: random with this seed. */
    schedule?: number;
    /** Whether asynchronous copies land when issued instead of as late as allowed. */
    eagerCopies?: boolean;
    races?: boolean;
    globalRaces?: boolean;
    bankConflicts?: boolean;
    maxReports?: number;
  }): void;
  reports(): string[];
  clearReports(): void;
  statistics(): Record<string, number>;
}

/** native/addon/addon.cc */
export interface Addon {
  readonly kind: 'cuda' | 'emulator';
  readonly structSizes: Readonly<Record<string, number>>;
  readonly Context: new (device: number) => Context;
  readonly emulator?: EmulatorControls;
  devices(): DeviceList;
}

/** What a failing call into the addon throws. */
export interface AddonError extends Error {
  readonly code?: 'ERR_DEVICE' | 'ERR_OUT_OF_MEMORY';
  /** The name of a CUDA error. */
  readonly cuda?: string;
  /** Which launch failed. */
  readonly kernel?: string;
  /** In bytes, when memory ran out. */
  readonly requested?: number;
  readonly free?: number;
  readonly total?: number;
}

/** An addon, or why there is none and the one step that would change it. */
export type LoadResult = { readonly addon: Addon } | { readonly missing: string };

const require = createRequire(import.meta.url);

/** The sources and dist/ lie at different depths. */
function packageRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'package.json'))) folder = dirname(folder);
  return folder;
}

/** Whether this is a checkout, where addons can be built, and not an installed package. */
const isCheckout = (root: string) => existsSync(join(root, 'CMakeLists.txt'));

const firstLine = (error: unknown) => String((error as Error).message).split('\n')[0];

function findPrebuilt(root: string): { path: string } | { missing: string } {
  let find: { resolve(folder: string): string };
  try {
    find = require('node-gyp-build');
  } catch {
    return { missing: 'the package node-gyp-build, which finds the CUDA addon, is not installed: run npm install' };
  }
  try {
    return { path: find.resolve(root) };
  } catch {
    const platform = `${process.platform}-${process.arch}`;
    return {
      missing: isCheckout(root)
        ? `the CUDA addon has not been built for ${platform}: run npm run build:addon, which needs the CUDA toolkit`
        : `this package brings CUDA addons for ${listPrebuilt(root)}, not for ${platform}: use one of those platforms`,
    };
  }
}

/** Platforms that this package brings an addon for. */
function listPrebuilt(root: string): string {
  const folder = join(root, 'prebuilds');
  const platforms = existsSync(folder) ? readdirSync(folder).sort() : [];
  return platforms.join(', ') || 'none';
}

function loadFile(path: string): LoadResult {
  let addon: Addon;
  try {
    addon = require(path) as Addon;
  } catch (error) {
    return { missing: `the addon ${path} does not load: ${firstLine(error)}` };
  }
  // The structs are written by hand on this side: a build that disagrees must not run.
  for (const [name, size] of Object.entries(structSizes))
    if (addon.structSizes?.[name] !== size)
      return {
        missing: `the addon ${path} is of another version (${addon.structSizes?.[name]} bytes in ${name} instead of ${size}): build it again`,
      };
  return { addon };
}

/**
 * The addon with the CUDA kernels: the file that the environment variable FLASHATTN_ADDON names, the one that was built
 * in this checkout, or the one that the package brings for this platform.
 */
export function loadAddon(): LoadResult {
  const { FLASHATTN_ADDON: given } = process.env;
  if (given) return loadFile(given);
  const found = findPrebuilt(packageRoot());
  return 'path' in found ? loadFile(found.path) : found;
}

/** The emulated addon, which only a checkout has. */
export function loadEmulator(): LoadResult {
  const root = packageRoot();
  const path = join(root, 'build', 'emulator', 'Release', 'flashattn_emulator.node');
  if (existsSync(path)) return loadFile(path);
  return {
    missing: isCheckout(root)
      ? 'the emulator has not been built: run npm run build:emulator, which needs g++ and cmake'
      : 'the emulator is for tests and not part of the package',
  };
}
