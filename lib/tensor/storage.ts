import type { Backend } from '../kernels/device.js';
import type { DeviceBuffer } from '../kernels/memory.js';
import { type Extremes, extremesOf, joinExtremes } from './integers.js';

/** Device memory shared by a tensor and its views; freed with the last of them. */
export class Storage {
  #references = 0;
  #integers: Extremes | undefined;
  #revision = 0;
  #isShared = false;
  /** How often it has been written since it was made: who keeps it for later can tell. */
  version = 0;
  readonly #free: () => void;

  /** @param free how the memory is given back, when that is not to the backend */
  constructor(
    readonly backend: Backend,
    readonly buffer: DeviceBuffer,
    free = () => backend.free(buffer),
  ) {
    this.#free = free;
  }

  /** What the host has written, where it is all that has been written since. */
  get integers(): Extremes | undefined {
    return this.#revision === this.buffer.revision ? this.#integers : undefined;
  }

  /** Keeps what is known after whole numbers have been written to some of the memory; `before`: what was known. */
  wroteIntegers(values: Int32Array, before: Extremes | undefined): void {
    if (this.#isShared) return;
    const isAll = values.byteLength === this.buffer.byteLength;
    if (!isAll && !before) return;
    const written = extremesOf(values);
    this.#integers = before && !isAll ? joinExtremes(before, written) : written;
    this.#revision = this.buffer.revision;
  }

  /** Somebody else may write the memory from now on. */
  share(): void {
    this.#isShared = true;
    this.#integers = undefined;
  }

  get references(): number {
    return this.#references;
  }

  retain(): this {
    if (this.#references++ === 0) this.backend.tensorCreated();
    return this;
  }

  release(): void {
    if (--this.#references > 0) return;
    this.#free();
    this.backend.tensorDisposed();
  }
}
