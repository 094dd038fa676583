import { CpuBackend } from '../backend.js';
import { WasmHost } from './host.js';
import type { SimdBuild } from './module.js';

export interface WasmStatus {
  /** Which WebAssembly build runs. */
  readonly simd: SimdBuild;
  /** How many threads work on a launch. */
  readonly threads: number;
  /** Why there are no worker threads, where there are none: the calling thread then does all of the work. */
  readonly threadless?: string;
}

let backend: CpuBackend<WasmHost> | undefined;

/** WebAssembly; one for each JavaScript environment. */
export function wasmBackend(): CpuBackend<WasmHost> {
  backend ??= new CpuBackend(new WasmHost());
  return backend;
}

export function describeWasm(): WasmStatus {
  const { simd, activeThreads, threadless } = wasmBackend().host;
  return { simd, threads: activeThreads, ...(threadless !== undefined && { threadless }) };
}
