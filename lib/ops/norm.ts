import { checkFloat32, checkObject, checkOptions, mustBe } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';
import type { Backend } from '../kernels/device.js';
import { norm, normBackward as normBackwardOperation, partialElements, type Rows } from '../kernels/norm.js';
import { filled } from '../tape/arithmetic.js';
import { needsRecord, record } from '../tape/tape.js';
import { allocating, checkLike, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { Operands } from './operands.js';

export interface NormOptions {
  /** Added to the variance, or to the mean square. Default 1e-5 for `layerNorm`, 1e-6 for `rmsNorm`. */
  readonly epsilon?: number;
}

export interface ResidualNormOptions<D extends FloatDType, S extends Shape> extends NormOptions {
  /** Of the shape and dtype of x. What is normalised, and returned too, is x + residual, rounded to that dtype. */
  readonly residual: Tensor<D, S>;
}

/** What a norm of x + residual returns. */
export interface ResidualNorm<D extends FloatDType, S extends Shape> {
  /** The norm of `sum`. */
  readonly out: Tensor<D, S>;
  /** x + residual */
  readonly sum: Tensor<D, S>;
}

interface NormArguments {
  readonly gain: Tensor | undefined;
  readonly bias: Tensor | undefined;
  readonly residual: Tensor | undefined;
  readonly epsilon: number;
  /** Layer norm; RMS norm takes no mean off. */
  readonly centered: boolean;
}

/** What `normForward` returns, `mean` and `rstd` only when statistics are asked for. */
export interface NormResult<D extends FloatDType, S extends Shape> {
  readonly out: Tensor<D, S>;
  readonly sum: Tensor<D, S> | undefined;
  /** float32 [rows]; none of RMS norm */
  readonly mean: Tensor<'float32'> | undefined;
  /** float32 [rows] */
  readonly rstd: Tensor<'float32'> | undefined;
}

function checkRows(x: unknown, argument: string): asserts x is Tensor {
  checkTensor(x, argument);
  if (x.shape.length === 0) throw shapeError(`${argument} has shape []; it needs an axis to be normalised along`);
}

function checkParameter(t: unknown, argument: string, dim: number): asserts t is Tensor {
  checkTensor(t, argument);
  if (t.shape.length !== 1 || t.shape[0] !== dim)
    throw shapeError(`${argument} has shape ${show(t.shape)}; it must be [${dim}], the last axis of x`);
}

function checkEpsilon(epsilon: unknown): number {
  const checked = checkFloat32(epsilon, 'epsilon');
  if (checked <= 0) throw mustBe('epsilon', epsilon, 'a number above 0');
  return checked;
}

function rowsOf(shape: Shape): { rows: number; dim: number } {
  const last = shape.length - 1;
  let rows = 1;
  for (let axis = 0; axis < last; axis++) rows *= shape[axis];
  return { rows, dim: shape[last] };
}

/** The distance from row to row where it is always the same and rows are contiguous. */
function rowStrideOf({ shape, strides, size }: Tensor): number | undefined {
  const last = shape.length - 1;
  if (size === 0) return shape[last];
  if (shape[last] !== 1 && strides[last] !== 1) return undefined;
  let stride = shape[last];
  let rows = 1;
  for (let axis = last - 1; axis >= 0; axis--) {
    if (shape[axis] === 1) continue;
    if (rows === 1) stride = strides[axis];
    else if (strides[axis] !== rows * stride) return undefined;
    rows *= shape[axis];
  }
  return stride;
}

class NormOperands extends Operands {
  rows(t: Tensor, argument: string): Rows {
    const rowStride = rowStrideOf(t);
    if (rowStride !== undefined) return { ...t.operand(argument, this.backend), dtype: t.dtype, rowStride };
    const copy = this.keep(t.contiguous());
    return { ...copy.operand(argument, this.backend), dtype: t.dtype, rowStride: t.shape[t.shape.length - 1] };
  }
}

/** Every tensor on the backend and not disposed, before anything is allocated. */
function checkUsable(backend: Backend, tensors: Readonly<Record<string, Tensor | undefined>>): void {
  for (const name in tensors) tensors[name]?.operand(name, backend);
}

/**
 * `layerNorm` and `rmsNorm`, with what their gradients need.
 *
 * @internal
 * @param statistics whether to return mean and rstd
 */
export function normForward<D extends FloatDType, S extends Shape>(
  x: Tensor<D, S>,
  { gain, bias, residual, epsilon, centered }: NormArguments,
  statistics: boolean,
): NormResult<D, S> {
  checkRows(x, 'x');
  const { rows, dim } = rowsOf(x.shape);
  if (gain !== undefined) checkParameter(gain, 'gain', dim);
  if (bias !== undefined) checkParameter(bias, 'bias', dim);
  if (residual !== undefined) checkLike(residual, 'residual', x, 'x');
  checkEpsilon(epsilon);
  const { backend } = x;
  checkUsable(backend, { x, gain, bias, residual });
  const operands = new NormOperands(backend);
  try {
    return allocating(backend, (allocate) => {
      const result = {
        out: allocate(x.shape, x.dtype) as Tensor<D, S>,
        sum: residual && (allocate(x.shape, x.dtype) as Tensor<D, S>),
        mean: statistics && centered ? (allocate([rows], 'float32') as Tensor<'float32'>) : undefined,
        rstd: statistics ? (allocate([rows], 'float32') as Tensor<'float32'>) : undefined,
      };
      backend.launch(norm, {
        x: operands.rows(x as Tensor, 'x'),
        residual: residual && operands.rows(residual, 'residual'),
        gain: gain && operands.flat(gain, 'gain'),
        bias: bias && operands.flat(bias, 'bias'),
        out: result.out.flat('out', backend),
        sum: result.sum?.flat('sum', backend),
        mean: result.mean?.flat('mean', backend),
        rstd: result.rstd?.flat('rstd', backend),
        rows,
        dim,
        centered,
        epsilon,
      });
      return result;
    });
  } finally {
    operands.dispose();
  }
}

export interface NormBackwardArguments<D extends FloatDType, S extends Shape> {
  /** What was normalised: x, or the sum that forward returned. */
  readonly x: Tensor<D, S>;
  readonly gain: Tensor | undefined;
  /** Only its dtype matters. */
  readonly bias: Tensor | undefined;
  /** As `normForward` returned them; a mean says that it was layer norm. */
  readonly mean: Tensor<'float32'> | undefined;
  readonly rstd: Tensor<'float32'>;
  /** Of the shape and dtype of x. */
  readonly dOut: Tensor<D, S>;
  /** The gradient that reaches the sum besides, which is added to that of x. */
  readonly dSum?: Tensor<D, S> | undefined;
  /** Which gradients to compute; those of gain and bias only where there are such. */
  readonly wanted: { readonly x: boolean; readonly gain: boolean; readonly bias: boolean };
}

export interface NormGradients<D extends FloatDType, S extends Shape> {
  /** Of x, and of the residual too. */
  readonly dX: Tensor<D, S> | undefined;
  /** Of the shape and dtype of gain and bias. */
  readonly dGain: Tensor | undefined;
  readonly dBias: Tensor | undefined;
}

/**
 * The gradients of `layerNorm` and `rmsNorm`. With y = (x - mean) rstd and g = dOut gain:
 * dX = rstd (g - mean(g) - y mean(g y)) + dSum, without mean(g) for RMS norm, dGain = the sum over the rows of dOut y, and
 * dBias = that of dOut. Sums are float32, in an order that depends on the shapes alone.
 *
 * @internal
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function normBackward<D extends FloatDType, S extends Shape>({
  x,
  gain,
  bias,
  mean,
  rstd,
  dOut,
  dSum,
  wanted,
}: NormBackwardArguments<D, S>): NormGradients<D, S> {
  checkRows(x, 'x');
  const { rows, dim } = rowsOf(x.shape);
  if (gain !== undefined) checkParameter(gain, 'gain', dim);
  if (bias !== undefined) checkParameter(bias, 'bias', dim);
  checkLike(dOut, 'dOut', x as Tensor, 'x');
  if (dSum !== undefined) checkLike(dSum, 'dSum', x as Tensor, 'x');
  const { backend } = x;
  checkUsable(backend, { x, gain, mean, rstd, dOut, dSum } as Record<string, Tensor | undefined>);
  const operands = new NormOperands(backend);
  try {
    return allocating(backend, (allocate) => {
      const result = {
        dX: wanted.x ? (allocate(x.shape, x.dtype) as Tensor<D, S>) : undefined,
        dGain: wanted.gain && gain ? allocate([dim], gain.dtype) : undefined,
        dBias: wanted.bias && bias ? allocate([dim], bias.dtype) : undefined,
      };
      const elements = result.dGain || result.dBias ? partialElements(rows, dim) : 0;
      const partial = operands.scratch(elements);
      backend.launch(normBackwardOperation, {
        x: operands.rows(x as Tensor, 'x'),
        gain: gain && operands.flat(gain, 'gain'),
        mean: mean?.flat('mean', backend),
        rstd: rstd.flat('rstd', backend),
        dOut: operands.rows(dOut as Tensor, 'dOut'),
        dSum: dSum && operands.rows(dSum as Tensor, 'dSum'),
        dX: result.dX?.flat('dX', backend),
        dGain: result.dGain?.flat('dGain', backend),
        dBias: result.dBias?.flat('dBias', backend),
        partial,
        rows,
        dim,
        centered: mean !== undefined,
        epsilon: 0,
      });
      return result;
    });
  } finally {
    operands.dispose();
  }
}

interface AnyOptions {
  readonly epsilon?: number;
  readonly residual?: Tensor;
}

/** The public forms: `out` alone, or with a residual both tensors. */
function normalise(
  x: Tensor,
  gain: Tensor | undefined,
  bias: Tensor | undefined,
  options: AnyOptions,
  centered: boolean,
): Tensor | ResidualNorm<FloatDType, Shape> {
  checkObject(options, 'options');
  checkOptions(options, ['epsilon', 'residual']);
  const { epsilon = centered ? 1e-5 : 1e-6, residual } = options;
  const inputs = [x, residual, gain, bias];
  const records = needsRecord(inputs);
  const { out, sum, mean, rstd } = normForward(x, { gain, bias, residual, epsilon, centered }, records);
  if (records && rstd) {
    const kept: Tensor[] = [sum ?? x, rstd];
    for (const t of [mean, gain, bias]) if (t) kept.push(t);
    const name = centered ? 'layerNorm' : 'rmsNorm';
    record(name, inputs, sum ? [out, sum] : [out], kept, ([dOut, dSum], [own, ownRstd, ...others], needed) => {
      const values = own as Tensor;
      const take = (t: Tensor | undefined) => t && (others.shift() as Tensor);
      const { dX, dGain, dBias } = normBackward({
        x: values,
        rstd: ownRstd as Tensor<'float32'>,
        mean: take(mean) as Tensor<'float32'> | undefined,
        gain: take(gain),
        bias: take(bias),
        dOut: dOut ?? filled(values.backend, values.shape, values.dtype, 0),
        dSum,
        wanted: {
          x: needed[0] === true || needed[1] === true,
          gain: needed[2] === true && gain !== undefined,
          bias: needed[3] === true && bias !== undefined,
        },
      });
      return [dX, needed[1] ? dX?.detach() : undefined, dGain, dBias];
    });
    rstd.dispose();
    mean?.dispose();
  }
  return sum ? { out, sum } : out;
}

/**
 * Layer norm along the last axis: out = (x - mean) / sqrt(variance + epsilon) * gain + bias, with the mean and the variance
 * of each row in float32 (Ba, Kiros and Hinton, "Layer Normalization", 2016). With `residual`, x + residual is made in the
 * same pass, normalised, and returned beside the result. NaN and Infinity make NaN of their row.
 *
 * @param x [..., dim], of any strides
 * @param gain [dim], of any dtype. Default: ones
 * @param bias [dim], of any dtype. Default: zeros
 * @returns a contiguous tensor of the shape and dtype of `x`; with `residual` { out, sum }
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function layerNorm<D extends FloatDType, S extends Shape>(
  x: Tensor<D, S>,
  gain: Tensor<FloatDType, Shape> | undefined,
  bias: Tensor<FloatDType, Shape> | undefined,
  options: ResidualNormOptions<D, S>,
): ResidualNorm<D, S>;
export function layerNorm<D extends FloatDType, S extends Shape>(
  x: Tensor<D, S>,
  gain?: Tensor<FloatDType, Shape>,
  bias?: Tensor<FloatDType, Shape>,
  options?: NormOptions,
): Tensor<D, S>;
export function layerNorm(
  x: Tensor,
  gain?: Tensor,
  bias?: Tensor,
  options: AnyOptions = {},
): Tensor | ResidualNorm<FloatDType, Shape> {
  return normalise(x, gain, bias, options, true);
}

/**
 * RMS norm along the last axis: out = x / sqrt(mean of x^2 + epsilon) * gain, with the mean of each row in float32 (Zhang and
 * Sennrich, "Root Mean Square Layer Normalization", 2019). With `residual`, x + residual is made in the same pass, normalised,
 * and returned beside the result.
 *
 * @param x [..., dim], of any strides
 * @param gain [dim], of any dtype. Default: ones
 * @returns a contiguous tensor of the shape and dtype of `x`; with `residual` { out, sum }
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function rmsNorm<D extends FloatDType, S extends Shape>(
  x: Tensor<D, S>,
  gain: Tensor<FloatDType, Shape> | undefined,
  options: ResidualNormOptions<D, S>,
): ResidualNorm<D, S>;
export function rmsNorm<D extends FloatDType, S extends Shape>(
  x: Tensor<D, S>,
  gain?: Tensor<FloatDType, Shape>,
  options?: NormOptions,
): Tensor<D, S>;
export function rmsNorm(x: Tensor, gain?: Tensor, options: AnyOptions = {}): Tensor | ResidualNorm<FloatDType, Shape> {
  return normalise(x, gain, undefined, options, false);
}
