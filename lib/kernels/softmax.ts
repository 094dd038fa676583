import { addressOf, type Strided } from './operand.js';
import { operation } from './operation.js';
import { struct } from './struct.js';

const mostOuter = 3;
const strides = { of: 'int64', count: mostOuter + 1 } as const;

const params = struct('SoftmaxParams', {
  x: 'address',
  dOut: 'address',
  result: 'address',
  outer: { of: 'int64', count: mostOuter },
  length: 'int64',
  xStrides: strides,
  dOutStrides: strides,
  resultStrides: strides,
  dtype: 'dtype',
  log: 'int32',
});

export interface SoftmaxOperands {
  readonly x: Strided;
  /** Of the same shape and dtype. */
  readonly result: Strided;
  /** Along which softmax is taken. */
  readonly axis: number;
  /** Whether the result is the logarithm of softmax. */
  readonly log: boolean;
}

export interface SoftmaxBackwardOperands extends Omit<SoftmaxOperands, 'x'> {
  /** What forward has returned. */
  readonly out: Strided;
  readonly dOut: Strided;
}

/** An outer axis: its length, and its stride in each of the arrays. */
interface OuterAxis {
  readonly size: number;
  readonly strides: readonly number[];
}

/** The axes other than `axis`, as few as possible: neighbours that lie behind one another in all arrays become one. */
function outerAxes(arrays: readonly Strided[], axis: number): OuterAxis[] {
  const [{ shape }] = arrays as [Strided];
  const axes: OuterAxis[] = [];
  for (let at = 0; at < shape.length; at++) {
    const size = shape[at];
    if (at === axis || size === 1) continue;
    const own = new Array<number>(arrays.length);
    for (let array = 0; array < arrays.length; array++) own[array] = arrays[array].strides[at];
    const last = axes[axes.length - 1];
    let joins = last !== undefined;
    for (let array = 0; joins && array < own.length; array++) joins = last.strides[array] === size * own[array];
    if (joins) axes[axes.length - 1] = { size: last.size * size, strides: own };
    else axes.push({ size, strides: own });
  }
  return axes;
}

/** Whether one launch can walk over the rows of these arrays of one shape. */
export const fitsSoftmax = (arrays: readonly Strided[], axis: number): boolean =>
  outerAxes(arrays, axis).length <= mostOuter;

const work = 16;

function describe(x: Strided, dOut: Strided | undefined, { result, axis, log }: Omit<SoftmaxOperands, 'x'>) {
  const arrays = dOut ? [x, result, dOut] : [x, result];
  const axes = outerAxes(arrays, axis);
  const length = x.shape[axis];
  const outer = [1, 1, 1];
  const all = [
    [0, 0, 0, 0],
    [0, 0, 0, 0],
    [0, 0, 0, 0],
  ] as [number[], number[], number[]];
  for (let array = 0; array < arrays.length; array++) all[array][mostOuter] = arrays[array].strides[axis];
  let count = length;
  for (let at = 0; at < axes.length; at++) {
    const to = mostOuter - axes.length + at;
    outer[to] = axes[at].size;
    count *= axes[at].size;
    for (let array = 0; array < arrays.length; array++) all[array][to] = axes[at].strides[array];
  }
  if (count === 0) return undefined;
  return {
    params: {
      x: addressOf(x),
      dOut: addressOf(dOut),
      result: addressOf(result),
      outer,
      length,
      xStrides: all[0],
      dOutStrides: all[2],
      resultStrides: all[1],
      dtype: x.dtype,
      log: log ? 1 : 0,
    },
    reads: dOut ? [x.buffer, dOut.buffer] : [x.buffer],
    writes: [result.buffer],
    work: work * count,
  };
}

/** result = e^x / (the sum of e^x along the axis), or its logarithm. */
export const softmax = operation('softmax', params, (operands: SoftmaxOperands) =>
  describe(operands.x, undefined, operands),
);

/** result = out (dOut - sum(dOut out)); of the logarithm dOut - e^out sum(dOut). */
export const softmaxBackward = operation('softmaxBackward', params, (operands: SoftmaxBackwardOperands) =>
  describe(operands.out, operands.dOut, operands),
);
