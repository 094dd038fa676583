// Tensors taken apart and put together along an axis.
import { checkInteger } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { optionError, shapeError, show } from '../base/errors.js';
import { filled, inRows } from '../tape/arithmetic.js';
import { record } from '../tape/tape.js';
import { checkAxis } from '../tensor/shape.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { tidying } from '../tensor/track.js';
import { concat } from './concat.js';

/** Parts of lengths along an axis, as views; one record for all of them, whose gradients are put together in one pass. */
function parts<D extends FloatDType>(
  name: string,
  x: Tensor<D, Shape>,
  lengths: readonly number[],
  axis: number,
  shaped: (part: Tensor<D, Shape>) => Tensor<D, Shape>,
): Tensor<D, Shape>[] {
  const source = x.detach();
  let begin = 0;
  const views = lengths.map((n) => {
    begin += n;
    return shaped(source.slice(axis, begin - n, begin));
  });
  source.dispose();
  const { shape, dtype, backend } = x;
  record(name, [x], views, [], (gradients) => {
    const pieces = gradients.map((gradient, i) => {
      const own = shape.map((n, at) => (at === axis ? lengths[i] : n));
      return gradient ? inRows(gradient).reshape(own) : filled(backend, own, dtype as FloatDType, 0);
    });
    return [pieces.length === 1 ? pieces[0] : concat(pieces, axis)];
  });
  return views;
}

/**
 * Cuts a tensor along an axis, into views.
 *
 * @param lengths of the parts, or the length of each but perhaps the last, as in PyTorch
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DISPOSED
 */
export function split<D extends FloatDType>(
  x: Tensor<D, Shape>,
  lengths: number | readonly number[],
  axis = 0,
): Tensor<D, Shape>[] {
  checkTensor(x, 'x');
  const along = checkAxis(axis, x.shape);
  const n = x.shape[along];
  if (typeof lengths === 'number') {
    checkInteger(lengths, 'lengths', 1);
    const all = Array.from({ length: Math.max(1, Math.ceil(n / lengths)) }, (_, i) =>
      Math.min(lengths, n - i * lengths),
    );
    return parts('split', x, all, along, (part) => part);
  }
  if (!Array.isArray(lengths) || lengths.length === 0)
    throw optionError(`lengths is ${show(lengths)}; it must be a length or an array of lengths`);
  for (const [i, each] of lengths.entries()) checkInteger(each, `lengths[${i}]`, 0);
  if (lengths.reduce((total, each) => total + each, 0) !== n)
    throw shapeError(`lengths is ${show(lengths)}; they must add up to ${n}, axis ${along} of ${show(x.shape)}`);
  return parts('split', x, lengths, along, (part) => part);
}

/** The entries of an axis, as views without it. @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DISPOSED */
export function unbind<D extends FloatDType>(x: Tensor<D, Shape>, axis = 0): Tensor<D, Shape>[] {
  checkTensor(x, 'x');
  const along = checkAxis(axis, x.shape);
  const ones = new Array<number>(x.shape[along]).fill(1);
  return parts('unbind', x, ones, along, (part) => {
    const entry = part.select(along, 0);
    part.dispose();
    return entry;
  });
}

/** The same tensor with an axis of length 1 more, as a view: -1 puts it last. @throws ERR_SHAPE, ERR_DISPOSED */
export function unsqueeze<D extends FloatDType>(x: Tensor<D, Shape>, axis: number): Tensor<D, Shape> {
  checkTensor(x, 'x');
  const at = checkAxis(axis, [...x.shape, 1]);
  const front = x.expand([1, ...x.shape]);
  const order = x.shape.map((_, i) => i + 1);
  order.splice(at, 0, 0);
  const result = front.permute(order);
  front.dispose();
  return result;
}

/**
 * Tensors of one shape along a new axis.
 *
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function stack<D extends FloatDType>(tensors: readonly Tensor<D, Shape>[], axis = 0): Tensor<D, Shape> {
  if (!Array.isArray(tensors) || tensors.length === 0)
    throw optionError(`tensors is ${show(tensors)}; it must be an array of at least one tensor`);
  return tidying(
    () => {
      const raised = tensors.map((t: Tensor<D, Shape>) => unsqueeze<D>(t, axis));
      return concat<D>(raised, axis < 0 ? axis + raised[0].shape.length : axis);
    },
    (result) => [result],
  );
}

/**
 * A tensor with more elements around it.
 *
 * @param widths by axis how many before and after it
 * @param value of them; default 0
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function pad<D extends FloatDType>(
  x: Tensor<D, Shape>,
  widths: readonly (readonly [before: number, after: number])[],
  value = 0,
): Tensor<D, Shape> {
  checkTensor(x, 'x');
  if (!Array.isArray(widths) || widths.length !== x.shape.length)
    throw shapeError(`widths is ${show(widths)}; it must have a pair for each axis of ${show(x.shape)}`);
  for (const [axis, width] of widths.entries()) {
    if (!Array.isArray(width) || width.length !== 2)
      throw optionError(`widths[${axis}] is ${show(width)}; it must be how many before and how many after`);
    for (const [side, n] of width.entries()) checkInteger(n, `widths[${axis}][${side}]`, 0);
  }
  const { shape, backend, dtype } = x;
  const larger = shape.map((n, axis) => widths[axis][0] + n + widths[axis][1]);
  const within = (t: Tensor<D, Shape>): Tensor<D, Shape> => {
    let part = t.detach();
    for (const [axis, n] of shape.entries()) {
      const next = part.slice(axis, widths[axis][0], widths[axis][0] + n);
      part.dispose();
      part = next;
    }
    return part;
  };
  const padded = () => {
    const made = filled(backend, larger, dtype, value);
    x.copyInto(within(made));
    return made;
  };
  const result = tidying(padded, (made) => [made]);
  record('pad', [x], [result], [], ([gradient]) => [gradient && within(gradient as Tensor<D, Shape>)]);
  return result;
}
