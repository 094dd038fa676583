import type { DeviceBuffer } from './memory.js';
import type { Fields, Struct, ValuesOf } from './struct.js';

/** One launch of an operation. */
export interface Launch<F extends Fields> {
  readonly params: ValuesOf<F>;
  readonly reads: readonly DeviceBuffer[];
  readonly writes: readonly DeviceBuffer[];
  /** Floating-point operations, roughly (moving an element counts as `elementWork`): what is little runs in place. */
  readonly work: number;
}

/** What it costs to move an element, in floating-point operations. */
export const elementWork = 8;

/**
 * What a device can be asked to do. The kernels have it under the same name (native/cpu/operations.h, cuda/launch.h), and
 * take a struct that native/structs defines.
 */
export interface Operation<Operands, F extends Fields = Fields> {
  readonly name: string;
  readonly struct: Struct<F>;
  /** `undefined`: there is nothing to do. */
  readonly describe: (operands: Operands) => Launch<F> | undefined;
}

export function operation<Operands, F extends Fields>(
  name: string,
  struct: Struct<F>,
  describe: (operands: Operands) => Launch<F> | undefined,
): Operation<Operands, F> {
  return { name, struct, describe };
}
