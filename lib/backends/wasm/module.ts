import { readFileSync } from 'node:fs';
import { setFlagsFromString } from 'node:v8';
import { type Asset, assetUrl } from './assets.js';

/** 'relaxed' uses fused multiply-add (relaxed SIMD); 'plain' is WebAssembly SIMD without it, 1.2 to 1.4 times slower. */
export type SimdBuild = 'relaxed' | 'plain';

export interface LoadedModule {
  readonly module: WebAssembly.Module;
  readonly simd: SimdBuild;
}

const readBuild = (file: Asset) => readFileSync(assetUrl(file));

/** Node 20 knows relaxed SIMD behind a flag that can be set at run time; later versions warn about the flag. */
function allowRelaxedSimd(bytes: Uint8Array<ArrayBuffer>): boolean {
  if (process.env.FLASHATTN_RELAXED_SIMD === '0') return false;
  if (WebAssembly.validate(bytes)) return true;
  if (process.versions.node.split('.')[0] !== '20') return false;
  setFlagsFromString('--experimental-wasm-relaxed-simd');
  return WebAssembly.validate(bytes);
}

/** Compiles the fastest build that this engine accepts. */
export function loadModule(): LoadedModule {
  const relaxed = readBuild('flashattn.relaxed.wasm');
  if (allowRelaxedSimd(relaxed)) return { module: new WebAssembly.Module(relaxed), simd: 'relaxed' };
  return { module: new WebAssembly.Module(readBuild('flashattn.simd.wasm')), simd: 'plain' };
}
