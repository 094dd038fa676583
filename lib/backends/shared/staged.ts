import { StructMemory } from './structWriter.js';

/** What the struct of no operation is larger than: hosts keep room for so much. */
export const mostParamsBytes = 1024;

/** A struct's own memory, and the bytes that native code takes. */
export class Staged {
  readonly memory: StructMemory;
  readonly #bytes: Uint8Array;

  constructor(byteLength: number) {
    const buffer = new ArrayBuffer(byteLength);
    this.memory = new StructMemory(buffer);
    this.#bytes = new Uint8Array(buffer);
  }

  first(byteLength: number): Uint8Array {
    return this.#bytes.subarray(0, byteLength);
  }
}
