import type { DeviceBuffer } from './memory.js';
import { addressOf, type Flat, type Strided } from './operand.js';
import { elementWork, operation } from './operation.js';
import { struct } from './struct.js';

// Those of native/structs/reduce.h.
const mostDims = 3;
const splitElements = 4096;

/** 'magnitude': the sum of |x|. */
const reductions = { sum: 0, maximum: 1, minimum: 2, magnitude: 3 } as const;
export type Reduction = keyof typeof reductions;

export interface ReduceOperands {
  readonly from: Strided;
  /** By axis of `from` whether it is summed over. */
  readonly reduced: readonly boolean[];
  /** Contiguous, the kept axes in their order. */
  readonly to: Flat;
  readonly reduction: Reduction;
  /** Multiplies sums. Default 1. */
  readonly scale?: number;
  /** Float32, as many as `partialElements`; undefined for none. */
  readonly partial?: DeviceBuffer | undefined;
}

interface Axes {
  readonly sizes: number[];
  readonly strides: number[];
}

/** The kept axes or the reduced ones, as few as possible. */
function axesOf({ shape, strides }: Strided, reduced: readonly boolean[], which: boolean): Axes {
  const axes: Axes = { sizes: [], strides: [] };
  for (let axis = 0; axis < shape.length; axis++) {
    if (reduced[axis] !== which || shape[axis] === 1) continue;
    const last = axes.sizes.length - 1;
    if (last >= 0 && axes.strides[last] === shape[axis] * strides[axis]) {
      axes.sizes[last] *= shape[axis];
      axes.strides[last] = strides[axis];
    } else {
      axes.sizes.push(shape[axis]);
      axes.strides.push(strides[axis]);
    }
  }
  return axes;
}

const product = (sizes: readonly number[]) => sizes.reduce((x, n) => x * n, 1);

/** Whether one launch can walk the array. */
export const fitsOneReduction = (from: Strided, reduced: readonly boolean[]): boolean =>
  axesOf(from, reduced, false).sizes.length <= mostDims && axesOf(from, reduced, true).sizes.length <= mostDims;

/** Floats of scratch memory: a partial sum of every split of long sums. */
export function partialElements(shape: readonly number[], reduced: readonly boolean[]): number {
  const length = product(shape.filter((_, axis) => reduced[axis]));
  const splits = Math.ceil(length / splitElements);
  return splits > 1 ? splits * product(shape.filter((_, axis) => !reduced[axis])) : 0;
}

const dims = { of: 'int64', count: mostDims } as const;

const params = struct('ReduceParams', {
  from: 'address',
  to: 'address',
  partial: 'address',
  kept: dims,
  keptStrides: dims,
  reduced: dims,
  reducedStrides: dims,
  fromDtype: 'dtype',
  toDtype: 'dtype',
  reduction: 'int32',
  scale: 'float32',
});

const padded = (values: readonly number[], padding: number) => [
  ...new Array<number>(mostDims - values.length).fill(padding),
  ...values,
];

/** to[kept...] = scale * the sum of from[kept..., reduced...], or its largest or smallest element. */
export const reduce = operation('reduce', params, (operands: ReduceOperands) => {
  const { from, reduced, to, reduction, scale = 1, partial } = operands;
  if (to.count === 0) return undefined;
  const kept = axesOf(from, reduced, false);
  const gone = axesOf(from, reduced, true);
  const isEmpty = product(from.shape) === 0;
  return {
    params: {
      from: addressOf(from),
      to: addressOf(to),
      partial: partial?.address ?? 0,
      kept: padded(kept.sizes, 1),
      keptStrides: padded(kept.strides, 0),
      reduced: padded(isEmpty ? [0] : gone.sizes, 1),
      reducedStrides: padded(isEmpty ? [0] : gone.strides, 0),
      fromDtype: from.dtype,
      toDtype: to.dtype,
      reduction: reductions[reduction],
      scale,
    },
    reads: [from.buffer],
    writes: partial ? [to.buffer, partial] : [to.buffer],
    work: elementWork * product(from.shape),
  };
});
