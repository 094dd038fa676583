// Windows that move over the last axes of a tensor [batch, channels, ...axes], as convolutions and pooling have them.
import { checkInteger, mustBe } from '../base/check.js';
import type { DType } from '../base/dtype.js';
import { optionError, shapeError, show } from '../base/errors.js';
import type { Backend } from '../kernels/device.js';
import { compile, type Program } from '../kernels/elementwise.js';
import { type Expression, input } from '../kernels/expression.js';
import { broadcast, converted, filled, launchElementwise } from '../tape/arithmetic.js';
import type { AnyTensor, Shape, Tensor } from '../tensor/tensor.js';
import { tidying } from '../tensor/track.js';

/** One number for every axis, or one for each. */
export type PerAxis = number | readonly number[];

/** How windows lie on one axis: window i has the padded elements i * step + j * dilation for j < size. */
export interface Window {
  readonly length: number;
  readonly size: number;
  readonly step: number;
  readonly dilation: number;
  /** Elements in front of the axis and behind it. */
  readonly before: number;
  readonly after: number;
  /** How many windows there are. */
  readonly count: number;
}

/** Numbers for each axis. @throws ERR_OPTION */
export function perAxis(value: unknown, argument: string, axes: number, least: number): number[] {
  if (typeof value === 'number') return new Array<number>(axes).fill(checkInteger(value, argument, least));
  if (!Array.isArray(value) || value.length !== axes)
    throw mustBe(argument, value, axes === 1 ? 'an integer' : `an integer or an array of ${axes}`);
  return Array.from({ length: axes }, (_, axis) => checkInteger(value[axis], `${argument}[${axis}]`, least));
}

/** 'same': as many windows as elements; 'valid': no padding; 'causal': all of it in front. */
export type PaddingWord = 'same' | 'valid' | 'causal';

export interface WindowOptions {
  readonly sizes: readonly number[];
  readonly steps: readonly number[];
  readonly dilations: readonly number[];
  readonly padding: unknown;
  readonly words: readonly PaddingWord[];
}

function readPadding({ sizes, steps, dilations, padding, words }: WindowOptions): [before: number, after: number][] {
  const axes = sizes.length;
  if (typeof padding !== 'string') return perAxis(padding, 'padding', axes, 0).map((n) => [n, n]);
  if (!(words as readonly string[]).includes(padding)) {
    const quoted = words.map((word) => `'${word}'`).join(', ');
    throw mustBe('padding', padding, `a number of elements${quoted && ` or one of ${quoted}`}`);
  }
  if (padding === 'same' && steps.some((step) => step !== 1))
    throw optionError(`padding is "same" and stride ${show(steps)}; there are as many windows as elements at stride 1`);
  return sizes.map((size, axis) => {
    const span = (size - 1) * dilations[axis];
    if (padding === 'valid') return [0, 0];
    if (padding === 'causal') return [span, 0];
    const before = Math.floor(span / 2);
    return [before, span - before];
  });
}

/** @param what messages call the sizes: 'a kernel' */
export function windowsOf(x: Tensor, options: WindowOptions, what: string): Window[] {
  const { sizes, steps, dilations } = options;
  const padding = readPadding(options);
  return sizes.map((size, axis) => {
    const length = x.shape[axis + 2];
    const [before, after] = padding[axis];
    const span = (size - 1) * dilations[axis] + 1;
    const room = before + length + after - span;
    if (room < 0)
      throw shapeError(
        `${what} spans ${span} elements of axis ${axis + 2}; x has shape ${show(x.shape)}, with padding ${before + length + after} on that axis`,
      );
    return {
      length,
      size,
      step: steps[axis],
      dilation: dilations[axis],
      before,
      after,
      count: Math.floor(room / steps[axis]) + 1,
    };
  });
}

const paddedLength = ({ before, length, after }: Window) => before + length + after;

export const countsOf = (windows: readonly Window[]): number[] => windows.map(({ count }) => count);

/** A view that is not differentiated. */
const view = (t: Tensor, shape: Shape, strides: readonly number[], offset = 0): Tensor =>
  t.restrided(shape, strides, offset, { kind: 'whole', name: 'windows', back: (gradient) => gradient });

/** Where the elements of x lie in what has been padded. */
function inside(padded: Tensor, windows: readonly Window[]): Tensor {
  const shape = [padded.shape[0], padded.shape[1], ...windows.map(({ length }) => length)];
  const offset = windows.reduce((at, { before }, axis) => at + before * padded.strides[axis + 2], 0);
  return view(padded, shape, padded.strides.slice(), offset);
}

/** x with `value` around it; without padding x itself, as a handle of its own. */
export function padded(x: Tensor, windows: readonly Window[], value: number): Tensor {
  if (windows.every(({ before, after }) => before === 0 && after === 0)) return x.detach();
  const result = filled(x.backend, [x.shape[0], x.shape[1], ...windows.map(paddedLength)], x.dtype, value) as Tensor;
  const part = inside(result, windows);
  x.copyInto(part);
  part.dispose();
  return result;
}

/** Places in a window, as one index for each axis, the last one fastest. */
export function tapsOf(windows: readonly Window[]): number[][] {
  let taps: number[][] = [[]];
  for (const { size } of windows) taps = taps.flatMap((tap) => Array.from({ length: size }, (_, at) => [...tap, at]));
  return taps;
}

/** The elements of what has been padded at one place of all windows: [batch, channels, ...counts]. */
export function atTap(padded: Tensor, windows: readonly Window[], tap: readonly number[]): Tensor {
  const { strides, shape } = padded;
  return view(
    padded,
    [shape[0], shape[1], ...countsOf(windows)],
    [strides[0], strides[1], ...windows.map(({ step }, axis) => step * strides[axis + 2])],
    windows.reduce((at, { dilation }, axis) => at + tap[axis] * dilation * strides[axis + 2], 0),
  );
}

/** All windows of what has been padded: [batch, channels, ...sizes, ...counts]. */
export function windowsView(padded: Tensor, windows: readonly Window[]): Tensor {
  const { strides, shape } = padded;
  return view(
    padded,
    [shape[0], shape[1], ...windows.map(({ size }) => size), ...countsOf(windows)],
    [
      strides[0],
      strides[1],
      ...windows.map(({ dilation }, axis) => dilation * strides[axis + 2]),
      ...windows.map(({ step }, axis) => step * strides[axis + 2]),
    ],
  );
}

/** Zeros in float32 that gradients of windows are added to, with a view for those at each place of the windows. */
export function emptySums(backend: Backend, batch: number, channels: number, windows: readonly Window[]): Tensor {
  return filled(backend, [batch, channels, ...windows.map(paddedLength)], 'float32', 0) as Tensor;
}

/** The gradient of x, of sums over what was padded. */
export function withoutPadding(sums: Tensor, windows: readonly Window[], dtype: Tensor['dtype']): Tensor {
  const part = inside(sums, windows);
  if (dtype === 'float32') return part;
  try {
    return converted(part, dtype);
  } finally {
    part.dispose();
  }
}

/**
 * Gradients of windows with zeros between and around them: at place j of the windows those lie, `spreadTap` says where, that
 * belong to the elements of x in their order.
 */
export function spread(gradient: Tensor, windows: readonly Window[]): Tensor {
  const span = ({ size, dilation }: Window) => (size - 1) * dilation;
  if (windows.every(({ size, step, before, after }) => size === 1 && step === 1 && before + after === 0))
    return gradient.detach();
  const shape = [gradient.shape[0], gradient.shape[1], ...windows.map((w) => paddedLength(w) + span(w))];
  const result = filled(gradient.backend, shape, gradient.dtype, 0) as Tensor;
  const { strides } = result;
  const places = view(
    result,
    gradient.shape,
    [strides[0], strides[1], ...windows.map(({ step }, axis) => step * strides[axis + 2])],
    windows.reduce((at, w, axis) => at + span(w) * strides[axis + 2], 0),
  );
  gradient.copyInto(places);
  places.dispose();
  return result;
}

/** [batch, channels, ...lengths]: the gradient of the window in which each element of x is at this place; 0 where none is. */
export function spreadTap(spreadOut: Tensor, windows: readonly Window[], tap: readonly number[]): Tensor {
  const { strides, shape } = spreadOut;
  return view(
    spreadOut,
    [shape[0], shape[1], ...windows.map(({ length }) => length)],
    strides.slice(),
    windows.reduce(
      (at, { size, dilation, before }, axis) => at + (before + (size - 1 - tap[axis]) * dilation) * strides[axis + 2],
      0,
    ),
  );
}

/** Every `every`-th channel of [batch, channels, ...] from one on. */
export function channelsOf(t: Tensor, first: number, every: number): Tensor {
  if (every === 1) return t;
  return t.slice(1, first, t.shape[1], every);
}

/** Products in one launch: with what they are added to and the result as many arrays as a kernel takes. */
const mostProducts = 5;
const programs = new Map<string, Program>();

/** start + the sum of x[i] * y[i]. */
function programOf(count: number, hasStart: boolean): Program {
  const key = `${count} ${hasStart}`;
  let program = programs.get(key);
  if (!program) {
    let sum = hasStart ? input(2 * count) : undefined;
    for (let i = 0; i < count; i++) {
      const product = input(i).mul(input(count + i));
      sum = sum ? sum.add(product) : product;
    }
    program = compile([sum as Expression], 2 * count + (hasStart ? 1 : 0));
    programs.set(key, program);
  }
  return program;
}

export interface Product {
  readonly x: Tensor;
  /** Broadcasts to x. */
  readonly y: AnyTensor;
}

/**
 * into = start + the sum of products, in float32: a few products in each pass over memory.
 *
 * @param into of the shape of every x, of any strides
 * @param start broadcasts
 */
export function sumOfProducts(products: readonly Product[], start: AnyTensor | undefined, into: Tensor): void {
  const { backend, shape } = into;
  tidying(
    () => {
      const needsMore = products.length > mostProducts && into.dtype !== 'float32';
      const sums = needsMore ? (filled(backend, shape, 'float32', 0) as Tensor) : into;
      let before = start;
      for (let begin = 0; begin < products.length; begin += mostProducts) {
        const part = products.slice(begin, begin + mostProducts);
        const isLast = begin + mostProducts >= products.length;
        const inputs = [...part.map(({ x }) => x), ...part.map(({ y }) => y), ...(before ? [before] : [])];
        const to = isLast ? into : sums;
        launchElementwise(backend, {
          program: programOf(part.length, before !== undefined),
          inputs: inputs.map((t) => broadcast(t, 'a factor', shape, backend)),
          outputs: [to.strided('the result', backend)],
        });
        before = to;
      }
    },
    () => [],
  );
}

/** A vector that broadcasts over [batch, channels, ...axes]: every `every`-th element from one on. */
export function asChannels(t: AnyTensor, axes: number, first = 0, every = 1): Tensor {
  const count = Math.ceil((t.shape[0] - first) / every);
  const stride = t.strides[0];
  const ones = new Array<number>(axes).fill(1);
  return view(t as Tensor<DType & Tensor['dtype'], Shape>, [count, ...ones], [stride * every, ...ones], first * stride);
}
