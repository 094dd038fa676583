import { type AttentionProblem, unbounded } from '../../attention/problem.js';
import type { DType } from '../../base/dtype.js';
import type { BlockMask } from '../../blockmask/blockMask.js';
import type { View } from '../../kernels/device.js';
import {
  type AttentionTensors,
  addressOf,
  biasStrides,
  blockMaskArrayCount,
  dtypeCode,
  lseRows,
  type OptionMemory,
} from '../shared/operands.js';
import type { Uploaded } from '../shared/uploads.js';

/** Writes a C struct of 32-bit fields into memory, field by field. */
export class StructWriter {
  #at: number;
  readonly #words: Uint32Array;
  readonly #floats: Float32Array;

  constructor(memory: ArrayBufferLike, address: number) {
    this.#words = new Uint32Array(memory);
    this.#floats = new Float32Array(memory);
    this.#at = address / 4;
  }

  /** The address of the next field. */
  get address(): number {
    return this.#at * 4;
  }

  int(...values: number[]): this {
    for (const value of values) this.#words[this.#at++] = value;
    return this;
  }

  float(...values: number[]): this {
    for (const value of values) this.#floats[this.#at++] = value;
    return this;
  }

  /** `TensorRef` of native/cpu/params.h. */
  tensor(view: View | undefined): this {
    if (!view) return this.int(0, 0, 0, 0, 0);
    return this.int(addressOf(view), dtypeCode[view.dtype], view.batchStride, view.seqStride, view.headStride);
  }

  dtype(dtype: DType): this {
    return this.int(dtypeCode[dtype]);
  }
}

/** Addresses of what a launch needs besides the tensors of the caller; 0 where there is none. */
export interface AttentionMemory extends OptionMemory {
  readonly decodeStates: number;
  readonly rowTerms: number;
  readonly dQueryPartial: number;
  readonly dRelativePartial: number;
}

/** `BlockMaskParams` of native/cpu/params.h. */
function writeBlockMask(w: StructWriter, mask: BlockMask | undefined, memory: Uploaded | undefined): void {
  if (!mask || !memory) {
    w.int(...new Array<number>(blockMaskArrayCount + 5).fill(0));
    return;
  }
  w.int(...memory.addresses);
  w.int(mask.blockSize, mask.batch, mask.heads, mask.rows, mask.columns);
}

/** `AttentionParams` of native/cpu/params.h, field by field. */
export function writeAttentionParams(
  w: StructWriter,
  problem: AttentionProblem,
  tensors: AttentionTensors,
  memory: AttentionMemory,
  split: { tilesPerItem: number; keySplits: number },
): void {
  const p = problem;
  w.tensor(tensors.query).tensor(tensors.key).tensor(tensors.value).tensor(tensors.out);
  w.int(addressOf(tensors.lse), p.layout === 'varlen' ? 0 : p.heads * p.queryRows, p.queryRows);
  w.int(p.batch, p.heads, p.kvHeads, p.headDim, p.valueDim, p.queryLength, p.keyLength);
  w.int(memory.sequences).float(p.scale, p.softcap);
  w.int(Math.min(p.windowLeft, unbounded), Math.min(p.windowRight, unbounded), p.topLeft ? 1 : 0, split.tilesPerItem);
  w.int(memory.bias, ...biasStrides(p.biasShape));
  w.int(memory.alibi, p.alibi?.batched ? p.heads : 0);
  w.int(memory.relativeTable, memory.buckets, memory.queryPosition, memory.keyPosition);
  w.int(p.relative?.origin ?? 0, p.relative?.bucketCount ?? 0);
  w.int(memory.sink);
  w.int(p.dropout?.threshold ?? 0).float(p.dropout?.keepScale ?? 1);
  w.int(p.dropout?.seedLow ?? 0, p.dropout?.seedHigh ?? 0);
  writeBlockMask(w, p.blockMask, memory.blockMask);
  w.int(memory.decodeStates, lseRows(p));

  w.tensor(tensors.dOut).tensor(tensors.dQuery).tensor(tensors.dKey).tensor(tensors.dValue);
  w.int(addressOf(tensors.dLse), memory.rowTerms, memory.dQueryPartial);
  w.int(split.keySplits, memory.dRelativePartial, memory.dRelative, memory.dSink, memory.dBias);
  w.int(...(p.biasShape ?? [1, 1, 1, 1]));
}
