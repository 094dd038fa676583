import type { DeviceBuffer } from './memory.js';
import { addressOf, type Operand } from './operand.js';
import { elementWork, operation } from './operation.js';
import { struct } from './struct.js';

/**
 * A line is all elements that differ in their place on one axis alone: of a contiguous [rows, length, inner] those of one row
 * and one inner place.
 */
export interface LinesOperands {
  /** Contiguous [rows, length, inner]. */
  readonly data: Operand;
  /** Contiguous [rows, count, inner]. */
  readonly others?: Operand | undefined;
  /** Contiguous [rows, count, inner] of int32: places on lines. */
  readonly indices?: Operand | undefined;
  /** rows * inner */
  readonly lines: number;
  readonly length: number;
  readonly count: number;
  readonly inner: number;
  /** Of a sort: the largest first. Of a sum: from the end on. */
  readonly reversed?: boolean;
}

const params = struct('LinesParams', {
  data: 'address',
  others: 'address',
  indices: 'address',
  keys: 'address',
  dtype: 'dtype',
  othersDtype: 'dtype',
  first: 'int32',
  lines: 'int32',
  length: 'int32',
  count: 'int32',
  inner: 'int32',
  reversed: 'int32',
});

const paramsOf = ({ data, others, indices, lines, length, count, inner, reversed }: LinesOperands) => ({
  data: addressOf(data),
  others: addressOf(others),
  indices: addressOf(indices),
  keys: 0,
  dtype: data.dtype,
  othersDtype: others?.dtype,
  first: 0,
  lines,
  length,
  count,
  inner,
  reversed: reversed ? 1 : 0,
});

const buffersOf = (...operands: readonly (Operand | undefined)[]): DeviceBuffer[] =>
  operands.flatMap((operand) => (operand ? [operand.buffer] : []));

/** indices = the place of the first largest element of each line, of the first NaN where there is one; count is 1. */
export const argmax = operation('argmax', params, (operands: LinesOperands) => {
  const { data, indices, lines, length } = operands;
  if (lines === 0) return undefined;
  const work = elementWork * lines * length;
  return { params: paramsOf(operands), reads: [data.buffer], writes: buffersOf(indices), work };
});

/** Scratch memory of a sort, and for which lines. */
export interface SortOperands extends LinesOperands {
  readonly keys: DeviceBuffer;
  readonly first: number;
  /** As many as `keys` has room for at most. */
  readonly lines: number;
}

export const sortBytesPerLine = (length: number): number => 16 * length;
/** In floating-point operations. */
const workOfSorted = 64;

/** others, indices = the first `count` elements of each line in order and where they were; NaN is the largest. */
export const sort = operation('sort', params, (operands: SortOperands) => {
  const { data, others, indices, keys, first, lines, length, count } = operands;
  if (lines === 0 || count === 0) return undefined;
  return {
    params: { ...paramsOf(operands), keys: keys.address, first },
    reads: [data.buffer],
    writes: [...buffersOf(others, indices), keys],
    work: workOfSorted * lines * length,
  };
});

/** others[r, i, c] = data[r, indices[r, i, c], c]; NaN where that is no place of a line. */
export const takeAlong = operation('takeAlong', params, (operands: LinesOperands) => {
  const { data, others, indices, lines, count } = operands;
  if (lines === 0 || count === 0) return undefined;
  const work = elementWork * lines * count;
  return { params: paramsOf(operands), reads: buffersOf(data, indices), writes: buffersOf(others), work };
});

/** data[r, j, c] = the sum of others[r, i, c] over all i with indices[r, i, c] = j. */
export const addAlong = operation('addAlong', params, (operands: LinesOperands) => {
  const { data, others, indices, lines, length, count } = operands;
  if (lines === 0 || length === 0) return undefined;
  const work = elementWork * lines * (length + count);
  return { params: paramsOf(operands), reads: buffersOf(others, indices), writes: [data.buffer], work };
});

/** others[r, i, c] = the sum of data[r, j, c] over j <= i; reversed: over j >= i. */
export const cumulativeSum = operation('cumulativeSum', params, (operands: LinesOperands) => {
  const { data, others, lines, length } = operands;
  if (lines === 0 || length === 0) return undefined;
  const work = elementWork * lines * length;
  return { params: paramsOf(operands), reads: [data.buffer], writes: buffersOf(others), work };
});
