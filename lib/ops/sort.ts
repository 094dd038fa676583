import { checkBoolean, checkInteger, checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';
import { argmax as argmaxOperation, sortBytesPerLine, sort as sortOperation } from '../kernels/lines.js';
import { record } from '../tape/tape.js';
import { allocating, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { type LinesOfAxis, linesAlong, takeAlongAxisBackward, withLength } from './alongAxis.js';
import { type Indices, withContiguous } from './embedding.js';

/** Of a longer line the places do not fit what is sorted on a GPU. */
const longestLine = 2 ** 30;
/** Scratch memory of one launch. */
const mostScratch = 2 ** 27;

export interface Sorted<D extends FloatDType> {
  readonly values: Tensor<D, Shape>;
  /** int32: where each value was on the axis. */
  readonly indices: Indices;
}

/**
 * Where the largest element along an axis is: of several the first. NaN is larger than everything.
 *
 * @param axis from the end where it is negative. Default -1
 * @returns int32, the shape of x without the axis
 * @throws ERR_SHAPE, also where the axis is empty, ERR_OPTION, ERR_DTYPE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function argmax(x: Tensor<FloatDType, Shape>, axis = -1): Indices {
  checkTensor(x, 'x');
  const along = linesAlong(x, axis, 'x');
  if (along.length === 0 && along.lines > 0)
    throw shapeError(`x has shape ${show(x.shape)}; nothing is the largest along axis ${along.axis}, which is empty`);
  const { backend } = x;
  x.operand('x', backend);
  return withContiguous(x, x.isContiguous, (data) =>
    allocating(backend, (allocate) => {
      const indices = allocate(
        x.shape.filter((_, at) => at !== along.axis),
        'int32',
      );
      backend.launch(argmaxOperation, {
        ...along,
        data: data.flat('x', backend),
        indices: indices.flat('the result', backend),
        count: 1,
      });
      return indices;
    }),
  );
}

/** The first `count` elements of each line in order. */
function sortLines<D extends FloatDType>(
  x: Tensor<D, Shape>,
  along: LinesOfAxis,
  count: number,
  descending: boolean,
): Sorted<D> {
  const { backend } = x;
  const { axis, length, lines } = along;
  if (length > longestLine)
    throw shapeError(`x has shape ${show(x.shape)}; axis ${axis} may have at most 2^30 elements`);
  x.operand('x', backend);
  return withContiguous(x, x.isContiguous, (data) =>
    allocating(backend, (allocate) => {
      const shape = withLength(x.shape, axis, count);
      const values = allocate(shape, x.dtype) as Tensor<D, Shape>;
      const indices = allocate(shape, 'int32');
      const bytes = sortBytesPerLine(length);
      const atOnce = Math.max(1, Math.min(lines, Math.floor(mostScratch / Math.max(1, bytes))));
      const keys = backend.allocate(atOnce * bytes, 'deviceWritten');
      try {
        for (let first = 0; first < lines; first += atOnce)
          backend.launch(sortOperation, {
            ...along,
            data: data.flat('x', backend),
            others: values.flat('values', backend),
            indices: indices.flat('indices', backend),
            keys,
            first,
            lines: Math.min(atOnce, lines - first),
            count,
            reversed: descending,
          });
      } finally {
        backend.free(keys);
      }
      record('sort', [x], [values], [indices], ([gradient], [kept]) => [
        gradient && takeAlongAxisBackward(gradient, kept as Indices, axis, length),
      ]);
      return { values, indices };
    }),
  );
}

/**
 * The k largest elements along an axis, the largest first, and where they were; of equal ones the first. NaN is larger than
 * everything, as in PyTorch. The gradient goes through the indices: see `takeAlongAxis`.
 *
 * @param k from 0 to the length of the axis
 * @param axis from the end where it is negative. Default -1
 * @returns of the shape of x with k along the axis; values are of its dtype
 * @throws ERR_OPTION, ERR_SHAPE, ERR_DTYPE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function topK<D extends FloatDType>(x: Tensor<D, Shape>, k: number, axis = -1): Sorted<D> {
  checkTensor(x, 'x');
  const along = linesAlong(x, axis, 'x');
  checkInteger(k, 'k', 0, along.length);
  return sortLines(x, along, k, true);
}

export interface SortOptions {
  /** The largest first. Default false. */
  readonly descending?: boolean;
}

/**
 * The elements along an axis in order, and where they were. Stable: equal ones, and so are 0 and -0, stay in order. NaN is
 * larger than everything, as in PyTorch.
 *
 * @param axis from the end where it is negative. Default -1
 * @returns of the shape of x; values are of its dtype
 * @throws ERR_OPTION, ERR_SHAPE, ERR_DTYPE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function sort<D extends FloatDType>(x: Tensor<D, Shape>, axis = -1, options: SortOptions = {}): Sorted<D> {
  checkTensor(x, 'x');
  const along = linesAlong(x, axis, 'x');
  checkOptions(options, ['descending']);
  const { descending = false } = options;
  checkBoolean(descending, 'descending');
  return sortLines(x, along, along.length, descending);
}
