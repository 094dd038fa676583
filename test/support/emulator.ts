/** The emulated CUDA device, where this checkout has one. */
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import type { Addon } from '../../lib/backends/cuda/addon.js';

export const emulatorPath =
  process.env.FLASHATTN_EMULATOR_ADDON ??
  fileURLToPath(new URL('../../build/emulator/Release/flashattn_emulator.node', import.meta.url));

export const hasEmulator = existsSync(emulatorPath);

/** A suite's name, with the reason when it is skipped. */
export const onEmulator = (name: string) =>
  hasEmulator ? name : `${name} (skipped: no emulator; npm run build:emulator makes it with g++ and cmake)`;

/** The addon itself, without the library around it. */
export const loadEmulatedAddon = () => createRequire(import.meta.url)(emulatorPath) as Addon;
