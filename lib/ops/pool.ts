// Windows of sequences and images made one element each.
import { checkBoolean, checkOptions, mustBe } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';
import { tensor } from '../devices/create.js';
import type { DeviceName } from '../devices/registry.js';
import { compile, type Program } from '../kernels/elementwise.js';
import { input, scalar } from '../kernels/expression.js';
import { broadcast, compute, filled, launchElementwise } from '../tape/arithmetic.js';
import { needsRecord, record } from '../tape/tape.js';
import { allocateTensor, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { tidying } from '../tensor/track.js';
import {
  atTap,
  countsOf,
  emptySums,
  type PerAxis,
  padded,
  perAxis,
  spread,
  spreadTap,
  sumOfProducts,
  tapsOf,
  type Window,
  windowsOf,
  withoutPadding,
} from './windows.js';

export interface PoolOptions<N = number> {
  /** Elements from one window to the next. Default: the size of a window. */
  readonly stride?: N;
  /** Elements on either side that are no elements of x, at most half of a window. Default 0. */
  readonly padding?: N;
}

export interface MaxPoolOptions<N = number> extends PoolOptions<N> {
  /** Elements from one place of a window to the next. Default 1. */
  readonly dilation?: N;
}

export interface AvgPoolOptions<N = number> extends PoolOptions<N> {
  /** Whether a mean is over all places of a window, with zeros for padding, or over elements of x alone. Default true. */
  readonly countPadding?: boolean;
}

function readWindows(
  x: Tensor,
  size: unknown,
  { stride = size as PerAxis, padding = 0, dilation = 1 }: MaxPoolOptions<PerAxis>,
  axes: number,
): Window[] {
  checkTensor(x, 'x');
  if (x.shape.length !== axes + 2)
    throw shapeError(
      `x has shape ${show(x.shape)}; it must be [batch, channels, ${axes === 1 ? 'length' : 'height, width'}]`,
    );
  const sizes = perAxis(size, 'size', axes, 1);
  const steps = perAxis(stride, 'stride', axes, 1);
  const around = perAxis(padding, 'padding', axes, 0);
  if (around.some((n, axis) => 2 * n > sizes[axis]))
    throw mustBe('padding', padding, `at most half of the size ${show(size)}`);
  const dilations = perAxis(dilation, 'dilation', axes, 1);
  const windows = windowsOf(x, { sizes, steps, dilations, padding: around, words: [] }, 'a window');
  x.operand('x', x.backend);
  return windows;
}

/** Places of windows in one launch, so that they, and what was found before, are no more arrays than a kernel takes. */
const mostCompared = 6;
const programs = new Map<string, Program>();

/**
 * The largest of some elements, the first of several, NaN where one is; and if wanted which of them it is, counted from
 * scalar 0 on. Behind the elements the inputs have what was found before.
 */
function comparing(count: number, hasBefore: boolean, hasPlace: boolean): Program {
  const key = `${count} ${hasBefore} ${hasPlace}`;
  let program = programs.get(key);
  if (!program) {
    const first = scalar(0);
    let best = hasBefore ? input(count) : input(0);
    let place = hasBefore ? input(count + 1) : first;
    for (let i = hasBefore ? 0 : 1; i < count; i++) {
      const x = input(i);
      const keeps = x.lessEqual(best).maximum(best.notEqual(best));
      place = keeps.where(place, first.add(i));
      best = keeps.where(best, x);
    }
    const inputs = count + (hasBefore ? (hasPlace ? 2 : 1) : 0);
    program = compile(hasPlace ? [best, place] : [best], inputs);
    programs.set(key, program);
  }
  return program;
}

function largest(x: Tensor, windows: readonly Window[], hasPlace: boolean): { out: Tensor; place: Tensor | undefined } {
  const { backend } = x;
  const shape = [x.shape[0], x.shape[1], ...countsOf(windows)];
  const out = allocateTensor(backend, shape, x.dtype) as Tensor;
  const place = hasPlace ? (allocateTensor(backend, shape, 'float32') as Tensor) : undefined;
  const found = place ? [out, place] : [out];
  const whole = padded(x, windows, Number.NEGATIVE_INFINITY);
  const taps = tapsOf(windows);
  for (let begin = 0; begin < taps.length; begin += mostCompared) {
    const elements = taps.slice(begin, begin + mostCompared).map((tap) => atTap(whole, windows, tap));
    const inputs = begin > 0 ? [...elements, ...found] : elements;
    launchElementwise(backend, {
      program: comparing(elements.length, begin > 0, hasPlace),
      inputs: inputs.map((t) => broadcast(t, 'x', shape, backend)),
      outputs: found.map((t) => t.strided('the result', backend)),
      scalars: hasPlace ? [begin] : [],
    });
  }
  return { out, place };
}

/** sum + gradient where the place is scalar 0 */
const addWhere = compile([input(0).add(input(1).equal(scalar(0)).where(input(2), 0))], 3);

function maxPool(name: string, x: Tensor, size: unknown, options: MaxPoolOptions<PerAxis>, axes: number): Tensor {
  checkOptions(options, ['stride', 'padding', 'dilation']);
  const windows = readWindows(x, size, options, axes);
  const { out, place } = tidying(
    () => largest(x.detach(), windows, needsRecord([x])),
    (found) => [found.out, found.place],
  );
  if (!place) return out;
  const { dtype, shape } = x;
  record(name, [x], [out], [place], ([gradient], [kept]) => {
    if (!gradient) return [];
    const { backend } = gradient;
    const sums = emptySums(backend, shape[0], shape[1], windows);
    for (const [index, tap] of tapsOf(windows).entries()) {
      const into = atTap(sums, windows, tap);
      launchElementwise(backend, {
        program: addWhere,
        inputs: [into, kept, gradient].map((t) => broadcast(t, 'a gradient', gradient.shape, backend)),
        outputs: [into.strided('the result', backend)],
        scalars: [index],
      });
    }
    return [withoutPadding(sums, windows, dtype)];
  });
  place.dispose();
  return out;
}

/** Of each window 1 / the number of elements that its mean is over: one number, or one for each window. */
function shares(x: Tensor, windows: readonly Window[], countPadding: boolean): Tensor {
  const whole = windows.reduce((product, { size }) => product * size, 1);
  if (countPadding || windows.every(({ before, after }) => before + after === 0))
    return filled(x.backend, [], 'float32', 1 / whole);
  let all = [1];
  for (const { length, size, step, before, count } of windows) {
    const inside = (i: number) => {
      const begin = i * step - before;
      return Math.min(begin + size, length) - Math.max(begin, 0);
    };
    all = all.flatMap((n) => Array.from({ length: count }, (_, i) => n / Math.max(1, inside(i))));
  }
  return tensor(all, countsOf(windows), { device: x.device as DeviceName });
}

const product = compile([input(0).mul(input(1))], 2);

function avgPool(name: string, x: Tensor, size: unknown, options: AvgPoolOptions<PerAxis>, axes: number): Tensor {
  checkOptions(options, ['stride', 'padding', 'countPadding']);
  const { countPadding = true } = options;
  checkBoolean(countPadding, 'countPadding');
  const windows = readWindows(x, size, options, axes);
  const { shape, dtype, backend } = x;
  const out = tidying(
    () => {
      const share = shares(x, windows, countPadding);
      const result = allocateTensor(backend, [shape[0], shape[1], ...countsOf(windows)], dtype) as Tensor;
      const whole = padded(x.detach(), windows, 0);
      const products = tapsOf(windows).map((tap) => ({ x: atTap(whole, windows, tap), y: share }));
      sumOfProducts(products, undefined, result);
      return result;
    },
    (t) => [t],
  );
  record(name, [x], [out], [], ([gradient]) => {
    if (!gradient) return [];
    const share = shares(gradient, windows, countPadding);
    const around = spread(compute(backend, product, [gradient, share], gradient.shape, 'float32'), windows);
    const one = filled(backend, [], 'float32', 1);
    const dX = allocateTensor(backend, shape, dtype) as Tensor;
    const products = tapsOf(windows).map((tap) => ({ x: spreadTap(around, windows, tap), y: one }));
    sumOfProducts(products, undefined, dX);
    return [dX];
  });
  return out;
}

/**
 * The largest element of each window of sequences: out[n, c, i] = the maximum over j < size of
 * x[n, c, i * stride + j * dilation - padding]. NaN where there is one; of equal ones the first has the gradient.
 *
 * @param x [batch, channels, length]
 * @param size elements of a window
 * @returns [batch, channels, windows] of the dtype of x
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function maxPool1d<D extends FloatDType>(
  x: Tensor<D, Shape>,
  size: number,
  options: MaxPoolOptions = {},
): Tensor<D, Shape> {
  return maxPool('maxPool1d', x as unknown as Tensor, size, options, 1) as Tensor<D, Shape>;
}

/**
 * The largest element of each window of images. See `maxPool1d`.
 *
 * @param x [batch, channels, height, width]
 * @param size of a window, one number or [rows, columns], as are the options
 * @returns [batch, channels, rows, columns] of the dtype of x
 */
export function maxPool2d<D extends FloatDType>(
  x: Tensor<D, Shape>,
  size: PerAxis,
  options: MaxPoolOptions<PerAxis> = {},
): Tensor<D, Shape> {
  return maxPool('maxPool2d', x as unknown as Tensor, size, options, 2) as Tensor<D, Shape>;
}

/**
 * The mean of each window of sequences, summed in float32.
 *
 * @param x [batch, channels, length]
 * @param size elements of a window
 * @returns [batch, channels, windows] of the dtype of x
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function avgPool1d<D extends FloatDType>(
  x: Tensor<D, Shape>,
  size: number,
  options: AvgPoolOptions = {},
): Tensor<D, Shape> {
  return avgPool('avgPool1d', x as unknown as Tensor, size, options, 1) as Tensor<D, Shape>;
}

/**
 * The mean of each window of images, summed in float32.
 *
 * @param x [batch, channels, height, width]
 * @param size of a window, one number or [rows, columns], as are the options
 * @returns [batch, channels, rows, columns] of the dtype of x
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function avgPool2d<D extends FloatDType>(
  x: Tensor<D, Shape>,
  size: PerAxis,
  options: AvgPoolOptions<PerAxis> = {},
): Tensor<D, Shape> {
  return avgPool('avgPool2d', x as unknown as Tensor, size, options, 2) as Tensor<D, Shape>;
}
