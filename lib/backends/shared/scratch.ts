import type { AttentionExtras, AttentionPartition, AttentionProblem } from '../../kernels/attention.js';
import type { Backend } from '../../kernels/device.js';
import type { DeviceBuffer } from '../../kernels/memory.js';
import type { Operand } from '../../kernels/operand.js';

/** Arrays of the host that options bring along. */
type HostArrayName = 'sequences' | 'alibi' | 'buckets' | 'queryPosition' | 'keyPosition';
/** float32 copies of the caller's tensors of another dtype. */
export type WidenedTensor = 'bias' | 'relativeTable' | 'sink';
/** float32 gradients of those tensors, before they are rounded to the caller's dtype. */
export type WideGradient = 'dBias' | 'dRelative' | 'dSink';
/** What kernels pass on to the next. */
type PassedArray = 'decodeStates' | 'rowTerms' | 'dQuerySum' | 'turns' | 'dRelativePartial';
type ArrayName = HostArrayName | WidenedTensor | WideGradient | PassedArray;

const product = (shape: readonly number[] | undefined) => shape?.reduce((a, b) => a * b, 1) ?? 0;

const isNarrow = (operand: Operand | undefined) => operand !== undefined && operand.dtype !== 'float32';

type Elements = Partial<Record<ArrayName, number>>;

/** Elements of the float32 arrays that stand in for tensors of another dtype. */
function wideElements(p: AttentionProblem, extras: AttentionExtras, backward: boolean): Elements {
  const bias = isNarrow(extras.bias) ? product(p.biasShape) : 0;
  const relativeTable = isNarrow(extras.relativeTable) ? (p.relative?.bucketCount ?? 0) * p.heads : 0;
  const sink = isNarrow(extras.sink) ? p.heads : 0;
  if (!backward) return { bias, relativeTable, sink };
  return { bias, relativeTable, sink, dBias: bias, dRelative: relativeTable, dSink: sink };
}

const passedElements = (partition: AttentionPartition, backward: boolean): Elements => {
  const { decodeStates, rowTerms, dQuerySum, turns, dRelativePartial } = partition;
  return backward ? { rowTerms, dQuerySum, turns, dRelativePartial } : { decodeStates };
};

/** Bytes of what the kernels of a launch pass on to the next. */
export const passedBytes = (partition: AttentionPartition, backward: boolean): number =>
  4 * Object.values(passedElements(partition, backward)).reduce((sum, n) => sum + n, 0);

/** Device memory of one problem: the host's arrays, and what launches write and read besides the caller's tensors. */
export class Scratch {
  readonly partition: AttentionPartition;
  readonly #backend: Backend;
  readonly #buffers = new Map<ArrayName, DeviceBuffer>();

  constructor(backend: Backend, problem: AttentionProblem, extras: AttentionExtras, backward: boolean) {
    this.#backend = backend;
    this.partition = backend.partition(problem);
    const { sequences, alibi, relative } = problem;
    const passed = passedElements(this.partition, backward);
    const elements: Elements = { ...wideElements(problem, extras, backward), ...passed };
    try {
      this.#upload('sequences', sequences);
      this.#upload('alibi', alibi?.slopes);
      this.#upload('buckets', relative?.buckets);
      this.#upload('queryPosition', relative?.queryPosition);
      this.#upload('keyPosition', relative?.keyPosition);
      for (const [name, count] of Object.entries(elements) as [ArrayName, number][])
        if (count > 0) this.#buffers.set(name, backend.allocate(count * 4, 'deviceWritten'));
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  get(name: ArrayName): DeviceBuffer | undefined {
    return this.#buffers.get(name);
  }

  /** 0 when there is no such array. */
  address(name: ArrayName): number {
    return this.#buffers.get(name)?.address ?? 0;
  }

  get buffers(): readonly DeviceBuffer[] {
    return [...this.#buffers.values()];
  }

  dispose(): void {
    for (const buffer of this.#buffers.values()) this.#backend.free(buffer);
    this.#buffers.clear();
  }

  #upload(name: HostArrayName, values: Int32Array | Float32Array | undefined): void {
    if (!values) return;
    const buffer = this.#backend.allocate(values.byteLength, 'hostWritten');
    this.#buffers.set(name, buffer);
    this.#backend.write(buffer, 0, new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
  }
}
