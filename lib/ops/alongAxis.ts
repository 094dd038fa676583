// Operations along one axis of a tensor.
import { checkBoolean, checkInteger, checkOptions } from '../base/check.js';
import type { DType, FloatDType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';
import { addAlong, cumulativeSum, takeAlong } from '../kernels/lines.js';
import { record } from '../tape/tape.js';
import { checkAxis, elementCount } from '../tensor/shape.js';
import { type AnyTensor, allocating, checkIndices, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { checkWithin, type Indices, withContiguous } from './embedding.js';

/** Kernels count lines and their elements in 32 bits, and in steps of several. */
const most = 2 ** 31 - 2 ** 10;

/** How the lines along an axis lie in a contiguous tensor. */
export interface LinesOfAxis {
  readonly axis: number;
  readonly length: number;
  readonly lines: number;
  readonly inner: number;
}

/** An axis, counted from the end where it is negative, and its lines. @throws ERR_SHAPE */
export function linesAlong(t: AnyTensor, axis: unknown, argument: string): LinesOfAxis {
  const { shape } = t;
  const at = checkAxis(axis, shape);
  const length = shape[at];
  const inner = elementCount(shape.slice(at + 1));
  const lines = elementCount(shape.slice(0, at)) * inner;
  if (length > most || lines > most)
    throw shapeError(
      `${argument} has shape ${show(shape)}; at most 2^31 - 2^10 lines of as many elements can be handled`,
    );
  return { axis: at, length, lines, inner };
}

/** A shape with another length of one axis. */
export function withLength(shape: Shape, axis: number, length: number): number[] {
  const result = [...shape];
  result[axis] = length;
  return result;
}

function checkIndicesAlong(indices: unknown, shape: Shape, { axis, length }: LinesOfAxis): asserts indices is Indices {
  checkIndices(indices, 'indices');
  const { shape: own } = indices;
  if (own.length !== shape.length || own.some((n, at) => at !== axis && n !== shape[at]))
    throw shapeError(`indices has shape ${show(own)}; it must be ${show(shape)}, but for axis ${axis}`);
  if (own[axis] > most) throw shapeError(`indices has shape ${show(own)}; axis ${axis} may have at most 2^31 - 2^10`);
  const needed = length === 0 ? 'of an axis that is not empty' : `a place on axis ${axis}, from 0 to ${length - 1}`;
  checkWithin(indices, 'indices', length, needed);
}

/**
 * One element for each index along an axis, as PyTorch's `take_along_dim`: for the last axis
 * out[..., i] = x[..., indices[..., i]].
 *
 * An index that is no place is refused where the host has written the indices; where an operation has made them, its element
 * is NaN.
 *
 * @param indices int32, of the shape of x but for the axis
 * @param axis from the end where it is negative. Default -1
 * @returns of the shape of the indices and the dtype of x
 * @throws ERR_OPTION, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function takeAlongAxis<D extends FloatDType>(
  x: Tensor<D, Shape>,
  indices: Indices,
  axis = -1,
): Tensor<D, Shape> {
  checkTensor(x, 'x');
  const along = linesAlong(x, axis, 'x');
  checkIndices(indices, 'indices');
  const { backend } = x;
  x.operand('x', backend);
  indices.operand('indices', backend);
  checkIndicesAlong(indices, x.shape, along);
  return withContiguous(x, x.isContiguous, (data) =>
    withContiguous(indices, indices.isContiguous, (places) =>
      allocating(backend, (allocate) => {
        const result = allocate(indices.shape, x.dtype);
        backend.launch(takeAlong, {
          ...along,
          data: data.flat('x', backend),
          others: result.flat('the result', backend),
          indices: places.flat('indices', backend),
          count: indices.shape[along.axis],
        });
        record('takeAlongAxis', [x], [result], [indices], ([gradient], [kept]) => [
          gradient && takeAlongAxisBackward(gradient, kept as Indices, along.axis, along.length),
        ]);
        return result as Tensor<D, Shape>;
      }),
    ),
  );
}

/**
 * The adjoint of `takeAlongAxis`: for the last axis dX[..., j] = the sum of dOut[..., i] over all i with indices[..., i] = j,
 * in the order of i. What belongs to an index that is no place is left out.
 *
 * @internal
 * @param length of the axis of x
 * @returns of the shape of x and the dtype of dOut
 * @throws ERR_OPTION, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function takeAlongAxisBackward<D extends FloatDType>(
  dOut: Tensor<D, Shape>,
  indices: Indices,
  axis: number,
  length: number,
): Tensor<D, Shape> {
  checkTensor(dOut, 'dOut');
  const along = linesAlong(dOut, axis, 'dOut');
  checkInteger(length, 'length', 0, most);
  checkIndices(indices, 'indices');
  const { backend } = dOut;
  dOut.operand('dOut', backend);
  indices.operand('indices', backend);
  const count = along.length;
  const shape = withLength(dOut.shape, along.axis, length);
  checkIndicesAlong(indices, shape, { ...along, length });
  if (indices.shape[along.axis] !== count)
    throw shapeError(`indices has shape ${show(indices.shape)}; it must be ${show(dOut.shape)}, that of dOut`);
  return withContiguous(dOut, dOut.isContiguous, (others) =>
    withContiguous(indices, indices.isContiguous, (places) =>
      allocating(backend, (allocate) => {
        const result = allocate(shape, dOut.dtype);
        backend.launch(addAlong, {
          ...along,
          data: result.flat('the result', backend),
          others: others.flat('dOut', backend),
          indices: places.flat('indices', backend),
          length,
          count,
        });
        return result as Tensor<D, Shape>;
      }),
    ),
  );
}

export interface CumsumOptions {
  /** Sums from the end on: out[i] = x[i] + x[i + 1] + ... Default false. */
  readonly reverse?: boolean;
}

/**
 * Sums along an axis up to each element: out[i] = x[0] + ... + x[i], added up in float64. The gradient is the same of dOut with
 * `reverse` turned over.
 *
 * @param axis from the end where it is negative. Default -1
 * @returns of the shape and dtype of x
 * @throws ERR_OPTION, ERR_SHAPE, ERR_DTYPE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function cumsum<D extends FloatDType, const S extends Shape>(
  x: Tensor<D, S>,
  axis = -1,
  options: CumsumOptions = {},
): Tensor<D, S> {
  checkTensor(x, 'x');
  const source: Tensor<DType & FloatDType, Shape> = x;
  const along = linesAlong(source, axis, 'x');
  checkOptions(options, ['reverse']);
  const { reverse = false } = options;
  checkBoolean(reverse, 'reverse');
  const { backend } = source;
  source.operand('x', backend);
  return withContiguous(source, source.isContiguous, (data) =>
    allocating(backend, (allocate) => {
      const result = allocate(source.shape, source.dtype);
      backend.launch(cumulativeSum, {
        ...along,
        data: data.flat('x', backend),
        others: result.flat('the result', backend),
        count: along.length,
        reversed: reverse,
      });
      record('cumsum', [source], [result], [], ([gradient]) => [
        gradient && cumsum(gradient, along.axis, { reverse: !reverse }),
      ]);
      return result as unknown as Tensor<D, S>;
    }),
  );
}
