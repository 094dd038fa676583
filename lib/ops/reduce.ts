// Sums and extremes over axes.
import { checkBoolean, checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { optionError, shapeError, show } from '../base/errors.js';
import { compile } from '../kernels/elementwise.js';
import { input } from '../kernels/expression.js';
import type { Reduction } from '../kernels/reduce.js';
import { compute, converted, inRows, reduceAxes, scaled } from '../tape/arithmetic.js';
import { record } from '../tape/tape.js';
import { checkAxis } from '../tensor/shape.js';
import { type AnyTensor, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { tidying } from '../tensor/track.js';

/** An axis or several, negative ones from the end; left out: all of them. */
export type Axes = number | readonly number[];

export interface ReduceOptions {
  /** Whether the axes stay, with length 1. Default false. */
  readonly keepDims?: boolean;
}

export interface VarianceOptions extends ReduceOptions {
  /** What the number of elements is lessened by in the divisor: 1 for an estimate from a sample. Default 1, as in PyTorch. */
  readonly correction?: number;
}

interface Reduced {
  /** By axis whether it is summed over. */
  readonly reduced: readonly boolean[];
  /** That of the result, and with the axes kept. */
  readonly shape: Shape;
  readonly kept: Shape;
  /** How many elements a result is made of. */
  readonly count: number;
}

function readAxes(x: Tensor, axes: Axes | undefined, keepDims: boolean): Reduced {
  const { shape } = x;
  const reduced: boolean[] = new Array(shape.length).fill(axes === undefined);
  const named = axes === undefined ? [] : typeof axes === 'number' ? [axes] : axes;
  if (!Array.isArray(named)) throw optionError(`axes is ${show(axes)}; it must be an axis or an array of axes`);
  for (const axis of named) {
    const at = checkAxis(axis, shape);
    if (reduced[at]) throw shapeError(`axes is ${show(axes)}; axis ${at} of ${show(shape)} is named twice`);
    reduced[at] = true;
  }
  const kept = shape.map((n, axis) => (reduced[axis] ? 1 : n));
  return {
    reduced,
    shape: keepDims ? kept : shape.filter((_, axis) => !reduced[axis]),
    kept,
    count: shape.reduce((product, n, axis) => (reduced[axis] ? product * n : product), 1),
  };
}

function readArguments<O extends ReduceOptions>(
  x: unknown,
  axes: Axes | undefined,
  options: O,
  known: readonly Extract<keyof O, string>[],
): Reduced {
  checkTensor(x, 'x');
  checkOptions(options, known);
  const { keepDims = false } = options;
  checkBoolean(keepDims, 'keepDims');
  x.operand('x', x.backend);
  return readAxes(x, axes, keepDims);
}

/** A gradient of the result, seen in the shape of the input. */
const spread = (gradient: Tensor, { kept }: Reduced, shape: Shape): Tensor =>
  inRows(gradient).reshape(kept).expand(shape);

/** The sum of many, each multiplied by `scale`. */
function weightedSum<D extends FloatDType>(
  x: Tensor<D, Shape>,
  r: Reduced,
  name: string,
  scale: number,
): Tensor<D, Shape> {
  const result = inShape(reduceAxes(x, r.reduced, { reduction: 'sum', scale, dtype: x.dtype }), r.shape);
  const { shape } = x;
  record(name, [x], [result], [], ([gradient]) => {
    if (!gradient) return [];
    return [spread(scale === 1 ? gradient : scaled(gradient, scale, gradient.dtype), r, shape)];
  });
  return result as Tensor<D, Shape>;
}

/** The same memory in another shape, as the only one who has it. */
function inShape(t: AnyTensor, shape: Shape): AnyTensor {
  if (t.shape.length === shape.length) return t;
  const shaped = t.reshape(shape);
  t.dispose();
  return shaped;
}

/**
 * The sum over axes, in float32 with what its roundings cut off; 0 of nothing. The bits depend on neither device threads nor
 * timing.
 *
 * @param x any strides
 * @param axes default: all, which gives a tensor of rank 0
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function sum<D extends FloatDType>(
  x: Tensor<D, Shape>,
  axes?: Axes,
  options: ReduceOptions = {},
): Tensor<D, Shape> {
  return weightedSum(x, readArguments(x, axes, options, ['keepDims']), 'sum', 1);
}

/** The arithmetic mean over axes; NaN of nothing. See `sum`. */
export function mean<D extends FloatDType>(
  x: Tensor<D, Shape>,
  axes?: Axes,
  options: ReduceOptions = {},
): Tensor<D, Shape> {
  const r = readArguments(x, axes, options, ['keepDims']);
  return weightedSum(x, r, 'mean', r.count === 0 ? Number.NaN : 1 / r.count);
}

/** Equal to the extreme: with how many of them there are, the shares of its gradient. */
const isExtreme = compile([input(0).equal(input(1))], 2);
const shareOfExtreme = compile([input(0).mul(input(1)).div(input(2))], 3);

function extreme<D extends FloatDType>(
  name: 'max' | 'min',
  reduction: Reduction,
  x: Tensor<D, Shape>,
  axes: Axes | undefined,
  options: ReduceOptions,
): Tensor<D, Shape> {
  const r = readArguments(x, axes, options, ['keepDims']);
  if (r.count === 0) throw shapeError(`x has shape ${show(x.shape)}; ${name} over axes without elements has no value`);
  const result = inShape(reduceAxes(x, r.reduced, { reduction, dtype: x.dtype }), r.shape) as Tensor<D, Shape>;
  record(name, [x], [result], [x, result], ([gradient], saved) => {
    if (!gradient) return [];
    const [values, most] = saved as [Tensor, Tensor];
    const { backend, shape } = values;
    const is = compute(backend, isExtreme, [values, most.reshape(r.kept)], shape, 'float32');
    const count = reduceAxes(is, r.reduced, { reduction: 'sum', dtype: 'float32' }).reshape(r.kept);
    const parts = [is, spread(gradient, r, shape), count];
    return [compute(backend, shareOfExtreme, parts, shape, values.dtype)];
  });
  return result;
}

/** The largest element over axes; NaN where one is. Equal ones share the gradient. @throws ERR_SHAPE of nothing. See `sum`. */
export function max<D extends FloatDType>(
  x: Tensor<D, Shape>,
  axes?: Axes,
  options: ReduceOptions = {},
): Tensor<D, Shape> {
  return extreme('max', 'maximum', x, axes, options);
}

/** The smallest element over axes; NaN where one is. Equal ones share the gradient. @throws ERR_SHAPE of nothing. See `sum`. */
export function min<D extends FloatDType>(
  x: Tensor<D, Shape>,
  axes?: Axes,
  options: ReduceOptions = {},
): Tensor<D, Shape> {
  return extreme('min', 'minimum', x, axes, options);
}

const squaredDifference = compile([input(0).sub(input(1)).square()], 2);
const varianceGradient = compile([input(0).sub(input(1)).mul(input(2))], 3);

/**
 * The variance over axes: the squares of the differences from the mean, in a second pass, over count - correction.
 *
 * @throws as `sum`
 */
export function variance<D extends FloatDType>(
  x: Tensor<D, Shape>,
  axes?: Axes,
  options: VarianceOptions = {},
): Tensor<D, Shape> {
  const r = readArguments(x, axes, options, ['keepDims', 'correction']);
  const { correction = 1 } = options;
  if (typeof correction !== 'number' || !Number.isFinite(correction))
    throw optionError(`correction is ${show(correction)}; it must be a finite number`);
  const divisor = Math.max(0, r.count - correction);
  const { backend, shape, dtype } = x;
  const meanOf = (t: Tensor) =>
    reduceAxes(t, r.reduced, { reduction: 'sum', scale: 1 / r.count, dtype: 'float32' }).reshape(r.kept) as Tensor;
  const result = tidying(
    () => {
      const squares = compute(backend, squaredDifference, [x.detach(), meanOf(x.detach())], shape, 'float32');
      return inShape(reduceAxes(squares, r.reduced, { reduction: 'sum', scale: 1 / divisor, dtype }), r.shape);
    },
    (t) => [t],
  ) as Tensor<D, Shape>;
  record('variance', [x], [result], [x], ([gradient], [saved]) => {
    if (!gradient) return [];
    const values = saved as Tensor;
    const doubled = scaled(gradient, 2 / divisor, 'float32');
    return [compute(backend, varianceGradient, [values, meanOf(values), spread(doubled, r, shape)], shape, dtype)];
  });
  return result;
}

const shifted = compile([input(0).sub(input(1)).exp()], 2);
// An infinite maximum is the result itself: subtracting it would give NaN.
const finite = compile([input(0).abs().less(Number.POSITIVE_INFINITY).where(input(0), 0)], 1);
const logOfSum = compile([input(0).log().add(input(1))], 2);
// Where everything is hidden by -Infinity the weights are 0, as in attention.
const weighed = compile(
  [
    input(1)
      .equal(Number.NEGATIVE_INFINITY)
      .where(0, input(0).sub(input(1)).exp().mul(input(2))),
  ],
  3,
);

/**
 * log(sum(exp(x))) over axes, without overflow; -Infinity of nothing, and of nothing but -Infinity, which has gradient 0.
 * See `sum`.
 */
export function logSumExp<D extends FloatDType>(
  x: Tensor<D, Shape>,
  axes?: Axes,
  options: ReduceOptions = {},
): Tensor<D, Shape> {
  const r = readArguments(x, axes, options, ['keepDims']);
  const { backend, shape, dtype } = x;
  // In float32 also where the result is not: the gradient's weights are its exponentials.
  const total = tidying(
    () => {
      const values = x.detach();
      const most = reduceAxes(values, r.reduced, { reduction: 'maximum', dtype: 'float32' });
      const reference = compute(backend, finite, [most], most.shape, 'float32');
      const powers = compute(backend, shifted, [values, reference.reshape(r.kept)], shape, 'float32');
      const sums = reduceAxes(powers, r.reduced, { reduction: 'sum', dtype: 'float32' });
      return inShape(
        compute(backend, logOfSum, [sums, reference], sums.shape, 'float32'),
        r.shape,
      ) as Tensor<'float32'>;
    },
    (t) => [t],
  );
  let result: Tensor | undefined;
  try {
    result = dtype === 'float32' ? total : (converted(total, dtype) as Tensor);
    record('logSumExp', [x], [result], [x, total], ([gradient], saved) => {
      if (!gradient) return [];
      const [values, sums] = saved as [Tensor, Tensor];
      return [compute(backend, weighed, [values, sums.reshape(r.kept), spread(gradient, r, shape)], shape, dtype)];
    });
    return result as Tensor<D, Shape>;
  } finally {
    if (result !== total) total.dispose();
  }
}
