import type { BlockMask } from '../../blockmask/blockMask.js';
import type { DeviceBuffer } from '../backend.js';
import type { BlockMaskMemory } from './params.js';

interface Allocator {
  allocate(byteLength: number, purpose: 'hostWritten'): DeviceBuffer;
  free(buffer: DeviceBuffer): void;
  write(buffer: DeviceBuffer, byteOffset: number, bytes: Uint8Array): void;
}

interface Uploaded extends BlockMaskMemory {
  readonly buffer: DeviceBuffer;
}

/** Block masks in device memory: uploaded at their first use, freed when the collector takes the mask. */
export class MaskMemory {
  readonly #allocator: Allocator;
  readonly #uploaded = new WeakMap<BlockMask, Uploaded>();
  readonly #collected: FinalizationRegistry<DeviceBuffer>;

  constructor(allocator: Allocator) {
    this.#allocator = allocator;
    this.#collected = new FinalizationRegistry((buffer) => allocator.free(buffer));
  }

  get(mask: BlockMask): Uploaded {
    const known = this.#uploaded.get(mask);
    if (known) return known;
    const uploaded = this.#upload(mask);
    this.#uploaded.set(mask, uploaded);
    this.#collected.register(mask, uploaded.buffer);
    return uploaded;
  }

  #upload({ full, partial, bits, transposed }: BlockMask): Uploaded {
    // The order of `BlockMaskParams` in native/cpu/params.h.
    const arrays = [
      ...[full, partial, transposed.full, transposed.partial].flatMap(({ offsets, indices }) => [offsets, indices]),
      transposed.partialBlocks,
      bits,
    ];
    const buffer = this.#allocator.allocate(
      arrays.reduce((sum, { byteLength }) => sum + byteLength, 0),
      'hostWritten',
    );
    let offset = 0;
    const addresses = arrays.map((array) => {
      this.#allocator.write(buffer, offset, new Uint8Array(array.buffer, array.byteOffset, array.byteLength));
      offset += array.byteLength;
      return buffer.address + offset - array.byteLength;
    });
    return { buffer, addresses };
  }
}
