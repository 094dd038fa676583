import { createRequire } from 'node:module';
import { resolve } from 'node:path';
import { urlOf } from '../../../base/package.js';
import { type AddonFailure, explainLoadError } from '../../shared/addon/search.js';
import { findAddon, threadsAddon } from './search.js';

/** native/addon/cpu/host.h. Addresses and launches are numbers. */
export interface NativeHost {
  readonly description: string;
  readonly lanes: number;
  readonly maxPhases: number;
  readonly workspaceBytes: number;
  /** The first address of memory for tensors. */
  readonly begin: number;
  /** Bytes that there can be of it. */
  readonly limit: number;
  grow(end: number): boolean;
  usable(): number;
  /** Gives pages within these bytes back to the system; what they hold is lost. */
  discard(address: number, byteLength: number): void;
  copyIn(address: number, bytes: Uint8Array): void;
  copyOut(address: number, into: Uint8Array): void;
  partition(shape: Uint8Array, into: Uint8Array): void;
  launch(first: number, params: Uint32Array, small: boolean): number;
  completed(): number;
  /** Blocks until a launch is done. */
  wait(launch: number): void;
  /** From when on `onAwaited` is called; undefined: never. */
  await(launch: number | undefined): void;
  /** Threads that there are; undefined before they were needed. */
  threads(): number | undefined;
}

/** native/addon/cpu/addon.cc */
export interface CpuAddon {
  readonly kind: 'cpu';
  /** Instruction sets that this machine runs, the fastest first. */
  readonly supported: readonly string[];
  /** Those that the addon has and this machine does not run. */
  readonly unsupported: readonly string[];
  readonly Host: new (
    instructionSet: string,
    threads: number,
    memoryBytes: number,
    onAwaited: () => void,
  ) => NativeHost;
  /** native/addon/cpu/files.h. Undefined where the system or Node refuses. */
  mapFile(file: number, byteLength: number): ArrayBuffer | undefined;
  unmapFile(buffer: ArrayBuffer): void;
}

/** Stable identifiers of why there are no native threads. */
export type CpuReasonCode = 'NO_ADDON' | 'LOAD_FAILED' | 'NO_INSTRUCTION_SET';

/** Why the device 'cpu' cannot be used, and the one step that would change it. */
export interface CpuReason {
  readonly device: 'cpu';
  readonly code: CpuReasonCode;
  readonly hint: string;
}

/** An addon and where it was loaded from, or why there is none. */
export type CpuLoadResult = { readonly addon: CpuAddon; readonly path: string } | AddonFailure;

export type CpuSupport = { readonly addon: CpuAddon; readonly instructionSet: string } | CpuReason;

const require = createRequire(urlOf(import.meta.url));

const reason = (code: CpuReasonCode, hint: string): CpuReason => ({ device: 'cpu', code, hint });

/** The addon that the environment variable FLASHATTN_CPU_ADDON names, the one of this checkout or of the package. */
function load(): CpuLoadResult {
  const { FLASHATTN_CPU_ADDON: given } = process.env;
  const found = given ? { path: resolve(given) } : findAddon();
  if ('problem' in found) return found;
  const { path } = found;
  try {
    return { addon: require(path) as CpuAddon, path };
  } catch (error) {
    return explainLoadError(threadsAddon, path, Boolean(given), error);
  }
}

const notFound: ReadonlySet<string> = new Set(['NOT_BUILT', 'NO_PACKAGE', 'NO_LOADER', 'NO_PREBUILD']);

function choose(loaded: CpuLoadResult): CpuSupport {
  if ('problem' in loaded) return reason(notFound.has(loaded.problem) ? 'NO_ADDON' : 'LOAD_FAILED', loaded.missing);
  const { addon } = loaded;
  const { supported, unsupported } = addon;
  const { FLASHATTN_CPU: wanted } = process.env;
  const [fastest] = supported;
  if (fastest === undefined)
    return reason(
      'NO_INSTRUCTION_SET',
      `the addon has kernels for ${unsupported.join(', ')}, and this processor has none of them: use wasm`,
    );
  if (!wanted) return { addon, instructionSet: fastest };
  if (supported.includes(wanted)) return { addon, instructionSet: wanted };
  const why = unsupported.includes(wanted) ? 'this processor does not have it' : 'the addon has no kernels for it';
  return reason('NO_INSTRUCTION_SET', `FLASHATTN_CPU is ${wanted}, but ${why}: use ${supported.join(' or ')}`);
}

let loaded: CpuLoadResult | undefined;

/** The addon for native threads, looked up once. */
export function cpuAddon(): CpuLoadResult {
  loaded ??= load();
  return loaded;
}

let support: CpuSupport | undefined;

/** What this machine has, looked up once. */
export function cpuSupport(): CpuSupport {
  support ??= choose(cpuAddon());
  return support;
}
