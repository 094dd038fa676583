import { checkBoolean, checkInteger, checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { optionError } from '../base/errors.js';
import { type Initial, type ModuleOptions, makeWeight, moduleOptionNames, pick, Seeds } from '../nn/initial.js';
import { Linear } from '../nn/layers.js';
import { Module } from '../nn/module.js';
import { add, fused, mul, where } from '../ops/elementwise.js';
import { softmax } from '../ops/softmax.js';
import { pad, split } from '../ops/split.js';
import { unfold } from '../ops/unfold.js';
import { filled } from '../tape/arithmetic.js';
import { scope } from '../tape/scope.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { narrow, wide } from './inputs.js';
import { checkHeadsDivide } from './lightweightConv.js';
import { checkSequence, project, type Weight, weightsOf } from './weights.js';

export interface DynamicConvWeights {
  /**
   * To the kernels of a position, those of one head after the other: [heads k, channels]; with `inputProjection` [channels +
   * heads k, channels].
   */
  readonly kernels: Weight;
  /** One for each row of it. */
  readonly kernelsBias?: Weight | undefined;
  /** Added to the result: [channels]. */
  readonly bias?: Weight | undefined;
}

export interface DynamicConvOptions {
  readonly heads: number;
  /** Taps of a kernel, k. */
  readonly kernelSize: number;
  /** Whether a position sees none behind it; otherwise itself is in the middle, for even k at tap k / 2 - 1. Default false. */
  readonly causal?: boolean;
  /** Whether kernels are softmaxes over taps. Default true. */
  readonly weightSoftmax?: boolean;
  /** Whether the softmax is over the taps within the sequence alone. Default false: those outside keep their share of zeros. */
  readonly renormPadding?: boolean;
  /** Whether the first `channels` results of the projection stand for x in the convolution. Default false. */
  readonly inputProjection?: boolean;
}

const optionNames = ['heads', 'kernelSize', 'causal', 'weightSoftmax', 'renormPadding', 'inputProjection'] as const;

const plusTap = fused(function plusTap(sum, x, weight) {
  return sum.add(x.mul(weight));
});

/** Which taps of which positions fall into the sequence: 1 or 0 in the dtype of x, [seq, 1, k]. */
function withinSequence(seq: number, taps: number, left: number, { backend, dtype }: Tensor): Tensor {
  const ones = pad(filled(backend, [seq], dtype, 1), [[left, taps - 1 - left]]);
  return unfold(ones, 0, taps, 1).contiguous().reshape([seq, 1, taps]) as Tensor;
}

/**
 * Dynamic convolution (Wu et al., "Pay Less Attention with Lightweight and Dynamic Convolutions", 2019, arXiv:1901.10430) as
 * fairseq has it, without the projections around it: every position makes its own kernels, w[t, h] = softmax(W_h x[t] + b_h)
 * over taps, and out[t, c] = sum over taps j of w[t, h(c), j] x[t + j - left, c] + bias[c], where x is 0 outside, heads have
 * consecutive channels, and left = k - 1 with `causal`, floor((k - 1) / 2) without. One pass over x for each tap: nothing has k
 * times its size.
 *
 * @param x [batch, seq, channels]
 * @param weights of any floating-point dtype; they are used in that of x
 * @returns of the shape and dtype of x
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function dynamicConv<D extends FloatDType>(
  x: Tensor<D, Shape>,
  weights: DynamicConvWeights,
  options: DynamicConvOptions,
): Tensor<D, Shape> {
  checkSequence(x, 'x', 'batch, seq, channels');
  const source = x as Tensor;
  const [batch, seq, channels] = source.shape;
  checkOptions(options, optionNames);
  const { heads, kernelSize: taps, causal = false, weightSoftmax = true } = options;
  const { renormPadding = false, inputProjection = false } = options;
  checkInteger(heads, 'heads', 1);
  checkInteger(taps, 'kernelSize', 1);
  for (const [name, value] of Object.entries({ causal, weightSoftmax, renormPadding, inputProjection }))
    checkBoolean(value, name);
  checkHeadsDivide(channels, heads);
  const check = weightsOf(weights, ['kernels', 'kernelsBias', 'bias'], source);
  const rows = heads * taps + (inputProjection ? channels : 0);
  check('kernels', [rows, channels], `${inputProjection ? 'channels + ' : ''}heads k, channels`);
  check('kernelsBias', [rows], 'rows of weights.kernels', 'optional');
  check('bias', [channels], 'channels', 'optional');
  const left = causal ? taps - 1 : Math.floor((taps - 1) / 2);
  return scope(() => {
    // Nothing has no windows.
    if (seq === 0) return mul(source, 1);
    const made = project(source, weights.kernels, weights.kernelsBias);
    const [input, flat] = inputProjection
      ? (split(made, [channels, heads * taps], -1) as [Tensor, Tensor])
      : [source, made];
    let kernels: Tensor = flat.contiguous().reshape([batch, seq, heads, taps]);
    if (renormPadding && weightSoftmax)
      kernels = where(withinSequence(seq, taps, left, source), kernels, Number.NEGATIVE_INFINITY) as Tensor;
    // In float32, and so are the sums.
    kernels = wide(weightSoftmax ? softmax(kernels) : kernels);
    const none = [0, 0] as const;
    const padded = pad(input, [none, [left, taps - 1 - left], none]);
    const byHead = padded.reshape([batch, seq + taps - 1, heads, channels / heads]);
    const at = (tap: number) => [byHead.slice(1, tap, tap + seq), kernels.slice(3, tap, tap + 1)] as const;
    let sum = mul(...at(0)) as Tensor;
    for (let tap = 1; tap < taps; tap++) sum = plusTap(sum, ...at(tap));
    const out = sum.reshape([batch, seq, channels]);
    return narrow(weights.bias ? (add(out, wide(weights.bias)) as Tensor) : out, source);
  }) as Tensor<D, Shape>;
}

export interface DynamicConvLayerOptions extends ModuleOptions, DynamicConvOptions {
  readonly width: number;
  /** Of the convolution. Default false. */
  readonly bias?: boolean;
  /** Of the projection to kernels. Default PyTorch's: see `Linear`. */
  readonly initial?: Initial;
}

const names = [...moduleOptionNames, ...optionNames, 'width', 'bias', 'initial'] as const;

/** A layer of `dynamicConv` (Wu et al. 2019): x [batch, seq, width]. */
export class DynamicConv extends Module {
  readonly kernels: Linear;
  bias: Tensor | undefined;
  readonly options: DynamicConvOptions;

  constructor(options: DynamicConvLayerOptions) {
    super();
    checkOptions(options, names);
    const { width, heads, kernelSize, inputProjection = false, bias = false } = options;
    checkInteger(width, 'width', 1);
    checkInteger(heads, 'heads', 1);
    checkInteger(kernelSize, 'kernelSize', 1);
    checkBoolean(inputProjection, 'inputProjection');
    checkBoolean(bias, 'bias');
    if (width % heads !== 0) throw optionError(`width ${width} is no multiple of heads ${heads}`);
    this.options = pick(options, optionNames);
    const all = { ...pick(options, [...moduleOptionNames, 'initial']), seed: Seeds.of(options.seed) };
    try {
      this.kernels = new Linear(width, heads * kernelSize + (inputProjection ? width : 0), { ...all, bias: false });
      this.bias = bias ? makeWeight([width], { kind: 'zeros' }, pick(all, moduleOptionNames)) : undefined;
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  forward(x: Tensor): Tensor {
    return dynamicConv(x, { kernels: this.kernels.weight, bias: this.bias }, this.options);
  }
}
