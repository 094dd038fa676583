import { checkBoolean, checkInteger, checkOptions, checkWord } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { optionError, shapeError, show } from '../base/errors.js';
import { type Initial, type ModuleOptions, makeWeight, moduleOptionNames, pick, Seeds } from '../nn/initial.js';
import { Module } from '../nn/module.js';
import { conv1d } from '../ops/conv.js';
import { mul } from '../ops/elementwise.js';
import { softmax } from '../ops/softmax.js';
import { scope } from '../tape/scope.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { narrow } from './inputs.js';
import { checkSequence, type Weight, weightsOf } from './weights.js';

export interface LightweightConvWeights {
  /** A kernel for each head: [heads, k]. */
  readonly kernels: Weight;
  /** [channels] */
  readonly bias?: Weight | undefined;
}

export interface LightweightConvOptions {
  /** Whether a position sees none behind it; otherwise itself is in the middle, for even k at tap k / 2 - 1. Default false. */
  readonly causal?: boolean;
  /** Whether kernels are softmaxes of the weights over taps. Default true. */
  readonly weightSoftmax?: boolean;
  /**
   * Which channels a head has: those in a row (default), or every heads-th one, as in fairseq's form for [batch, channels,
   * seq].
   */
  readonly channels?: 'consecutive' | 'interleaved';
}

const optionNames = ['causal', 'weightSoftmax', 'channels'] as const;

/** @throws ERR_OPTION */
export function checkHeadsDivide(channels: number, heads: number): void {
  if (heads === 0 || channels % heads !== 0)
    throw shapeError(`x has ${channels} channels and there are ${heads} heads; channels must be a multiple of heads`);
}

/**
 * Lightweight convolution (Wu et al., "Pay Less Attention with Lightweight and Dynamic Convolutions", 2019, arXiv:1901.10430)
 * as fairseq has it, without the projections around it: a depthwise convolution whose channels share kernels by heads, out[t,
 * c] = sum over taps j of softmax(kernels[h(c)])[j] x[t + j - left, c] + bias[c], x being 0 outside, left = k - 1 with `causal`
 * and floor((k - 1) / 2) without.
 *
 * @param x [batch, seq, channels]
 * @param weights of any floating-point dtype; they are used in that of x
 * @returns of the shape and dtype of x
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function lightweightConv<D extends FloatDType>(
  x: Tensor<D, Shape>,
  weights: LightweightConvWeights,
  options: LightweightConvOptions = {},
): Tensor<D, Shape> {
  checkSequence(x, 'x', 'batch, seq, channels');
  const source = x as Tensor;
  const [, seq, channels] = source.shape;
  const check = weightsOf(weights, ['kernels', 'bias'], source);
  check('kernels', [-1, -1], 'heads, k');
  check('bias', [channels], 'channels', 'optional');
  checkOptions(options, optionNames);
  const { causal = false, weightSoftmax = true, channels: order = 'consecutive' } = options;
  checkBoolean(causal, 'causal');
  checkBoolean(weightSoftmax, 'weightSoftmax');
  checkWord(order, 'channels', ['consecutive', 'interleaved']);
  const [heads, taps] = weights.kernels.shape;
  if (taps === 0) throw shapeError(`weights.kernels has shape ${show(weights.kernels.shape)}; k must be at least 1`);
  checkHeadsDivide(channels, heads);
  const each = channels / heads;
  return scope(() => {
    // A convolution of nothing has no place for its kernel.
    if (seq === 0) return mul(source, 1);
    const shared = narrow(weightSoftmax ? softmax(weights.kernels) : weights.kernels, source);
    const kernels =
      order === 'consecutive'
        ? shared.contiguous().reshape([heads, 1, taps]).expand([heads, each, taps])
        : shared.expand([each, heads, taps]);
    const out = conv1d(source.transpose(1, 2), kernels.contiguous().reshape([channels, 1, taps]) as Tensor, {
      groups: channels,
      padding: causal ? 'causal' : 'same',
      ...(weights.bias && { bias: weights.bias }),
    });
    return out.transpose(1, 2).contiguous();
  }) as Tensor<D, Shape>;
}

export interface LightweightConvLayerOptions extends ModuleOptions, LightweightConvOptions {
  readonly width: number;
  /** A divisor of the width. Default 1. */
  readonly heads?: number;
  readonly kernelSize: number;
  /** Default false. */
  readonly bias?: boolean;
  /** Of the kernels. Default Glorot's uniform numbers, as the authors'. */
  readonly initial?: Initial;
}

const names = [
  ...moduleOptionNames,
  ...optionNames,
  ...(['width', 'heads', 'kernelSize', 'bias', 'initial'] as const),
] as const satisfies readonly (keyof LightweightConvLayerOptions)[];

/** A layer of `lightweightConv` (Wu et al. 2019): x [batch, seq, width]. */
export class LightweightConv extends Module {
  /** [heads, k] */
  kernels: Tensor;
  bias: Tensor | undefined;
  readonly options: LightweightConvOptions;

  constructor(options: LightweightConvLayerOptions) {
    super();
    checkOptions(options, names);
    const { width, heads = 1, kernelSize, bias = false } = options;
    checkInteger(width, 'width', 1);
    checkInteger(heads, 'heads', 1);
    checkInteger(kernelSize, 'kernelSize', 1);
    checkBoolean(bias, 'bias');
    if (width % heads !== 0) throw optionError(`width ${width} is no multiple of heads ${heads}`);
    this.options = pick(options, optionNames);
    const all = { ...pick(options, moduleOptionNames), seed: Seeds.of(options.seed) };
    // Glorot's of a tensor [heads, 1, k], whose last axis PyTorch counts as places.
    const initial = options.initial ?? { kind: 'uniform', bound: Math.sqrt(6 / (kernelSize * (1 + heads))) };
    try {
      this.kernels = makeWeight([heads, kernelSize], initial, all);
      this.bias = bias ? makeWeight([width], { kind: 'zeros' }, all) : undefined;
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  forward(x: Tensor): Tensor {
    return lightweightConv(x, { kernels: this.kernels, bias: this.bias }, this.options);
  }
}
