import type { AttentionProblem } from '../../kernels/attention.js';
import type { Allocator, AttentionExtras, DeviceBuffer, Flat, Scratch } from '../../kernels/device.js';

/** Arrays of the host that options bring along. */
type HostArray = 'sequences' | 'alibi' | 'buckets' | 'queryPosition' | 'keyPosition';
/** float32 copies of the caller's tensors of another dtype. */
export type WidenedTensor = 'bias' | 'relativeTable' | 'sink';
/** float32 gradients of those tensors, before they are rounded to the caller's dtype. */
export type WideGradient = 'dBias' | 'dRelative' | 'dSink';
/** Arrays that every backend keeps between the launches of one problem. */
export type OptionArray = HostArray | WidenedTensor | WideGradient;

const product = (shape: readonly number[] | undefined) => shape?.reduce((a, b) => a * b, 1) ?? 0;

const isNarrow = (flat: Flat | undefined) => flat !== undefined && flat.dtype !== 'float32';

/** Elements of the float32 arrays that stand in for tensors of another dtype. */
export function wideElements(
  p: AttentionProblem,
  extras: AttentionExtras,
  backward: boolean,
): Partial<Record<WidenedTensor | WideGradient, number>> {
  const bias = isNarrow(extras.bias);
  const relativeTable = isNarrow(extras.relativeTable) ? (p.relative?.bucketCount ?? 0) * p.heads : 0;
  const sink = isNarrow(extras.sink) ? p.heads : 0;
  return {
    // With the gaps of a strided view, so that its strides stay what they are.
    bias: bias ? (extras.bias?.count ?? 0) : 0,
    relativeTable,
    sink,
    ...(backward && { dBias: bias ? product(p.biasShape) : 0, dRelative: relativeTable, dSink: sink }),
  };
}

/** Elements of each array; all of them are of 4 bytes. */
export type Elements<Name extends string> = Partial<Record<Name, number>>;

export const elementsBytes = (elements: Elements<string>) =>
  4 * Object.values(elements).reduce<number>((sum, n) => sum + (n ?? 0), 0);

/** Device memory of one problem: the host's arrays, and what launches write and read besides the caller's tensors. */
export class ScratchMemory<Name extends string = never> implements Scratch {
  readonly #allocator: Allocator;
  readonly #buffers = new Map<Name | OptionArray, DeviceBuffer>();

  constructor(allocator: Allocator, problem: AttentionProblem, elements: Elements<Name | OptionArray>) {
    this.#allocator = allocator;
    const { sequences, alibi, relative } = problem;
    try {
      this.#upload('sequences', sequences);
      this.#upload('alibi', alibi?.slopes);
      this.#upload('buckets', relative?.buckets);
      this.#upload('queryPosition', relative?.queryPosition);
      this.#upload('keyPosition', relative?.keyPosition);
      for (const [name, count] of Object.entries(elements) as [Name | OptionArray, number][])
        if (count > 0) this.#buffers.set(name, allocator.allocate(count * 4, 'deviceWritten'));
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  get(name: Name | OptionArray): DeviceBuffer | undefined {
    return this.#buffers.get(name);
  }

  /** 0 when there is no such array. */
  address(name: Name | OptionArray): number {
    return this.#buffers.get(name)?.address ?? 0;
  }

  buffers(): Iterable<DeviceBuffer> {
    return this.#buffers.values();
  }

  dispose(): void {
    for (const buffer of this.#buffers.values()) this.#allocator.free(buffer);
    this.#buffers.clear();
  }

  #upload(name: HostArray, values: Int32Array | Float32Array | undefined): void {
    if (!values) return;
    const buffer = this.#allocator.allocate(values.byteLength, 'hostWritten');
    this.#buffers.set(name, buffer);
    this.#allocator.write(buffer, 0, new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
  }
}
