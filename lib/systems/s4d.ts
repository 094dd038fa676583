import { checkInteger, checkOptions, checkWord } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { optionError, shapeError, show } from '../base/errors.js';
import { tensor } from '../devices/create.js';
import type { DeviceName } from '../devices/registry.js';
import { diagonalScan } from '../linear/diagonalScan.js';
import type { Scanned } from '../linear/scanOperands.js';
import { cast } from '../ops/cast.js';
import { conv1d } from '../ops/conv.js';
import { full } from '../ops/create.js';
import { add, fused, gelu } from '../ops/elementwise.js';
import { embedding, type Indices } from '../ops/embedding.js';
import { matmul } from '../ops/matmul.js';
import { pad, stack, unsqueeze } from '../ops/split.js';
import { scope } from '../tape/scope.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';

/** Of each channel, a diagonal matrix A = -e^logAReal + i AImag in conjugate pairs, each of which is here once. */
export interface S4DParameters {
  /** [channels]: the logarithm of the step. */
  readonly logDt: Tensor<FloatDType, Shape>;
  /** [channels, pairs] */
  readonly logAReal: Tensor<FloatDType, Shape>;
  readonly AImag: Tensor<FloatDType, Shape>;
  /** [channels, pairs, 2]: how the state is read, real and imaginary part. B is 1. */
  readonly C: Tensor<FloatDType, Shape>;
  /** [channels]: D u is added to the result. Default: nothing is. */
  readonly D?: Tensor<FloatDType, Shape>;
}

export interface S4DOptions {
  /**
   * 'recurrence', in time that grows with the pairs, or 'convolution' with `s4dKernel`, in time that grows with the square of the
   * length, as training code has it. Both are the same up to rounding; the recurrence is the faster one from some 20 positions
   * on, with 32 pairs, on processors. Default 'recurrence'.
   */
  readonly form?: 'recurrence' | 'convolution';
  /** float32 [batch, channels, pairs, 2], the `state` of an earlier call. Recurrence only. Default: zeros. */
  readonly initialState?: Tensor<'float32', Shape>;
}

const names = ['logDt', 'logAReal', 'AImag', 'C', 'D'] as const;

function check(parameters: S4DParameters): void {
  checkOptions(parameters, names, 'parameters');
  for (const name of names)
    if (name !== 'D' || parameters.D !== undefined) checkTensor(parameters[name], `parameters.${name}`);
  const { logAReal, AImag, C, logDt, D } = parameters;
  if (logAReal.shape.length !== 2)
    throw shapeError(`logAReal has shape ${show(logAReal.shape)}; it must be [channels, pairs]`);
  const [channels, pairs] = logAReal.shape;
  for (const [name, t, shape] of [
    ['logDt', logDt, [channels]],
    ['AImag', AImag, [channels, pairs]],
    ['C', C, [channels, pairs, 2]],
    ['D', D ?? logDt, [channels]],
  ] as const)
    if (show(t.shape) !== show(shape))
      throw shapeError(`${name} has shape ${show(t.shape)}; it must be ${show(shape)}, as logAReal has it`);
}

// With x + i y = dt A: e^(x + i y), and (e^(x + i y) - 1) / A without cancellation, e^(x + i y) - 1 being
// expm1(x) cos y - 2 sin^2(y / 2) + i e^x sin y.
const real = (logA: Formula, logDt: Formula) => logA.exp().neg().mul(logDt.exp());
type Formula = Parameters<Parameters<typeof fused>[0]>[0];

const factorRe = fused((logDt, logA, imag) => real(logA, logDt).exp().mul(imag.mul(logDt.exp()).cos()));
const factorIm = fused((logDt, logA, imag) => real(logA, logDt).exp().mul(imag.mul(logDt.exp()).sin()));
const changeRe = fused((logDt, logA, imag) => {
  const [x, y] = [real(logA, logDt), imag.mul(logDt.exp())];
  const half = y.mul(0.5).sin();
  return x.expm1().mul(y.cos()).sub(half.mul(half).mul(2));
});
/** (re + i im) / (-e^logA + i imag) */
const quotientRe = fused((re, im, logA, imag) => {
  const a = logA.exp().neg();
  return re
    .mul(a)
    .add(im.mul(imag))
    .div(a.mul(a).add(imag.mul(imag)));
});
const quotientIm = fused((re, im, logA, imag) => {
  const a = logA.exp().neg();
  return im
    .mul(a)
    .sub(re.mul(imag))
    .div(a.mul(a).add(imag.mul(imag)));
});
const productRe = fused((aRe, aIm, bRe, bIm) => aRe.mul(bRe).sub(aIm.mul(bIm)));
const productIm = fused((aRe, aIm, bRe, bIm) => aRe.mul(bIm).add(aIm.mul(bRe)));
const withSkip = fused((y, u, skip) => y.add(u.mul(skip)));
const gated = fused((value, gate) => value.mul(gate.sigmoid()));

interface Pair {
  readonly re: Tensor;
  readonly im: Tensor;
}

const pairOf = (t: Tensor): Pair => ({ re: t.select(-1, 0) as Tensor, im: t.select(-1, 1) as Tensor });
const together = ({ re, im }: Pair): Tensor => stack([re, im], -1) as Tensor;
const product = (a: Pair, b: Pair): Pair => ({
  re: productRe(a.re, a.im, b.re, b.im),
  im: productIm(a.re, a.im, b.re, b.im),
});

/** By zero-order hold: the factor of a position, and how u enters the state, both [channels, pairs]. */
function discretise({ logDt, logAReal, AImag }: S4DParameters): { readonly factor: Pair; readonly input: Pair } {
  const logStep = unsqueeze(logDt as Tensor, 1) as Tensor;
  const factor = { re: factorRe(logStep, logAReal, AImag), im: factorIm(logStep, logAReal, AImag) };
  const re = changeRe(logStep, logAReal, AImag);
  const input = { re: quotientRe(re, factor.im, logAReal, AImag), im: quotientIm(re, factor.im, logAReal, AImag) };
  return { factor, input };
}

/** What of a state becomes a result: C and how u entered, of a pair and its conjugate. */
function readout({ C }: S4DParameters, input: Pair): Tensor {
  const { re, im } = product(pairOf(C as Tensor), input);
  return together({ re: add(re, re) as Tensor, im: add(im, im) as Tensor });
}

/** The kernel as [length, channels]. */
function kernelInPositions(parameters: S4DParameters, length: number): Tensor {
  const { factor, input } = discretise(parameters);
  const channels = parameters.logAReal.shape[0];
  const device = parameters.logAReal.device as DeviceName;
  // An impulse, to which the recurrence answers with its kernel.
  const first = full([1, Math.min(1, length), channels], 1, { device });
  const impulse = pad(first as Tensor, [
    [0, 0],
    [0, Math.max(0, length - 1)],
    [0, 0],
  ]);
  const { out } = diagonalScan(impulse, together(factor), readout(parameters, input));
  return out.select(0, 0) as Tensor;
}

/**
 * The convolution kernel of S4D: K[c, l] = 2 Re(the sum over pairs of C (e^(dt A) - 1) / A e^(dt A l)).
 *
 * @param length how many positions of it
 * @returns float32 [channels, length]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function s4dKernel(parameters: S4DParameters, length: number): Tensor<'float32', Shape> {
  check(parameters);
  checkInteger(length, 'length', 0);
  return scope(() => {
    const kernel = kernelInPositions(parameters, length).transpose(0, 1) as Tensor;
    return kernel.contiguous() as Tensor as Tensor<'float32', Shape>;
  });
}

function byConvolution(u: Tensor, parameters: S4DParameters): Tensor {
  const [, channels, length] = u.shape;
  if (length === 0) return u.contiguous() as Tensor;
  const device = u.device as DeviceName;
  // conv1d does not turn kernels over.
  const places = tensor(
    Int32Array.from({ length }, (_, i) => length - 1 - i),
    [length],
    { device, dtype: 'int32' },
  );
  const reversed = embedding(kernelInPositions(parameters, length), places as Indices);
  const weights = cast(unsqueeze(reversed.transpose(0, 1) as Tensor, 1) as Tensor, u.dtype);
  return conv1d(u, weights as Tensor, { padding: 'causal', groups: channels }) as Tensor;
}

/**
 * S4D (Gu, Gupta, Goel and Re, "On the Parameterization and Initialization of Diagonal State Space Models", 2022), by zero-order
 * hold, in its authors' layout: x_t = e^(dt A) x_{t-1} + (e^(dt A) - 1) / A u_t, and out_t = 2 Re(C x_t) + D u_t, for each
 * channel. `diagonalScan` is the recurrence with channels on the last axis, and copies nothing.
 *
 * @param u [batch, channels, length]
 * @returns `out` of the shape and dtype of u, and `state`, the last x, float32 [batch, channels, pairs, 2]; none of a
 *   convolution
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function s4d<D extends FloatDType, S extends Shape>(
  u: Tensor<D, S>,
  parameters: S4DParameters,
  options: S4DOptions & { readonly form: 'convolution' },
): { readonly out: Tensor<D, S>; readonly state: undefined };
export function s4d<D extends FloatDType, S extends Shape>(
  u: Tensor<D, S>,
  parameters: S4DParameters,
  options?: S4DOptions & { readonly form?: 'recurrence' },
): Scanned<D, S>;
export function s4d<D extends FloatDType, S extends Shape>(
  u: Tensor<D, S>,
  parameters: S4DParameters,
  options: S4DOptions = {},
): { readonly out: Tensor<D, S>; readonly state: Tensor<'float32', Shape> | undefined } {
  const input = u as Tensor as unknown;
  checkTensor(input, 'u');
  check(parameters);
  checkOptions(options, ['form', 'initialState']);
  const { form = 'recurrence', initialState } = options;
  checkWord(form, 'form', ['recurrence', 'convolution']);
  if (initialState !== undefined) checkTensor(initialState, 'initialState');
  if (initialState !== undefined && form === 'convolution')
    throw optionError("initialState goes with form 'recurrence'; a convolution begins with zeros");
  const channels = parameters.logAReal.shape[0];
  if (input.shape.length !== 3 || input.shape[1] !== channels)
    throw shapeError(`u has shape ${show(input.shape)}; it must be [batch, ${channels}, length]`);
  return scope(() => {
    const finish = (y: Tensor) => {
      if (!parameters.D) return y;
      const skip = unsqueeze(parameters.D as Tensor, 1) as Tensor;
      return cast(withSkip(y, input, skip), input.dtype) as Tensor;
    };
    if (form === 'convolution')
      return { out: finish(byConvolution(input, parameters)) as Tensor as unknown as Tensor<D, S>, state: undefined };
    const { factor, input: enters } = discretise(parameters);
    // The scan has the state without the factor by which u enters, which is in how it is read.
    const before =
      initialState &&
      together({
        re: dividedRe(initialState.select(-1, 0), initialState.select(-1, 1), enters.re, enters.im),
        im: dividedIm(initialState.select(-1, 0), initialState.select(-1, 1), enters.re, enters.im),
      });
    const { out, state } = diagonalScan(
      input.transpose(1, 2) as Tensor,
      together(factor),
      readout(parameters, enters),
      before ? { initialState: before as Tensor as Tensor<'float32', Shape> } : {},
    );
    return {
      out: finish(out.transpose(1, 2) as Tensor) as unknown as Tensor<D, S>,
      state: together(product(pairOf(state as Tensor), enters)) as Tensor as Tensor<'float32', Shape>,
    };
  });
}

const dividedRe = fused((aRe, aIm, bRe, bIm) =>
  aRe
    .mul(bRe)
    .add(aIm.mul(bIm))
    .div(bRe.mul(bRe).add(bIm.mul(bIm))),
);
const dividedIm = fused((aRe, aIm, bRe, bIm) =>
  aIm
    .mul(bRe)
    .sub(aRe.mul(bIm))
    .div(bRe.mul(bRe).add(bIm.mul(bIm))),
);

export interface S4DOutput<D extends FloatDType = FloatDType> {
  /** [2 channels, channels]: y = W x + b at every position. */
  readonly Wout: Tensor<D, Shape>;
  /** [2 channels] */
  readonly bout: Tensor<FloatDType, Shape>;
}

/**
 * What follows `s4d` in its block: gelu, a linear layer to twice the channels, and GLU, the first half times the sigmoid of the
 * second.
 *
 * @param out [batch, channels, length], what `s4d` returned
 * @returns [batch, channels, length]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function s4dOutput<D extends FloatDType, S extends Shape>(
  out: Tensor<D, S>,
  { Wout, bout }: S4DOutput<D>,
): Tensor<D, S> {
  checkTensor(Wout, 'Wout');
  checkTensor(bout, 'bout');
  return scope(() => {
    const bias = unsqueeze(bout as Tensor, 1) as Tensor;
    const both = add(matmul(Wout as Tensor, gelu(out as Tensor)), bias) as Tensor;
    const half = both.shape[1] / 2;
    const result = gated(both.slice(1, 0, half), both.slice(1, half, 2 * half));
    return cast(result, (out as Tensor).dtype) as Tensor as unknown as Tensor<D, S>;
  });
}
