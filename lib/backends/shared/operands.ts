// What the backends have in common on the way from a problem to the structs of their kernels.

import { bytesPerElement, type DType } from '../../base/dtype.js';
import type { BlockMask } from '../../blockmask/blockMask.js';
import type { AttentionProblem } from '../../kernels/attention.js';
import type {
  AttentionExtras,
  BackwardOperands,
  DeviceBuffer,
  Flat,
  ForwardOperands,
  StridedTerm,
} from '../../kernels/device.js';
import type { ScratchMemory, WidenedTensor } from './scratch.js';
import type { Uploaded } from './uploads.js';

/** `DType` of the kernels. */
export const dtypeCode: Readonly<Record<DType, number>> = { float32: 0, float16: 1, bfloat16: 2 };

/** 0 when there is no such array. */
export const addressOf = (
  array: { readonly buffer: DeviceBuffer; readonly offset: number; readonly dtype: DType } | undefined,
) => (array ? array.buffer.address + array.offset * bytesPerElement[array.dtype] : 0);

/** Rows of lse over all batches and heads. */
export const lseRows = (p: AttentionProblem) => (p.layout === 'varlen' ? 1 : p.batch) * p.heads * p.queryRows;

/** Whether launches write every row of the results; rows outside of all sequences are filled beforehand otherwise. */
export const coversAllRows = (p: AttentionProblem) => p.sequences === undefined;

/** The lse of a row that sees nothing. */
export const negativeInfinityBits = 0xff800000;

/** Of a bias; 0 where it broadcasts, or where there is none. */
export const biasStrides = ({ bias }: AttentionExtras): StridedTerm['strides'] => bias?.strides ?? [0, 0, 0, 0];

/** The order of `BlockMaskParams` of the kernels. */
export const blockMaskArrays = ({ full, partial, bits, transposed }: BlockMask) => [
  ...[full, partial, transposed.full, transposed.partial].flatMap(({ offsets, indices }) => [offsets, indices]),
  transposed.partialBlocks,
  bits,
];
export const blockMaskArrayCount = 10;

/** The tensors of a launch; those of the gradients only where it computes them. */
export type AttentionTensors = ForwardOperands &
  Partial<Pick<BackwardOperands, 'dOut' | 'dLse' | 'dQuery' | 'dKey' | 'dValue'>>;

/** Addresses of what options bring along, all float32 or int32; 0 where there is none. */
export interface OptionMemory {
  readonly sequences: number;
  readonly bias: number;
  readonly alibi: number;
  readonly relativeTable: number;
  readonly buckets: number;
  readonly queryPosition: number;
  readonly keyPosition: number;
  readonly sink: number;
  readonly blockMask: Uploaded | undefined;
  readonly dRelative: number;
  readonly dSink: number;
  readonly dBias: number;
}

type Convert = (from: Flat, to: Flat) => void;

/** Finds what the kernels read and write besides q, k, v and their like; widens what they read as float32. */
export function prepareOptions(
  operands: ForwardOperands | BackwardOperands,
  scratch: Pick<ScratchMemory, 'get' | 'address'>,
  blockMask: Uploaded | undefined,
  convert: Convert,
): OptionMemory {
  const widened = (name: WidenedTensor) => {
    const flat = operands[name];
    const buffer = scratch.get(name);
    if (!buffer || !flat) return addressOf(flat);
    convert(flat, { buffer, offset: 0, dtype: 'float32', count: flat.count });
    return buffer.address;
  };
  const gradients = 'dOut' in operands ? operands : undefined;
  return {
    sequences: scratch.address('sequences'),
    bias: widened('bias'),
    alibi: scratch.address('alibi') || addressOf(operands.alibi),
    relativeTable: widened('relativeTable'),
    buckets: scratch.address('buckets'),
    queryPosition: scratch.address('queryPosition'),
    keyPosition: scratch.address('keyPosition'),
    sink: widened('sink'),
    blockMask,
    dRelative: scratch.address('dRelative') || addressOf(gradients?.dRelativeTable),
    dSink: scratch.address('dSink') || addressOf(gradients?.dSink),
    dBias: scratch.address('dBias') || addressOf(gradients?.dBias),
  };
}

/** Rounds a float32 gradient to the caller's dtype, where the two differ. */
export function finishGradient(wide: DeviceBuffer | undefined, target: Flat | undefined, convert: Convert): void {
  if (wide && target) convert({ buffer: wide, offset: 0, dtype: 'float32', count: target.count }, target);
}
