// Copies between tensors of one device, which never pass through the host.
import { optionError, shapeError, show } from '../base/errors.js';
import { copy, fitsOneCopy } from '../kernels/copy.js';
import type { Backend } from '../kernels/device.js';
import type { Strided } from '../kernels/operand.js';
import { elementSpan } from './shape.js';

/** Whether two arrays may have memory in common: they begin in one buffer and their spans meet. */
function overlap(a: Strided, b: Strided): boolean {
  if (a.buffer.address !== b.buffer.address) return false;
  const [spanA, spanB] = [elementSpan(a.shape, a.strides), elementSpan(b.shape, b.strides)];
  return spanA > 0 && spanB > 0 && a.offset < b.offset + spanB && b.offset < a.offset + spanA;
}

/** Whether some place of memory belongs to several elements. */
const repeats = ({ shape, strides }: Strided) => shape.some((n, axis) => n > 1 && strides[axis] === 0);

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
  if (from.shape.length !== to.shape.length || from.shape.some((n, axis) => n !== to.shape[axis]))
    throw shapeError(`target has shape ${show(to.shape)}; it must be ${show(from.shape)}, that of the tensor`);
  if (repeats(to)) throw shapeError(`target has strides ${show(to.strides)}: several elements lie at one place`);
  if (overlap(from, to)) throw optionError('target shares memory with the tensor; it must have its own');
  launch(backend, from, to, accumulate);
}
