import { onReleased } from '../../base/released.js';
import type { HostArray, Memory, Uploaded } from '../../kernels/memory.js';

// Kernels load up to 16 bytes at a time.
const alignment = 16;
const align = (n: number) => Math.ceil(n / alignment) * alignment;

/**
 * The arrays of immutable objects (block masks, row maps) in device memory: uploaded at their first use, freed when the
 * object is released or the collector takes it.
 */
export class Uploads {
  readonly #memory: Memory;
  readonly #uploaded = new WeakMap<object, Uploaded>();
  readonly #collected = new FinalizationRegistry<Uploaded>((uploaded) => uploaded.release());

  constructor(memory: Memory) {
    this.#memory = memory;
    onReleased((owner) => this.#release(owner));
  }

  get<Owner extends object>(owner: Owner, arraysOf: (owner: Owner) => readonly HostArray[]): Uploaded {
    const known = this.#uploaded.get(owner);
    if (known) return known;
    const uploaded = this.#upload(arraysOf(owner));
    uploaded.retain();
    this.#uploaded.set(owner, uploaded);
    this.#collected.register(owner, uploaded, owner);
    return uploaded;
  }

  #release(owner: object): void {
    const uploaded = this.#uploaded.get(owner);
    if (!uploaded) return;
    this.#uploaded.delete(owner);
    this.#collected.unregister(owner);
    uploaded.release();
  }

  #upload(arrays: readonly HostArray[]): Uploaded {
    const byteLength = arrays.reduce((sum, array) => sum + align(array.byteLength), 0);
    const buffer = this.#memory.allocate(byteLength, 'hostWritten');
    let offset = 0;
    const addresses = arrays.map((array) => {
      const at = offset;
      this.#memory.write(buffer, at, new Uint8Array(array.buffer, array.byteOffset, array.byteLength));
      offset += align(array.byteLength);
      return buffer.address + at;
    });
    let references = 0;
    return {
      buffer,
      addresses,
      retain: () => {
        references++;
      },
      release: () => {
        if (--references === 0) this.#memory.free(buffer);
      },
    };
  }
}
