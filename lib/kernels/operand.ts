// Tensors as kernels see them.
import { bytesPerElement, type DType } from '../base/dtype.js';
import type { DeviceBuffer } from './memory.js';
import { struct, type ValuesOf } from './struct.js';

/** Elements somewhere in memory. */
export interface Operand {
  readonly buffer: DeviceBuffer;
  /** In elements. */
  readonly offset: number;
  readonly dtype: DType;
}

/** [batch, seq, heads, dim] with element strides and a contiguous last dim. */
export interface View extends Operand {
  readonly batchStride: number;
  readonly seqStride: number;
  readonly headStride: number;
}

/** A contiguous array of `count` elements. */
export interface Flat extends Operand {
  readonly count: number;
}

/** Any strided array. */
export interface Strided extends Operand {
  readonly shape: readonly number[];
  /** In elements; 0 where the array broadcasts. */
  readonly strides: readonly number[];
}

/** 0 when there is no such array. */
export const addressOf = (operand: Operand | undefined): number =>
  operand ? operand.buffer.address + operand.offset * bytesPerElement[operand.dtype] : 0;

export const tensorRef = struct('TensorRef', {
  data: 'address',
  batch: 'int64',
  seq: 'int64',
  head: 'int64',
  dtype: 'dtype',
  reserved: 'int32',
});

export const blockLists = struct('BlockLists', { offsets: 'address', indices: 'address' });

type TensorRefValues = ValuesOf<{ data: 'address'; batch: 'int64'; seq: 'int64'; head: 'int64'; dtype: 'dtype' }>;

export const refOf = (view: View | undefined): TensorRefValues | undefined =>
  view && {
    data: addressOf(view),
    batch: view.batchStride,
    seq: view.seqStride,
    head: view.headStride,
    dtype: view.dtype,
  };
