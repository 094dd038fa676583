import { onReleased } from '../../base/released.js';
import type { DeviceBuffer, HostArray, Memory, Uploaded } from '../../kernels/memory.js';

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
  readonly #collected: FinalizationRegistry<DeviceBuffer>;

  constructor(memory: Memory) {
    this.#memory = memory;
    this.#collected = new FinalizationRegistry((buffer) => memory.free(buffer));
    onReleased((owner) => this.#release(owner));
  }

  get<Owner extends object>(owner: Owner, arraysOf: (owner: Owner) => readonly HostArray[]): Uploaded {
    const known = this.#uploaded.get(owner);
    if (known) return known;
    const uploaded = this.#upload(arraysOf(owner));
    this.#uploaded.set(owner, uploaded);
    this.#collected.register(owner, uploaded.buffer, owner);
    return uploaded;
  }

  #release(owner: object): void {
    const uploaded = this.#uploaded.get(owner);
    if (!uploaded) return;
    this.#uploaded.delete(owner);
    this.#collected.unregister(owner);
    this.#memory.free(uploaded.buffer);
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
    return { buffer, addresses };
  }
}
