import type { Random } from './random.js';

/** A decoder, and what is right for it to do with any bytes. */
export interface FuzzTarget {
  /** Inputs to start from. */
  seeds(): Uint8Array[];
  /** A change, or another input altogether, that knows the format: deeper than changing bytes gets. */
  mutate(random: Random, input: Uint8Array): Uint8Array;
  /** Decodes the input. Throws when the decoder does anything but decode it rightly or refuse it as documented. */
  run(input: Uint8Array): void;
}

const allocated = () => {
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
};

/** What decoding may allocate: some times the input, besides what the engine itself needs now and then. */
const mostAllocated = (input: Uint8Array) => 64 * input.length + (16 << 20);

/** Runs a decoder and throws if it allocates more than fits its input. */
export function withBoundedMemory<T>(input: Uint8Array, decode: (input: Uint8Array) => T): T {
  const before = allocated();
  try {
    return decode(input);
  } finally {
    // A collection in between makes the difference too small, never too large.
    const grown = allocated() - before;
    // biome-ignore lint/correctness/noUnsafeFinally: it is worse than whatever else went wrong
    if (grown > mostAllocated(input)) throw new Error(`${input.length} bytes of input made it allocate ${grown} bytes`);
  }
}

export function assert(condition: boolean, message: string): asserts condition {
  if (!condition) throw new Error(message);
}

export function assertSameBytes(got: Uint8Array, wanted: Uint8Array, what: string): void {
  assert(Buffer.compare(got, wanted) === 0, `${what}: ${got.length} bytes differ from ${wanted.length} bytes`);
}
