// Windows along an axis, as a view in which those that overlap share elements.
import { checkInteger } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';
import { filled, reduceAxes } from '../tape/arithmetic.js';
import { checkAxis } from '../tensor/shape.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { tidying } from '../tensor/track.js';

const without = <T>(values: readonly T[], axis: number): T[] => values.filter((_, at) => at !== axis);

/**
 * The adjoint of `unfold`: adds windows up where they lie, in float32.
 *
 * Rows of windows are padded and read along their diagonals, so that one sum over an axis is all there is to do: of windows
 * [count, size] whose rows are cut into `parts` pieces of `step`, piece q of window a belongs to place a + q.
 *
 * @internal
 * @param windows [..., count, ..., size]
 * @param shape of what the windows were cut of
 */
function fold(windows: Tensor, shape: Shape, axis: number, step: number): Tensor {
  const count = windows.shape[axis];
  const size = windows.shape[shape.length];
  const parts = Math.ceil(size / step);
  const width = parts * step;
  const rest = without(shape, axis);
  const others = rest.map((_, at) => at);
  const last = rest.length;
  return tidying(
    () => {
      const padded = filled(windows.backend, [...rest, count + 2 * (parts - 1), width], windows.dtype, 0) as Tensor;
      const order = [...without([...shape.keys()], axis), axis, shape.length];
      windows.permute(order).copyInto(padded.slice(last, parts - 1, parts - 1 + count).slice(last + 1, 0, size));
      const skewed = padded.restrided(
        [...rest, count + parts - 1, step, parts],
        [...others.map((at) => padded.strides[at]), width, 1, width - step],
        width - step,
        // Gradients are not differentiated.
        { kind: 'whole', name: 'fold', back: (gradient) => gradient },
      );
      const summed = skewed.shape.map((_, at) => at === last + 2);
      const sums = reduceAxes(skewed, summed, { reduction: 'sum', dtype: windows.dtype }) as Tensor;
      const reached = (count + parts - 1) * step;
      let lines: Tensor = sums.reshape([...rest, reached]);
      const length = shape[axis];
      if (reached < length) {
        const longer = filled(windows.backend, [...rest, length], windows.dtype, 0) as Tensor;
        lines.copyInto(longer.slice(last, 0, reached));
        lines = longer;
      } else lines = lines.slice(last, 0, length);
      const back = [...others];
      back.splice(axis, 0, last);
      return lines.permute(back);
    },
    (t) => [t],
  );
}

/**
 * Windows of `size` elements along an axis, one every `step` elements, as a view: out[..., i, ..., j] =
 * x[..., i * step + j, ...], as PyTorch's `Tensor.unfold`. Windows that overlap share elements, so nothing can be written to
 * them; gradients add up.
 *
 * @param axis from the end where it is negative
 * @param size from 1 to the length of the axis
 * @param step at least 1
 * @returns the axis has length floor((length - size) / step) + 1, and the windows are a new last axis
 * @throws ERR_SHAPE, ERR_OPTION, ERR_DTYPE, ERR_DISPOSED
 */
export function unfold<D extends FloatDType>(
  x: Tensor<D, Shape>,
  axis: number,
  size: number,
  step: number,
): Tensor<D, Shape> {
  checkTensor(x, 'x');
  const own = x.shape as Shape;
  const at = checkAxis(axis, own);
  checkInteger(size, 'size', 1);
  checkInteger(step, 'step', 1);
  const length = own[at];
  if (size > length)
    throw shapeError(`size is ${size}; axis ${at} of ${show(own)} has ${length} elements, a window has no more`);
  const count = Math.floor((length - size) / step) + 1;
  // A longer step than the axis has one window, and must not make a stride that is no longer exact.
  const every = Math.min(step, length);
  const stride = x.strides[at];
  const shape = [...own.map((n: number, i: number) => (i === at ? count : n)), size];
  const strides = [...x.strides.map((n: number, i: number) => (i === at ? n * every : n)), stride];
  return x.restrided(shape, strides, 0, {
    kind: 'whole',
    name: 'unfold',
    back: (gradient) => fold(gradient, own, at, every),
  });
}
