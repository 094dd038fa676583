import { checkBoolean, checkInteger, checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { optionError, show } from '../base/errors.js';
import { type Initial, type ModuleOptions, makeWeight, moduleOptionNames, pick } from '../nn/initial.js';
import { Module } from '../nn/module.js';
import { abs, add, fused, square, sub } from '../ops/elementwise.js';
import { rmsNorm } from '../ops/norm.js';
import { mean, sum } from '../ops/reduce.js';
import { scope } from '../tape/scope.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { checkShaped, narrow, wide } from './inputs.js';
import { absMean, perToken, type Quantised, type Quantiser, quantisedProduct, signs } from './quantise.js';
import { checkRows, type Weight } from './weights.js';

const toLength = fused(function toLength(x, squares, least, length) {
  return x.div(squares.maximum(least).sqrt()).mul(length);
});

/** sqrt(dim) x / max(|x|, 1e-12). */
const unitRows = (x: Tensor): Tensor =>
  toLength(x, sum(square(x), -1, { keepDims: true }), 1e-24, Math.sqrt(x.shape[x.shape.length - 1]));

const everyAxis = (t: Tensor) => t.shape.map((_, axis) => axis);

/** sign(W - mean(W)) with one scale, 1 / mean|W|. */
const centeredSigns: Quantiser = (weight) => {
  const over = (t: Tensor) => mean(t, everyAxis(t), { keepDims: true });
  return signs(sub(weight, over(weight)) as Tensor, over(abs(weight)));
};

/** x W^T of quantised rows and weights, of any leading axes. */
function times(x: Tensor, weight: Weight, normalise: (x: Tensor) => Tensor, ofWeight: Quantiser): Tensor {
  const { shape } = x;
  const features = shape[shape.length - 1];
  const rows = shape.slice(0, -1).reduce((product, n) => product * n, 1);
  const flat = normalise(wide(x)).reshape([rows, features]);
  const out = quantisedProduct(flat, wide(weight), perToken, ofWeight);
  return narrow(out.reshape([...shape.slice(0, -1), weight.shape[0]]), x) as Tensor;
}

function checkLinear(x: unknown, weight: unknown): void {
  checkRows(x, 'x');
  checkShaped(weight, 'weight', [-1, x.shape[x.shape.length - 1]], 'outputs, inputs', x);
}

/** Of BitNet b1.58: x / sqrt(mean of x^2 + 1e-6). */
const rms = (x: Tensor): Tensor => rmsNorm(x, undefined, { epsilon: 1e-6 });

/**
 * The linear layer of BitNet b1.58 (Ma et al., "The Era of 1-bit LLMs", 2024, arXiv:2402.17764) as its authors' training notes
 * list it: with xn = x / sqrt(mean of x^2 + 1e-6), activations of 8 bits for each token, round(xn s), s = 127 / max(max|xn|,
 * 1e-5), and ternary weights, round(W g) within -1 and 1, g = 1 / max(mean|W|, 1e-5): out = (codes of x codes of W^T) / (s g).
 * Gradients go straight through both roundings. Computed in float32.
 *
 * @param x [..., inputs] of rank 2 or more
 * @param weight [outputs, inputs], of any floating-point dtype
 * @returns [..., outputs] of the dtype of x
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function bitLinear158<D extends FloatDType>(x: Tensor<D, Shape>, weight: Weight): Tensor<D, Shape> {
  checkLinear(x, weight);
  return scope(() => times(x as Tensor, weight, rms, absMean)) as Tensor<D, Shape>;
}

/**
 * The codes and scales that `bitLinear158` multiplies: of x round(xn s) with s [..., 1], of the weight -1, 0 or 1 with g [1, 1].
 *
 * @throws as `bitLinear158`
 */
export function bitLinear158Codes(
  x: Tensor<FloatDType, Shape>,
  weight: Weight,
): { readonly x: Quantised; readonly weight: Quantised } {
  checkLinear(x, weight);
  return scope(() => ({
    x: perToken(rms(wide(x)).detach()),
    weight: absMean(wide(weight).detach()),
  }));
}

/**
 * The linear layer of the first BitNet (Wang et al., "BitNet", 2023, arXiv:2310.11453) as kyegomez/BitNet has it: with
 * xn = sqrt(inputs) x / max(|x|, 1e-12), activations of 8 bits for each token as in `bitLinear158`, and weights
 * sign(W - mean(W)) mean|W|. Gradients go straight through both, to all of W alike. Computed in float32.
 *
 * @param x [..., inputs] of rank 2 or more
 * @param weight [outputs, inputs], of any floating-point dtype
 * @returns [..., outputs] of the dtype of x
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function bitLinear1<D extends FloatDType>(x: Tensor<D, Shape>, weight: Weight): Tensor<D, Shape> {
  checkLinear(x, weight);
  return scope(() => times(x as Tensor, weight, unitRows, centeredSigns)) as Tensor<D, Shape>;
}

export interface BitLinearOptions extends ModuleOptions {
  /** 1.58 (default): `bitLinear158`; 1: `bitLinear1`. */
  readonly bits?: 1.58 | 1;
  /** Added to the result in full precision. Default false. */
  readonly bias?: boolean;
  /** Of the weight. Default PyTorch's: uniform within 1 / sqrt(inputs). */
  readonly initial?: Initial;
}

/** A linear layer whose weights and activations are quantised in every pass: x [..., inputs] of rank 2 or more. */
export class BitLinear extends Module {
  /** [outputs, inputs] */
  weight: Tensor;
  bias: Tensor | undefined;
  readonly bits: 1.58 | 1;

  constructor(
    readonly inputs: number,
    readonly outputs: number,
    options: BitLinearOptions = {},
  ) {
    super();
    checkInteger(inputs, 'inputs', 1);
    checkInteger(outputs, 'outputs', 1);
    checkOptions(options, [...moduleOptionNames, 'bits', 'bias', 'initial']);
    const { bits = 1.58, bias = false, initial = { kind: 'uniform', bound: 1 / Math.sqrt(inputs) } } = options;
    if (bits !== 1.58 && bits !== 1) throw optionError(`bits is ${show(bits)}; it must be 1.58 or 1`);
    checkBoolean(bias, 'bias');
    this.bits = bits;
    const all = pick(options, moduleOptionNames);
    try {
      this.weight = makeWeight([outputs, inputs], initial, all);
      this.bias = bias ? makeWeight([outputs], { kind: 'zeros' }, all) : undefined;
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  forward(x: Tensor): Tensor {
    const { weight, bias } = this;
    return scope(() => {
      const out = this.bits === 1 ? bitLinear1(x, weight) : bitLinear158(x, weight);
      return bias ? (add(out, narrow(bias, x)) as Tensor) : out;
    });
  }
}
