import { readFileSync } from 'node:fs';
import { setFlagsFromString } from 'node:v8';
import { FlashAttnError } from '../../../base/errors.js';
import { readAsset } from './assets.js';

/** 'relaxed' uses fused multiply-add (relaxed SIMD); 'plain' is WebAssembly SIMD without it, 1.2 to 1.4 times slower. */
export type SimdBuild = 'relaxed' | 'plain';

export interface LoadedModule {
  readonly module: WebAssembly.Module;
  readonly simd: SimdBuild;
}

/** The error of a step of the set-up, with what the engine said. */
function cannot(step: string, cause: unknown, hint = ''): FlashAttnError {
  return new FlashAttnError('ERR_DEVICE', `wasm cannot be used: ${step}: ${(cause as Error).message}${hint}`, {
    cause,
  });
}

/** Node 20 knows relaxed SIMD behind a flag that can be set at run time; later versions warn about the flag. */
function allowRelaxedSimd(bytes: Uint8Array<ArrayBuffer>): boolean {
  if (WebAssembly.validate(bytes)) return true;
  if (process.versions.node.split('.')[0] !== '20') return false;
  setFlagsFromString('--experimental-wasm-relaxed-simd');
  return WebAssembly.validate(bytes);
}

function compile(bytes: Uint8Array<ArrayBuffer>): WebAssembly.Module {
  try {
    return new WebAssembly.Module(bytes);
  } catch (error) {
    throw cannot('compiling the kernels', error);
  }
}

let loaded: LoadedModule | undefined;

/**
 * The fastest build that this engine accepts, compiled once.
 *
 * @throws ERR_DEVICE
 */
export function loadModule(): LoadedModule {
  loaded ??= load();
  return loaded;
}

function load(): LoadedModule {
  if (typeof WebAssembly === 'undefined')
    throw new FlashAttnError(
      'ERR_DEVICE',
      'wasm cannot be used: this process runs without WebAssembly, as under --jitless',
    );
  if (process.env.FLASHATTN_RELAXED_SIMD !== '0') {
    const relaxed = readAsset('flashattn.relaxed.wasm');
    if (allowRelaxedSimd(relaxed)) return { module: compile(relaxed), simd: 'relaxed' };
  }
  return { module: compile(readAsset('flashattn.simd.wasm')), simd: 'plain' };
}

/** The limit on a process's address space in bytes, where it has one. */
function addressSpaceLimit(): number | undefined {
  try {
    const [, limit] = /^Max address space +(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8')) ?? [];
    return limit === undefined ? undefined : Number(limit);
  } catch {
    return undefined; // only Linux tells
  }
}

/** @throws ERR_DEVICE */
export function createMemory(initial: number, maximum: number): WebAssembly.Memory {
  try {
    return new WebAssembly.Memory({ initial, maximum, shared: true });
  } catch (error) {
    const limit = addressSpaceLimit();
    const hint =
      limit === undefined
        ? ''
        : `; the engine reserves about 10 GB of address space and this process may have ${limit} bytes: raise \`ulimit -v\`, or run node with --disable-wasm-trap-handler, which reserves 4 GB`;
    throw cannot('reserving memory', error, hint);
  }
}

/** @throws ERR_DEVICE */
export function instantiate(module: WebAssembly.Module, memory: WebAssembly.Memory): Record<string, unknown> {
  try {
    return new WebAssembly.Instance(module, { env: { memory } }).exports;
  } catch (error) {
    throw cannot('setting up the kernels', error);
  }
}
