import { checkArray, checkBoolean, checkInteger, checkNumber, checkOptions, checkWord } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { optionError, shapeError, show } from '../base/errors.js';
import { type Initial, type ModuleOptions, makeWeight, moduleOptionNames, pick, Seeds } from '../nn/initial.js';
import { Linear } from '../nn/layers.js';
import { Module } from '../nn/module.js';
import { concat } from '../ops/concat.js';
import { conv2d } from '../ops/conv.js';
import { fused, relu, square } from '../ops/elementwise.js';
import { logSumExp, max, mean, sum, variance } from '../ops/reduce.js';
import { stack } from '../ops/split.js';
import { scope } from '../tape/scope.js';
import { withoutRecording } from '../tape/tape.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { unwatched } from '../tensor/track.js';
import { narrow, wide } from './inputs.js';
import {
  checkExcitation,
  checkPlaces,
  exciteChannels,
  placesOf,
  type SqueezeExcitationWeights,
} from './squeezeExcitation.js';
import { project, type Weight, weightsOf } from './weights.js';

/** What the channel gate makes one number of a channel by: mean, maximum, sqrt(sum x^2) or log(sum e^x) over its places. */
export type ChannelPool = 'avg' | 'max' | 'lp' | 'lse';
const poolNames = ['avg', 'max', 'lp', 'lse'] as const;

export interface ChannelGateOptions {
  /** Default avg and max, as in the paper. */
  readonly pools?: readonly ChannelPool[];
}

// The root of 0 has no slope: channels of nothing but zeros get gradient 0.
const rootOf = fused(function root(x) {
  return x.equal(0).where(0, x.equal(0).where(1, x).sqrt());
});

const pooled: Readonly<Record<ChannelPool, (x: Tensor, places: readonly number[]) => Tensor>> = {
  avg: (x, places) => mean(x, places),
  max: (x, places) => max(x, places),
  lp: (x, places) => rootOf(sum(square(x), places)),
  lse: (x, places) => logSumExp(x, places),
};

/**
 * The channel gate of CBAM: out = x sigmoid(sum over pools of W2 relu(W1 pool(x) + b1) + b2), where each pool makes one
 * number of a channel. See `cbam`.
 *
 * @param x [batch, channels, ...places]
 * @returns of the shape and dtype of x
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function cbamChannelGate<D extends FloatDType>(
  x: Tensor<D, Shape>,
  weights: SqueezeExcitationWeights,
  options: ChannelGateOptions = {},
): Tensor<D, Shape> {
  checkPlaces(x);
  const source = x as Tensor;
  const pools = checkGate(source, weights, options, 'weights');
  return scope(() => {
    const places = placesOf(source);
    const descriptions = stack(pools.map((pool) => pooled[pool](source, places)));
    const hidden = relu(project(descriptions, weights.reduce, weights.reduceBias));
    return exciteChannels(source, sum(project(hidden, weights.expand, weights.expandBias), 0));
  }) as Tensor<D, Shape>;
}

function checkGate(
  x: Tensor,
  weights: SqueezeExcitationWeights,
  options: ChannelGateOptions,
  argument: string,
): readonly ChannelPool[] {
  checkExcitation(weights, x, argument);
  checkOptions(options, ['pools']);
  const { pools = ['avg', 'max'] } = options;
  return checkPools(pools);
}

function checkPools(pools: unknown): readonly ChannelPool[] {
  const known = checkArray(pools, 'pools', 'an array of pools', (pool, name) => checkWord(pool, name, poolNames));
  if (known.length === 0) throw optionError('pools is []; it must have at least one pool');
  return known;
}

/** A convolution of 2 channels to one, and a batch norm of one channel behind it. */
export interface SpatialGateWeights {
  /** [1, 2, k, k] with odd k, 7 in the paper; its channels are the maximum and the mean. */
  readonly conv: Weight;
  /** [1] each. */
  readonly gain: Weight;
  readonly bias: Weight;
  /** Running statistics [1] each, without a gradient; both left out: those of the batch. */
  readonly mean?: Weight | undefined;
  readonly variance?: Weight | undefined;
}

export interface SpatialGateOptions {
  /** Of the batch norm. Default 1e-5. */
  readonly epsilon?: number;
}

const normalised = fused(function batchNorm(x, center, spread, gain, bias, epsilon) {
  return x.sub(center).mul(spread.add(epsilon).rsqrt()).mul(gain).add(bias);
});

const gatedBy = fused(function gate(x, logits) {
  return x.mul(logits.sigmoid());
});

interface Gated {
  readonly out: Tensor;
  /** Of the batch, [], where they were used. */
  readonly statistics?: { readonly mean: Tensor; readonly variance: Tensor };
}

function gatePlaces(x: Tensor, w: SpatialGateWeights, epsilon: number): Gated {
  const description = concat([max(x, 1, { keepDims: true }), mean(x, 1, { keepDims: true })], 1);
  const map = wide(conv2d(description, narrow(w.conv, x) as Tensor, { padding: 'same' }));
  const logitsOf = (center: Tensor, spread: Tensor) =>
    gatedBy(x, narrow(normalised(map, center, spread, wide(w.gain), wide(w.bias), epsilon), x));
  if (w.mean && w.variance) return { out: logitsOf(wide(w.mean.detach()), wide(w.variance.detach())) };
  const statistics = { mean: mean(map), variance: variance(map, undefined, { correction: 0 }) };
  return { out: logitsOf(statistics.mean, statistics.variance), statistics };
}

function checkSpatial(x: Tensor, weights: SpatialGateWeights, argument: string): void {
  const check = weightsOf(weights, ['conv', 'gain', 'bias', 'mean', 'variance'], x, argument);
  check('conv', [1, 2, -1, -1], '1, 2, k, k');
  for (const name of ['gain', 'bias'] as const) check(name, [1], '1');
  for (const name of ['mean', 'variance'] as const) check(name, [1], '1', 'optional');
  const [kh, kw] = weights.conv.shape.slice(2);
  if (kh % 2 === 0 || kw % 2 === 0)
    throw shapeError(`${argument}.conv has shape ${show(weights.conv.shape)}; a kernel must have odd sides`);
  if ((weights.mean === undefined) !== (weights.variance === undefined))
    throw optionError(`${argument} must have both mean and variance, or neither for those of the batch`);
}

function checkImages(x: unknown): asserts x is Tensor {
  checkTensor(x, 'x');
  if (x.shape.length !== 4)
    throw shapeError(`x has shape ${show(x.shape)}; it must be [batch, channels, height, width]`);
}

/**
 * The spatial gate of CBAM: out = x sigmoid(batchNorm(conv([max over channels, mean over channels]))), the convolution padded
 * with zeros to the size of x. See `cbam`.
 *
 * @param x [batch, channels, height, width]
 * @returns of the shape and dtype of x
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function cbamSpatialGate<D extends FloatDType>(
  x: Tensor<D, Shape>,
  weights: SpatialGateWeights,
  options: SpatialGateOptions = {},
): Tensor<D, Shape> {
  checkImages(x);
  const source = x as Tensor;
  checkSpatial(source, weights, 'weights');
  checkOptions(options, ['epsilon']);
  const epsilon = checkNumber(options.epsilon ?? 1e-5, 'epsilon', 0);
  return scope(() => gatePlaces(source, weights, epsilon).out) as Tensor<D, Shape>;
}

export interface CbamWeights {
  readonly channel: SqueezeExcitationWeights;
  /** Left out: no spatial gate. */
  readonly spatial?: SpatialGateWeights;
}

/**
 * The convolutional block attention module (Woo et al., "CBAM", 2018, arXiv:1807.06521) as Jongchan/attention-module has it: a
 * gate for each channel and then one for each place. Equal largest numbers share the gradient of a maximum; the original gives
 * it to the first. The batch norm is computed in float32.
 *
 * @param x [batch, channels, height, width]
 * @param weights of any floating-point dtype; they are used in that of x
 * @returns of the shape and dtype of x
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function cbam<D extends FloatDType>(
  x: Tensor<D, Shape>,
  weights: CbamWeights,
  options: ChannelGateOptions & SpatialGateOptions = {},
): Tensor<D, Shape> {
  checkImages(x);
  checkOptions(weights, ['channel', 'spatial'], 'weights');
  checkOptions(options, ['pools', 'epsilon']);
  const source = x as Tensor;
  const { channel, spatial } = weights;
  const pools = checkGate(source, channel, pick(options, ['pools']), 'weights.channel');
  if (spatial !== undefined) checkSpatial(source, spatial, 'weights.spatial');
  return scope(() => {
    const gated = cbamChannelGate(source, channel, { pools });
    return spatial === undefined ? gated : cbamSpatialGate(gated, spatial, pick(options, ['epsilon']));
  }) as Tensor<D, Shape>;
}

export interface CbamOptions extends ModuleOptions, ChannelGateOptions {
  readonly channels: number;
  /** Channels for each number between both layers of the channel gate. Default 16. */
  readonly reduction?: number;
  /** Side of the kernel of the spatial gate, odd. Default 7. */
  readonly kernelSize?: number;
  /** Whether there is a spatial gate. Default true. */
  readonly spatial?: boolean;
  /** How far the running statistics move to those of a batch. Default 0.01, as the authors'. */
  readonly momentum?: number;
}

const names = [
  ...moduleOptionNames,
  ...(['channels', 'reduction', 'pools', 'kernelSize', 'spatial', 'momentum'] as const),
] as const satisfies readonly (keyof CbamOptions)[];

const moved = fused(function runningStatistics(running, batch, momentum, correction) {
  return running.add(batch.mul(correction).sub(running).mul(momentum));
});

/** The weights of a spatial gate, and the statistics that it uses once training is over. */
class SpatialGate extends Module {
  conv: Tensor;
  gain: Tensor;
  bias: Tensor;
  mean: Tensor;
  variance: Tensor;

  constructor(
    kernelSize: number,
    readonly momentum: number,
    options: ModuleOptions,
  ) {
    super();
    const initial: Initial = { kind: 'uniform', bound: 1 / Math.sqrt(2 * kernelSize ** 2) };
    const constant = (kind: 'zeros' | 'ones', of = options) => makeWeight([1], { kind }, of);
    // Not trained: what they follow is no gradient. In float32, which small steps are not lost in.
    const statistic = (kind: 'zeros' | 'ones') => {
      const trained = constant(kind, { ...options, dtype: 'float32' });
      const plain = unwatched(() => trained.detach());
      trained.dispose();
      return plain;
    };
    try {
      this.conv = makeWeight([1, 2, kernelSize, kernelSize], initial, options);
      this.gain = constant('ones');
      this.bias = constant('zeros');
      this.mean = statistic('zeros');
      this.variance = statistic('ones');
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  forward(x: Tensor): Tensor {
    const { conv, gain, bias } = this;
    if (!this.training) return cbamSpatialGate(x, { conv, gain, bias, mean: this.mean, variance: this.variance });
    return scope(() => {
      const { out, statistics } = gatePlaces(x, { conv, gain, bias }, 1e-5);
      if (statistics && x.size > 0) this.#follow(statistics, x.size / x.shape[1]);
      return out;
    });
  }

  #follow(batch: { readonly mean: Tensor; readonly variance: Tensor }, count: number): void {
    withoutRecording(() => {
      // Of a single number nothing is known about the variance.
      const unbiased = count > 1 ? count / (count - 1) : 1;
      moved(this.mean, batch.mean, this.momentum, 1).copyInto(this.mean);
      moved(this.variance, batch.variance, this.momentum, unbiased).copyInto(this.variance);
    });
  }
}

/**
 * A layer of `cbam` (Woo et al. 2018): x [batch, channels, height, width]. In training the batch norm uses the statistics of
 * the batch, and running ones follow them, which it uses in evaluation.
 */
export class CBAM extends Module {
  readonly reduce: Linear;
  readonly expand: Linear;
  readonly spatial: SpatialGate | undefined;
  readonly pools: readonly ChannelPool[];

  constructor(options: CbamOptions) {
    super();
    checkOptions(options, names);
    const { channels, reduction = 16, pools = ['avg', 'max'], kernelSize = 7, momentum = 0.01 } = options;
    checkInteger(channels, 'channels', 1);
    checkInteger(reduction, 'reduction', 1, channels);
    checkInteger(kernelSize, 'kernelSize', 1);
    if (kernelSize % 2 === 0) throw optionError(`kernelSize is ${kernelSize}; it must be odd`);
    checkNumber(momentum, 'momentum', 0, 1);
    this.pools = checkPools(pools);
    const spatial = checkBoolean(options.spatial ?? true, 'spatial');
    const all = { ...pick(options, moduleOptionNames), seed: Seeds.of(options.seed) };
    const hidden = Math.floor(channels / reduction);
    try {
      this.reduce = new Linear(channels, hidden, all);
      this.expand = new Linear(hidden, channels, all);
      this.spatial = spatial ? new SpatialGate(kernelSize, momentum, all) : undefined;
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  forward(x: Tensor): Tensor {
    checkImages(x);
    const { reduce, expand, pools } = this;
    const weights = {
      reduce: reduce.weight,
      reduceBias: reduce.bias,
      expand: expand.weight,
      expandBias: expand.bias,
    };
    return scope(() => {
      const gated = cbamChannelGate(x, weights, { pools });
      return this.spatial ? this.spatial.forward(gated) : gated;
    });
  }
}
