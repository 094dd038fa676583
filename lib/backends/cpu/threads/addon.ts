import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join, resolve } from 'node:path';
import { packageFolder, urlOf } from '../../../base/package.js';

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

interface HostOptions {
  readonly instructionSet: string;
  readonly threads: number;
  /** In bytes. */
  readonly memory: number;
}

/** native/addon/cpu/addon.cc */
export interface CpuAddon {
  readonly kind: 'cpu';
  /** Instruction sets that this machine runs, the fastest first. */
  readonly supported: readonly string[];
  /** Those that the addon has and this machine does not run. */
  readonly unsupported: readonly string[];
  readonly Host: new (options: HostOptions, onAwaited: () => void) => NativeHost;
}

/** Stable identifiers of why there are no native threads. */
export type CpuReasonCode = 'NO_ADDON' | 'LOAD_FAILED' | 'NO_INSTRUCTION_SET';

/** Why the device 'cpu' cannot be used, and the one step that would change it. */
export interface CpuReason {
  readonly device: 'cpu';
  readonly code: CpuReasonCode;
  readonly hint: string;
}

export type CpuSupport = { readonly addon: CpuAddon; readonly instructionSet: string } | CpuReason;

const require = createRequire(urlOf(import.meta.url));

const reason = (code: CpuReasonCode, hint: string): CpuReason => ({ device: 'cpu', code, hint });

/** The file that the environment variable FLASHATTN_CPU_ADDON names, or what was built in this checkout. */
function findFile(): string | CpuReason {
  const { FLASHATTN_CPU_ADDON: given } = process.env;
  if (given) return resolve(given);
  const root = packageFolder();
  const built = root === undefined ? undefined : join(root, 'build', 'cpu', 'Release', 'flashattn-cpu.node');
  if (built !== undefined && existsSync(built)) return built;
  return reason(
    'NO_ADDON',
    'the addon for native threads is not there: npm run build:cpu makes it in a clone, with g++ or clang and cmake',
  );
}

function choose(addon: CpuAddon): CpuSupport {
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

function load(): CpuSupport {
  const found = findFile();
  if (typeof found !== 'string') return found;
  try {
    return choose(require(found) as CpuAddon);
  } catch (error) {
    return reason('LOAD_FAILED', `the addon ${found} does not load: ${(error as Error).message}`);
  }
}

let support: CpuSupport | undefined;

/** What this machine has, looked up once. */
export function cpuSupport(): CpuSupport {
  support ??= load();
  return support;
}
