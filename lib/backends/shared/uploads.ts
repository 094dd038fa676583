import { onReleased } from '../../base/released.js';
import type { Allocator, DeviceBuffer } from '../../kernels/device.js';

/** Arrays in device memory, one behind the other. */
export interface Uploaded {
  readonly buffer: DeviceBuffer;
  readonly addresses: readonly number[];
}

// Kernels load up to 16 bytes at a time.
const alignment = 16;
const align = (n: number) => Math.ceil(n / alignment) * alignment;

/**
 * The arrays of immutable objects (block masks, row maps) in device memory: uploaded at their first use, freed when the
 * object is released or the collector takes it.
 */
export class Constants<T extends object> {
  readonly #allocator: Allocator;
  readonly #arraysOf: (owner: T) => readonly (Int32Array | Uint32Array)[];
  readonly #uploaded = new WeakMap<T, Uploaded>();
  readonly #collected: FinalizationRegistry<DeviceBuffer>;

  constructor(allocator: Allocator, arraysOf: (owner: T) => readonly (Int32Array | Uint32Array)[]) {
    this.#allocator = allocator;
    this.#arraysOf = arraysOf;
    this.#collected = new FinalizationRegistry((buffer) => allocator.free(buffer));
    onReleased((owner) => this.#release(owner as T));
  }

  get(owner: T): Uploaded {
    const known = this.#uploaded.get(owner);
    if (known) return known;
    const uploaded = this.#upload(this.#arraysOf(owner));
    this.#uploaded.set(owner, uploaded);
    this.#collected.register(owner, uploaded.buffer, owner);
    return uploaded;
  }

  #release(owner: T): void {
    const uploaded = this.#uploaded.get(owner);
    if (!uploaded) return;
    this.#uploaded.delete(owner);
    this.#collected.unregister(owner);
    this.#allocator.free(uploaded.buffer);
  }

  #upload(arrays: readonly (Int32Array | Uint32Array)[]): Uploaded {
    const byteLength = arrays.reduce((sum, array) => sum + align(array.byteLength), 0);
    const buffer = this.#allocator.allocate(byteLength, 'hostWritten');
    let offset = 0;
    const addresses = arrays.map((array) => {
      const at = offset;
      this.#allocator.write(buffer, at, new Uint8Array(array.buffer, array.byteOffset, array.byteLength));
      offset += align(array.byteLength);
      return buffer.address + at;
    });
    return { buffer, addresses };
  }
}
