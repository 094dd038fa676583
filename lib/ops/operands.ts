import type { Backend } from '../kernels/device.js';
import type { DeviceBuffer } from '../kernels/memory.js';
import type { Flat } from '../kernels/operand.js';
import type { AnyTensor, Tensor } from '../tensor/tensor.js';

/** Operands of a call as kernels read them, with what that took: copies and scratch memory, given back when the call ends. */
export class Operands {
  readonly #made: AnyTensor[] = [];
  readonly #scratch: DeviceBuffer[] = [];

  constructor(readonly backend: Backend) {}

  /** A tensor that lasts as long as the call. */
  keep<T extends AnyTensor>(t: T): T {
    this.#made.push(t);
    return t;
  }

  flat(t: Tensor, argument: string): Flat {
    t.operand(argument, this.backend);
    return (t.isContiguous ? t : this.keep(t.contiguous())).flat(argument, this.backend);
  }

  /** Memory of so many float32; undefined: of none. */
  scratch(elements: number): DeviceBuffer | undefined {
    if (elements === 0) return undefined;
    const buffer = this.backend.allocate(4 * elements, 'deviceWritten');
    this.#scratch.push(buffer);
    return buffer;
  }

  dispose(): void {
    for (const t of this.#made) t.dispose();
    for (const buffer of this.#scratch) this.backend.free(buffer);
  }
}
