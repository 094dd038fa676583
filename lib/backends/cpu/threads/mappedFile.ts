// Files as memory, through the addon for native threads.
import { constants } from 'node:buffer';
import { type CpuAddon, cpuAddon } from './addon.js';

/** The bytes of a file. Never write into the buffer: it has no pages of its own. */
export class MappedFile implements Disposable {
  readonly buffer: ArrayBuffer;
  readonly #addon: CpuAddon;

  constructor(addon: CpuAddon, buffer: ArrayBuffer) {
    this.#addon = addon;
    this.buffer = buffer;
  }

  /** The buffer has no bytes afterwards; without this its memory goes when nobody holds it any more. */
  dispose(): void {
    this.#addon.unmapFile(this.buffer);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * An open file of `byteLength` bytes as memory; undefined where there is no addon that could, the file is longer than a buffer
 * can be, or the system or Node refuses.
 */
export function mapFile(file: number, byteLength: number): MappedFile | undefined {
  if (byteLength === 0 || byteLength > constants.MAX_LENGTH) return undefined;
  const loaded = cpuAddon();
  if (!('addon' in loaded)) return undefined;
  const { addon } = loaded;
  // An addon of an older version has no such function.
  const buffer = addon.mapFile?.(file, byteLength);
  return buffer && new MappedFile(addon, buffer);
}
