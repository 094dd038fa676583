import { bytesPerElement, type DType } from '../../base/dtype.js';
import type { BlockMask } from '../../blockmask/blockMask.js';
import { type AttentionProblem, unbounded } from '../../kernels/attention.js';
import type {
  Flat,
  GatherOperands,
  MergeBackwardOperands,
  MergeOperands,
  MergePart,
  MergeShape,
  View,
} from '../../kernels/device.js';
import type { RowLists } from '../../kernels/gather.js';
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

/** Bytes of the structs of cuda/params.h. */
export const structSizes = {
  AttentionParams: 664,
  MergePart: 88,
  MergeParams: 112,
  GatherParams: 72,
  ConvertParams: 32,
  FillParams: 24,
} as const;

const high = 2 ** 32;

/** Writes a C struct of 32- and 64-bit fields, field by field. */
export class StructWriter {
  #at = 0;
  readonly buffer: ArrayBuffer;
  readonly #words: Uint32Array;
  readonly #floats: Float32Array;

  constructor(byteLength: number) {
    this.buffer = new ArrayBuffer(byteLength);
    this.#words = new Uint32Array(this.buffer);
    this.#floats = new Float32Array(this.buffer);
  }

  /** Starts over, with zeros where nothing will be written. */
  restart(): this {
    this.#words.fill(0);
    this.#at = 0;
    return this;
  }

  int(...values: number[]): this {
    for (const value of values) this.#words[this.#at++] = value;
    return this;
  }

  float(...values: number[]): this {
    for (const value of values) this.#floats[this.#at++] = value;
    return this;
  }

  /** Addresses, counts and strides, 64-bit: whole numbers below 2^53. */
  long(...values: number[]): this {
    for (const value of values) {
      this.#words[this.#at++] = value % high;
      this.#words[this.#at++] = value / high;
    }
    return this;
  }

  /** `TensorRef` */
  tensor(view: View | undefined): this {
    if (!view) return this.long(0, 0, 0, 0);
    return this.long(addressOf(view), view.batchStride, view.seqStride, view.headStride);
  }

  dtype(dtype: DType): this {
    return this.int(dtypeCode[dtype]);
  }
}

/** Addresses of what a launch needs besides the tensors of the caller; 0 where there is none. */
export interface AttentionMemory extends OptionMemory {
  readonly delta: number;
  readonly dQuerySum: number;
  readonly turns: number;
  readonly dRelativePartial: number;
}

const reserved = 0;

/** `BlockMaskParams` */
function writeBlockMask(w: StructWriter, mask: BlockMask | undefined, memory: Uploaded | undefined): void {
  w.long(...(memory?.addresses ?? new Array<number>(blockMaskArrayCount).fill(0)));
  if (mask) w.int(mask.blockSize, mask.batch, mask.heads, mask.rows, mask.columns, reserved);
  else w.int(0, 0, 0, 0, 0, reserved);
}

/** `AttentionParams` */
export function writeAttentionParams(
  w: StructWriter,
  p: AttentionProblem,
  tensors: AttentionTensors,
  memory: AttentionMemory,
  relativeSlices: number,
): void {
  w.tensor(tensors.query).tensor(tensors.key).tensor(tensors.value).tensor(tensors.out);
  w.long(addressOf(tensors.lse), p.layout === 'varlen' ? 0 : p.heads * p.queryRows, p.queryRows);
  w.long(memory.sequences);
  w.long(memory.bias, ...biasStrides(tensors));
  w.long(memory.alibi, p.alibi?.batched ? p.heads : 0);
  w.long(memory.relativeTable, memory.buckets, memory.queryPosition, memory.keyPosition);
  w.int(p.relative?.origin ?? 0, p.relative?.bucketCount ?? 0);
  w.long(memory.sink);
  writeBlockMask(w, p.blockMask, memory.blockMask);
  w.int(p.dropout?.threshold ?? 0).float(p.dropout?.keepScale ?? 1);
  w.int(p.dropout?.seedLow ?? 0, p.dropout?.seedHigh ?? 0);
  w.dtype(p.dtype);
  w.int(p.batch, p.heads, p.kvHeads, p.headDim, p.valueDim, p.queryLength, p.keyLength);
  w.float(p.scale, p.softcap);
  w.int(Math.min(p.windowLeft, unbounded), Math.min(p.windowRight, unbounded));
  w.int(p.topLeft ? 1 : 0, p.offset, p.deterministic ? 1 : 0, relativeSlices);

  w.tensor(tensors.dOut).tensor(tensors.dQuery).tensor(tensors.dKey).tensor(tensors.dValue);
  w.long(addressOf(tensors.dLse), memory.delta, memory.dQuerySum, memory.turns, memory.dRelativePartial);
  w.long(memory.dRelative, memory.dSink, memory.dBias);
  w.long(lseRows(p));
  w.int(...(p.biasShape ?? [1, 1, 1, 1]));
}

/** `MergePart` */
export function writeMergePart(w: StructWriter, part: MergePart, gradient: MergePart | undefined): void {
  w.tensor(part.out).tensor(gradient?.out).long(addressOf(part.lse), addressOf(gradient?.lse));
  w.dtype(part.out.dtype).int(reserved);
}

/** `MergeParams`; `parts` is where the array of `MergePart` lies. */
export function writeMergeParams(
  w: StructWriter,
  shape: MergeShape,
  operands: MergeOperands | MergeBackwardOperands,
  parts: number,
): void {
  const { out, lse } = operands;
  const backward = 'dOut' in operands ? operands : undefined;
  w.long(parts).tensor(out).tensor(backward?.dOut);
  w.long(addressOf(lse), addressOf(backward?.dLse));
  w.dtype(out.dtype).int(operands.parts.length, shape.batch, shape.heads, shape.queryLength, shape.valueDim);
}

/** `GatherParams` */
export function writeGatherParams(w: StructWriter, map: RowLists, operands: GatherOperands, lists: Uploaded): void {
  const { source, result, batch, rowElements, scale } = operands;
  w.long(addressOf(source), addressOf(result), source.batchStride, source.rowStride, ...lists.addresses);
  w.dtype(source.dtype).int(batch, map.rows, rowElements).float(scale).int(reserved);
}

/** `ConvertParams` */
export function writeConvertParams(w: StructWriter, from: Flat, to: Flat): void {
  w.long(addressOf(from), addressOf(to), from.count).dtype(from.dtype).dtype(to.dtype);
}

/** `FillParams` */
export function writeFillParams(w: StructWriter, address: number, byteLength: number, bits: number): void {
  w.long(address, Math.ceil(byteLength / bytesPerElement.float32)).int(bits, reserved);
}
