// Copies between tensors of one device, which never pass through the host.
import { isFloat } from '../base/dtype.js';
import { FlashAttnError, optionError, shapeError, show } from '../base/errors.js';
import { copy, fitsOneCopy } from '../kernels/copy.js';
import type { Backend } from '../kernels/device.js';
import type { Strided } from '../kernels/operand.js';
import { elementSpan, sameShape } from './shape.js';
import { checkWritable } from './writable.js';

/** Whether two arrays may have memory in common: they begin in one buffer and their spans meet. */
function overlap(a: Strided, b: Strided): boolean {
  if (a.buffer.address !== b.buffer.address) return false;
  const [spanA, spanB] = [elementSpan(a.shape, a.strides), elementSpan(b.shape, b.strides)];
  return spanA > 0 && spanB > 0 && a.offset < b.offset + spanB && b.offset < a.offset + spanA;
}

/** The array at one index of its first axis. */
const at = (array: Strided, index: number): Strided => ({
  ...array,
  offset: array.offset + index * array.strides[0],
  shape: array.shape.slice(1),
  strides: array.strides.slice(1),
});

function launch(backend: Backend, from: Strided, to: Strided, accumulate: boolean): void {
  if (fitsOneCopy(from, to)) {
    backend.launch(copy, { from, to, accumulate });
    return;
  }
  for (let index = 0; index < from.shape[0]; index++) launch(backend, at(from, index), at(to, index), accumulate);
}

/**
 * Queues to[i...] = from[i...], or to[i...] += from[i...], rounded to the dtype of `to`.
 *
 * @throws ERR_SHAPE, ERR_OPTION where the two have memory in common
 */
export function copyElements(backend: Backend, from: Strided, to: Strided, accumulate: boolean): void {
  if (!sameShape(from.shape, to.shape))
    throw shapeError(`target has shape ${show(to.shape)}; it must be ${show(from.shape)}, that of the tensor`);
  if (accumulate && !(isFloat(from.dtype) && isFloat(to.dtype)))
    throw new FlashAttnError(
      'ERR_DTYPE',
      `${from.dtype} cannot be added to ${to.dtype}: sums are of floating-point numbers`,
    );
  checkWritable(to, 'target');
  if (overlap(from, to)) throw optionError('target shares memory with the tensor; it must have its own');
  launch(backend, from, to, accumulate);
}
