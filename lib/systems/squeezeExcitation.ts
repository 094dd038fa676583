import { checkBoolean, checkInteger, checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';
import { type Initial, type ModuleOptions, moduleOptionNames, pick, Seeds } from '../nn/initial.js';
import { Linear } from '../nn/layers.js';
import { Module } from '../nn/module.js';
import { fused, relu } from '../ops/elementwise.js';
import { mean } from '../ops/reduce.js';
import { scope } from '../tape/scope.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { project, type Weight, weightsOf } from './weights.js';

/** Matrices are [out, in]. */
export interface SqueezeExcitationWeights {
  /** [hidden, channels], hidden = channels / reduction in the paper. */
  readonly reduce: Weight;
  /** [hidden] */
  readonly reduceBias?: Weight | undefined;
  /** [channels, hidden] */
  readonly expand: Weight;
  /** [channels] */
  readonly expandBias?: Weight | undefined;
}

const excited = fused(function excite(x, logits) {
  return x.mul(logits.sigmoid());
});

/** x sigmoid(logits) with one logit for each channel: x [batch, channels, ...places], logits [batch, channels]. */
export function exciteChannels(x: Tensor, logits: Tensor): Tensor {
  const [batch, channels, ...places] = x.shape;
  return excited(x, logits.reshape([batch, channels, ...places.map(() => 1)]));
}

/** [batch, channels, ...places] with at least one axis of places. @throws ERR_SHAPE, ERR_OPTION, ERR_DTYPE */
export function checkPlaces(x: unknown): asserts x is Tensor {
  checkTensor(x, 'x');
  if (x.shape.length < 3)
    throw shapeError(`x has shape ${show(x.shape)}; it must be [batch, channels, ...places] with an axis of places`);
}

/** The axes behind batch and channels. */
export const placesOf = ({ shape }: Tensor): number[] => shape.slice(2).map((_, i) => i + 2);

/** @throws ERR_OPTION, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED */
export function checkExcitation(weights: SqueezeExcitationWeights, x: Tensor, argument: string): void {
  const channels = x.shape[1];
  const check = weightsOf(weights, ['reduce', 'reduceBias', 'expand', 'expandBias'], x, argument);
  check('reduce', [-1, channels], 'hidden, channels');
  const hidden = weights.reduce.shape[0];
  check('reduceBias', [hidden], 'hidden', 'optional');
  check('expand', [channels, hidden], 'channels, hidden');
  check('expandBias', [channels], 'channels', 'optional');
}

/**
 * Squeeze and excitation (Hu et al., "Squeeze-and-Excitation Networks", 2018, arXiv:1709.01507): every channel is multiplied
 * by a gate that is made of the means of all channels, out = x sigmoid(W2 relu(W1 s + b1) + b2), s = the mean of x over its
 * places. The biases may be left out, as moskomule/senet.pytorch does.
 *
 * @param x [batch, channels, ...places], such as [batch, channels, height, width]
 * @param weights of any floating-point dtype; they are used in that of x
 * @returns of the shape and dtype of x
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function squeezeExcitation<D extends FloatDType>(
  x: Tensor<D, Shape>,
  weights: SqueezeExcitationWeights,
): Tensor<D, Shape> {
  checkPlaces(x);
  const source = x as Tensor;
  checkExcitation(weights, source, 'weights');
  return scope(() => {
    const squeezed = mean(source, placesOf(source));
    const reduced = relu(project(squeezed, weights.reduce, weights.reduceBias));
    return exciteChannels(source, project(reduced, weights.expand, weights.expandBias));
  }) as Tensor<D, Shape>;
}

export interface SqueezeExcitationOptions extends ModuleOptions {
  readonly channels: number;
  /** Channels for each number between both layers. Default 16, as in the paper. */
  readonly reduction?: number;
  /** Default false, as in moskomule/senet.pytorch. */
  readonly bias?: boolean;
  /** Of both matrices. Default PyTorch's: see `Linear`. */
  readonly initial?: Initial;
}

const names = [...moduleOptionNames, 'channels', 'reduction', 'bias', 'initial'] as const;

/** A layer of `squeezeExcitation` (Hu et al. 2018): x [batch, channels, ...places]. */
export class SqueezeExcitation extends Module {
  readonly reduce: Linear;
  readonly expand: Linear;

  constructor(options: SqueezeExcitationOptions) {
    super();
    checkOptions(options, names);
    const { channels, reduction = 16, bias = false } = options;
    checkInteger(channels, 'channels', 1);
    checkInteger(reduction, 'reduction', 1, channels);
    checkBoolean(bias, 'bias');
    const all = { ...pick(options, [...moduleOptionNames, 'initial']), bias, seed: Seeds.of(options.seed) };
    const hidden = Math.floor(channels / reduction);
    try {
      this.reduce = new Linear(channels, hidden, all);
      this.expand = new Linear(hidden, channels, all);
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  forward(x: Tensor): Tensor {
    return squeezeExcitation(x, {
      reduce: this.reduce.weight,
      reduceBias: this.reduce.bias,
      expand: this.expand.weight,
      expandBias: this.expand.bias,
    });
  }
}
