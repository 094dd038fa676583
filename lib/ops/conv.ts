// Convolutions, as neural networks call them: kernels are not turned over.
import { checkInteger, checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError, optionError, shapeError, show } from '../base/errors.js';
import { compile } from '../kernels/elementwise.js';
import { input } from '../kernels/expression.js';
import { compute, converted, filled, inRows, reduceAxes } from '../tape/arithmetic.js';
import { record, withoutRecording } from '../tape/tape.js';
import { elementCount } from '../tensor/shape.js';
import { allocateTensor, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { tidying } from '../tensor/track.js';
import { matmul } from './matmul.js';
import {
  asChannels,
  atTap,
  channelsOf,
  countsOf,
  emptySums,
  type PaddingWord,
  type PerAxis,
  padded,
  perAxis,
  spread,
  spreadTap,
  sumOfProducts,
  tapsOf,
  type Window,
  windowsOf,
  windowsView,
  withoutPadding,
} from './windows.js';

export interface Conv1dOptions {
  /** [out channels], of any dtype; added to the result. Default none. */
  readonly bias?: Tensor<FloatDType, Shape>;
  /** Elements from one window to the next. Default 1. */
  readonly stride?: number;
  /**
   * Zeros on either side of x. 'same': so many that the result is as long as x, an odd one behind it, at stride 1; 'causal':
   * (k - 1) * dilation in front of it and none behind, so that no element of the result sees what comes after it; 'valid':
   * none. Default 'valid'.
   */
  readonly padding?: number | 'same' | 'valid' | 'causal';
  /** Elements from one place of a window to the next. Default 1. */
  readonly dilation?: number;
  /** Parts of the channels, each with kernels of its own; as many as channels: a depthwise convolution. Default 1. */
  readonly groups?: number;
}

export interface Conv2dOptions extends Omit<Conv1dOptions, 'stride' | 'padding' | 'dilation'> {
  /** Elements from one window to the next, or [rows, columns]. Default 1. */
  readonly stride?: PerAxis;
  /**
   * Zeros on either side of each axis, or [above and below, left and right]. 'same': so many that the result is as large as
   * x, odd ones below and to the right, at stride 1; 'valid': none. Default 'valid'.
   */
  readonly padding?: PerAxis | 'same' | 'valid';
  /** Elements from one place of a window to the next, or [rows, columns]. Default 1. */
  readonly dilation?: PerAxis;
}

interface Options {
  readonly bias?: Tensor<FloatDType, Shape>;
  readonly stride?: PerAxis;
  readonly padding?: PerAxis | PaddingWord;
  readonly dilation?: PerAxis;
  readonly groups?: number;
}

/** Elements of the windows of some entries of a batch that are written out at a time. */
const mostWritten = 2 ** 24;

/** A convolution that has been checked. */
interface Problem {
  readonly windows: readonly Window[];
  readonly groups: number;
  /** Of x, and of the result. */
  readonly channels: number;
  readonly outChannels: number;
  readonly batch: number;
  /** [batch, out channels, ...counts] */
  readonly shape: Shape;
}

const axesNames = ['', 'k', 'kh, kw'];

function readProblem(
  x: Tensor,
  weights: Tensor,
  options: Options,
  axes: number,
  words: readonly PaddingWord[],
): Problem {
  checkTensor(x, 'x');
  checkTensor(weights, 'weights');
  checkOptions(options, ['bias', 'stride', 'padding', 'dilation', 'groups']);
  const { bias, stride = 1, padding = 'valid', dilation = 1, groups = 1 } = options;
  if (x.shape.length !== axes + 2)
    throw shapeError(
      `x has shape ${show(x.shape)}; it must be [batch, channels, ${axes === 1 ? 'length' : 'height, width'}]`,
    );
  if (weights.shape.length !== axes + 2)
    throw shapeError(
      `weights has shape ${show(weights.shape)}; it must be [out channels, channels / groups, ${axesNames[axes]}]`,
    );
  const [batch, channels] = x.shape;
  const [outChannels, perGroup, ...sizes] = weights.shape;
  checkInteger(groups, 'groups', 1);
  if (channels % groups !== 0 || outChannels % groups !== 0)
    throw optionError(
      `groups is ${groups}; it must divide the ${channels} channels of x and the ${outChannels} of the result`,
    );
  if (perGroup * groups !== channels)
    throw shapeError(
      `weights has shape ${show(weights.shape)}, for ${perGroup * groups} channels in ${groups} groups; x has ${channels}`,
    );
  if (sizes.includes(0)) throw shapeError(`weights has shape ${show(weights.shape)}; a kernel must not be empty`);
  if (x.dtype !== weights.dtype)
    throw new FlashAttnError('ERR_DTYPE', `x is ${x.dtype} and weights is ${weights.dtype}; they must be the same`);
  if (bias !== undefined) {
    checkTensor(bias, 'bias');
    if (bias.shape.length !== 1 || bias.shape[0] !== outChannels)
      throw shapeError(`bias has shape ${show(bias.shape)}; it must be [${outChannels}], the first axis of weights`);
  }
  const windows = windowsOf(
    x,
    {
      sizes,
      steps: perAxis(stride, 'stride', axes, 1),
      dilations: perAxis(dilation, 'dilation', axes, 1),
      padding,
      words,
    },
    'a kernel',
  );
  const { backend } = x;
  for (const [name, t] of Object.entries({ x, weights, bias })) t?.operand(name, backend);
  return { windows, groups, channels, outChannels, batch, shape: [batch, outChannels, ...countsOf(windows)] };
}

/** Results of one channel beyond which a matmul that reads its windows once is faster. */
const mostPerChannel = 4;

const isDepthwise = ({ groups, channels, outChannels }: Problem) =>
  groups === channels && outChannels <= mostPerChannel * channels;

/** Runs of entries of the batch whose windows are written out together. */
function* chunksOf({ batch, channels, windows }: Problem): Generator<[begin: number, end: number]> {
  const each = channels * windows.reduce((n, { size, count }) => n * size * count, 1);
  const most = Math.max(1, Math.floor(mostWritten / Math.max(1, each)));
  for (let begin = 0; begin < batch; begin += most) yield [begin, Math.min(batch, begin + most)];
}

/** [groups, out channels of each, elements of a kernel] */
function kernels(weights: Tensor, { groups, outChannels }: Problem): Tensor {
  return inRows(weights).reshape([groups, outChannels / groups, elementCount(weights.shape.slice(1))]);
}

/** Without padding and with whole steps a kernel of one element reads x as it lies. */
function forwardByMatmul(x: Tensor, weights: Tensor, bias: Tensor | undefined, problem: Problem): Tensor {
  const { windows, groups, outChannels, batch, shape, channels } = problem;
  const places = elementCount(countsOf(windows));
  const perKernel = (channels / groups) * elementCount(windows.map(({ size }) => size));
  const rows = kernels(weights, problem);
  const biases = bias && asChannels(bias, 1);
  const added = biases && { bias: inRows(biases).reshape([groups, outChannels / groups, 1]) };
  const whole = padded(x, windows, 0);
  const columnsOf = (begin: number, end: number) =>
    inRows(windowsView(whole.slice(0, begin, end), windows)).reshape([end - begin, groups, perKernel, places]);
  const chunks = [...chunksOf(problem)];
  if (chunks.length === 1) return matmul(rows, columnsOf(0, batch), added).reshape(shape);
  const result = filled(x.backend, shape, x.dtype, 0) as Tensor;
  for (const [begin, end] of chunks) {
    const columns = columnsOf(begin, end);
    const into = result.slice(0, begin, end).reshape([end - begin, groups, outChannels / groups, places]);
    matmul(rows, columns, { ...added, accumulateInto: into });
    columns.dispose();
  }
  return result;
}

/** The weights of one place of all kernels that make every `every`-th channel of the result. */
function weightsAt(weights: Tensor, tap: readonly number[], first: number, every: number): Tensor {
  let t: Tensor = weights.select(1, 0);
  for (const at of tap) t = t.select(1, at);
  return asChannels(t, tap.length, first, every);
}

/** Each channel alone: nothing is written out but the padding. */
function forwardDepthwise(x: Tensor, weights: Tensor, bias: Tensor | undefined, problem: Problem): Tensor {
  const { windows, channels, outChannels, shape } = problem;
  const result = allocateTensor(x.backend, shape, x.dtype) as Tensor;
  const whole = padded(x, windows, 0);
  const every = outChannels / Math.max(1, channels);
  for (let m = 0; m < every; m++) {
    const products = tapsOf(windows).map((tap) => ({
      x: atTap(whole, windows, tap),
      y: weightsAt(weights, tap, m, every),
    }));
    const start = bias && asChannels(bias, windows.length, m, every);
    sumOfProducts(products, start, channelsOf(result, m, every));
  }
  return result;
}

interface Wanted {
  readonly x: boolean;
  readonly weights: boolean;
}

interface Gradients {
  readonly dX: Tensor | undefined;
  readonly dWeights: Tensor | undefined;
}

function backwardByMatmul(dOut: Tensor, x: Tensor, weights: Tensor, problem: Problem, wanted: Wanted): Gradients {
  const { windows, groups, channels, outChannels, batch } = problem;
  const { backend } = x;
  const sizes = windows.map(({ size }) => size);
  const counts = countsOf(windows);
  const places = elementCount(counts);
  const perGroup = outChannels / groups;
  const perKernel = (channels / groups) * elementCount(sizes);
  const axes = windows.length;
  const rows = wanted.x ? kernels(weights, problem).transpose(1, 2) : undefined;
  const sums = wanted.x ? emptySums(backend, batch, channels, windows) : undefined;
  const whole = wanted.weights ? padded(x, windows, 0) : undefined;
  const products = wanted.weights
    ? (filled(backend, [groups, perGroup, perKernel], 'float32', 0) as Tensor)
    : undefined;
  for (const [begin, end] of chunksOf(problem)) {
    const entries = end - begin;
    const gradient = dOut.slice(0, begin, end);
    if (rows && sums) {
      const columns = matmul(rows, inRows(gradient).reshape([entries, groups, perGroup, places]));
      const parts = columns.reshape([entries, channels, ...sizes, ...counts]);
      const into = sums.slice(0, begin, end);
      for (const tap of tapsOf(windows)) {
        let part = parts as Tensor;
        for (const at of tap) part = part.select(2, at);
        part.copyInto(atTap(into, windows, tap), { accumulate: true });
      }
      columns.dispose();
      parts.dispose();
    }
    if (whole && products) {
      // The entries of the batch beside the places of windows: one long sum for each weight.
      const order = [1, ...sizes.map((_, axis) => axis + 2), 0, ...counts.map((_, axis) => axis + 2 + axes)];
      const columns = inRows(windowsView(whole.slice(0, begin, end), windows).permute(order));
      const gradients = inRows(gradient.transpose(0, 1));
      matmul(
        gradients.reshape([groups, perGroup, entries * places]),
        columns.reshape([groups, perKernel, entries * places]).transpose(1, 2),
        { accumulateInto: products },
      );
      columns.dispose();
      gradients.dispose();
    }
  }
  return {
    dX: sums && withoutPadding(sums, windows, x.dtype),
    dWeights: products && converted(products, weights.dtype).reshape(weights.shape),
  };
}

const product = compile([input(0).mul(input(1))], 2);

function backwardDepthwise(dOut: Tensor, x: Tensor, weights: Tensor, problem: Problem, wanted: Wanted): Gradients {
  const { windows, channels, outChannels } = problem;
  const { backend } = x;
  const every = outChannels / Math.max(1, channels);
  const taps = tapsOf(windows);
  let dX: Tensor | undefined;
  if (wanted.x) {
    const around = spread(dOut, windows);
    const products = Array.from({ length: every }, (_, m) =>
      taps.map((tap) => ({
        x: spreadTap(channelsOf(around, m, every), windows, tap),
        y: weightsAt(weights, tap, m, every),
      })),
    ).flat();
    dX = filled(backend, x.shape, x.dtype, 0) as Tensor;
    sumOfProducts(products, undefined, dX);
  }
  let dWeights: Tensor | undefined;
  if (wanted.weights) {
    dWeights = filled(backend, weights.shape, weights.dtype, 0) as Tensor;
    const whole = padded(x, windows, 0);
    for (let m = 0; m < every; m++) {
      const gradient = channelsOf(dOut, m, every);
      for (const tap of taps) {
        const products = compute(backend, product, [gradient, atTap(whole, windows, tap)], gradient.shape, 'float32');
        const reduced = gradient.shape.map((_, axis) => axis !== 1);
        const sums = reduceAxes(products, reduced, { reduction: 'sum', dtype: 'float32' });
        products.dispose();
        let into: Tensor = dWeights.slice(0, m, outChannels, every).select(1, 0);
        for (const at of tap) into = into.select(1, at);
        sums.copyInto(into);
        sums.dispose();
      }
    }
  }
  return { dX, dWeights };
}

function convolve(
  name: string,
  x: Tensor,
  weights: Tensor,
  options: Options,
  axes: number,
  words: readonly PaddingWord[],
) {
  const problem = readProblem(x, weights, options, axes, words);
  const { bias } = options;
  const depthwise = isDepthwise(problem);
  const result = tidying(
    () =>
      withoutRecording(() =>
        (depthwise ? forwardDepthwise : forwardByMatmul)(x.detach(), weights.detach(), bias?.detach(), problem),
      ),
    (t) => [t],
  );
  try {
    record(name, [x, weights, bias], [result], [x, weights], ([gradient], saved, needed) => {
      if (!gradient) return [];
      const [values, kernel] = saved as [Tensor, Tensor];
      const wanted = { x: needed[0] === true, weights: needed[1] === true };
      const backward = depthwise ? backwardDepthwise : backwardByMatmul;
      const { dX, dWeights } = backward(gradient, values, kernel, problem, wanted);
      const reduced = gradient.shape.map((_, axis) => axis !== 1);
      return [
        dX,
        dWeights,
        bias && needed[2]
          ? (reduceAxes(gradient, reduced, { reduction: 'sum', dtype: bias.dtype }) as Tensor)
          : undefined,
      ];
    });
  } catch (error) {
    result.dispose();
    throw error;
  }
  return result;
}

/**
 * The convolution of sequences: out[n, o, i] = bias[o] + the sum over c and j of
 * weights[o, c, j] * x[n, c, i * stride + j * dilation - padding], where o sees the channels c of its group; sums are
 * float32. A depthwise convolution (groups = channels) takes a few multiplications for each element in one pass over memory;
 * others write windows out, of at most 2^24 elements or of one entry of the batch, and multiply matrices.
 *
 * @param x [batch, channels, length]
 * @param weights [out channels, channels / groups, k], of the dtype and on the device of x
 * @returns [batch, out channels, windows] of the dtype of x
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function conv1d<D extends FloatDType>(
  x: Tensor<D, Shape>,
  weights: Tensor<D, Shape>,
  options: Conv1dOptions = {},
): Tensor<D, Shape> {
  const words = ['same', 'valid', 'causal'] as const;
  return convolve('conv1d', x as unknown as Tensor, weights as unknown as Tensor, options, 1, words) as Tensor<
    D,
    Shape
  >;
}

/**
 * The convolution of images: out[n, o, i, j] = bias[o] + the sum over c, k and l of
 * weights[o, c, k, l] * x[n, c, i * stride + k * dilation - padding, j * stride + l * dilation - padding]. See `conv1d`.
 *
 * @param x [batch, channels, height, width]
 * @param weights [out channels, channels / groups, kh, kw], of the dtype and on the device of x
 * @returns [batch, out channels, rows, columns] of the dtype of x
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function conv2d<D extends FloatDType>(
  x: Tensor<D, Shape>,
  weights: Tensor<D, Shape>,
  options: Conv2dOptions = {},
): Tensor<D, Shape> {
  const words = ['same', 'valid'] as const;
  return convolve('conv2d', x as unknown as Tensor, weights as unknown as Tensor, options, 2, words) as Tensor<
    D,
    Shape
  >;
}
