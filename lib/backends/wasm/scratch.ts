import type { AttentionProblem } from '../../problem.js';
import type { DeviceBuffer, Scratch } from '../backend.js';
import { type AttentionMemory, lseRows } from './params.js';

const roundUp = (n: number, multiple: number) => Math.ceil(n / multiple) * multiple;

export interface ScratchSizes {
  readonly keySplits: number;
  /** dtype of the caller's bias, table and sink is not float32: widened copies are needed. */
  readonly widen: { readonly bias: boolean; readonly relativeTable: boolean; readonly sink: boolean };
  readonly backward: boolean;
}

interface Allocator {
  allocate(byteLength: number, purpose: 'hostWritten' | 'deviceWritten'): DeviceBuffer;
  free(buffer: DeviceBuffer): void;
  write(buffer: DeviceBuffer, byteOffset: number, bytes: Uint8Array): void;
}

type Field = keyof AttentionMemory;

const product = (shape: readonly number[] | undefined) => shape?.reduce((a, b) => a * b, 1) ?? 0;

/** Float32 elements of each array that launches of a problem write and read besides the caller's tensors. */
function scratchElements(p: AttentionProblem, sizes: ScratchSizes): Partial<Record<Field, number>> {
  const table = p.relative ? p.relative.bucketCount * p.heads : 0;
  const { widen, backward } = sizes;
  return {
    bias: widen.bias ? product(p.biasShape) : 0,
    relativeTable: widen.relativeTable ? table : 0,
    sink: widen.sink ? p.heads : 0,
    ...(backward && {
      delta: lseRows(p),
      dQueryPartial: sizes.keySplits * lseRows(p) * roundUp(p.headDim, 4),
      dRelativePartial: sizes.keySplits * p.batch * table,
      dBias: widen.bias ? product(p.biasShape) : 0,
      dRelative: widen.relativeTable ? table : 0,
      dSink: widen.sink ? p.heads : 0,
    }),
  };
}

export const scratchBytes = (p: AttentionProblem, sizes: ScratchSizes) =>
  4 * Object.values(scratchElements(p, sizes)).reduce((sum, n) => sum + n, 0);

/** Device memory of one problem: the host's constants, widened copies, and what backward passes between its launches. */
export class WasmScratch implements Scratch {
  readonly #allocator: Allocator;
  readonly #buffers = new Map<Field, DeviceBuffer>();

  constructor(allocator: Allocator, problem: AttentionProblem, sizes: ScratchSizes) {
    this.#allocator = allocator;
    const { sequences, alibi, relative } = problem;
    try {
      this.#constant('sequences', sequences);
      this.#constant('alibi', alibi?.slopes);
      this.#constant('buckets', relative?.buckets);
      this.#constant('queryPosition', relative?.queryPosition);
      this.#constant('keyPosition', relative?.keyPosition);
      for (const [name, elements] of Object.entries(scratchElements(problem, sizes)))
        if (elements > 0) this.#buffers.set(name as Field, allocator.allocate(elements * 4, 'deviceWritten'));
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  get(name: Field): DeviceBuffer | undefined {
    return this.#buffers.get(name);
  }

  /** 0 when there is no such array. */
  address(name: Field): number {
    return this.#buffers.get(name)?.address ?? 0;
  }

  buffers(): Iterable<DeviceBuffer> {
    return this.#buffers.values();
  }

  dispose(): void {
    for (const buffer of this.#buffers.values()) this.#allocator.free(buffer);
    this.#buffers.clear();
  }

  #constant(name: Field, values: Int32Array | Float32Array | undefined): void {
    if (!values) return;
    const buffer = this.#allocator.allocate(values.byteLength, 'hostWritten');
    this.#buffers.set(name, buffer);
    this.#allocator.write(buffer, 0, new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
  }
}
