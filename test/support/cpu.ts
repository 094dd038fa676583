/** The addon for native threads, where this checkout has one. */

import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import type { CpuAddon } from '../../lib/backends/cpu/threads/addon.js';

export const cpuPath =
  process.env.FLASHATTN_CPU_ADDON ??
  fileURLToPath(new URL('../../addons/cpu/build/Release/flashattn-cpu.node', import.meta.url));

export const hasCpu = existsSync(cpuPath);

/** A suite's name, with the reason when it is skipped. */
export const onCpu = (name: string) =>
  hasCpu ? name : `${name} (skipped: no addon; npm run build:cpu makes it with g++ and cmake)`;

/** Instruction sets that this machine runs, the fastest first. */
export const instructionSets: readonly string[] = hasCpu
  ? (createRequire(import.meta.url)(cpuPath) as CpuAddon).supported
  : [];

/** An environment in which 'auto' is wasm. */
export const withoutCpu = { FLASHATTN_CPU: 'none' };

/** What 'auto' is without a GPU. */
export const processor = hasCpu ? 'cpu' : 'wasm';
