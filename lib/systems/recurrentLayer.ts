// What layers with a state share: how they are called, what they begin with, rotary positions and short convolutions.
import { parameter } from '../autograd/autograd.js';
import { checkBoolean, checkInteger, checkOptions } from '../base/check.js';
import { optionError, shapeError, show } from '../base/errors.js';
import { type Initial, type ModuleOptions, makeWeight, moduleOptionNames, Seeds } from '../nn/initial.js';
import { Module } from '../nn/module.js';
import { RotaryTables } from '../nn/transformer.js';
import { cast } from '../ops/cast.js';
import { concat } from '../ops/concat.js';
import { conv1d } from '../ops/conv.js';
import { fused, silu } from '../ops/elementwise.js';
import { rmsNorm } from '../ops/norm.js';
import { uniform } from '../ops/random.js';
import { type RopeAngles, rope } from '../ops/rope.js';
import { pad } from '../ops/split.js';
import { scope } from '../tape/scope.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { unwatched } from '../tensor/track.js';
import { checkShaped } from './inputs.js';

/** What `next` returns. */
export interface LayerStep<State> {
  /** [batch, seq, width] */
  readonly out: Tensor;
  /** To go on from. */
  readonly state: State;
}

/** A layer of x [batch, seq, width] that can stop after any token and go on from the state that it has left. */
export abstract class RecurrentLayer<State> extends Module {
  /**
   * The tokens that follow those that a state has been left by: as if both had come in one call. Detach the state's tensors
   * where gradients are not to reach back that far.
   *
   * @param x [batch, seq, width]
   * @param state that `next` has returned for the tokens before; none at the start
   * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
   */
  abstract next(x: Tensor, state?: State): LayerStep<State>;

  /** x [batch, seq, width] from the start of a sequence. */
  forward(x: Tensor): Tensor {
    return scope(() => this.next(x).out);
  }
}

/** @throws ERR_OPTION, ERR_SHAPE */
export function checkTokens(x: Tensor, width: number): readonly [batch: number, seq: number] {
  checkTensor(x, 'x');
  if (x.shape.length !== 3 || x.shape[2] !== width)
    throw shapeError(`x has shape ${show(x.shape)}; it must be [batch, seq, ${width}]`);
  return [x.shape[0], x.shape[1]];
}

/** @throws ERR_OPTION where a width has no whole heads; `name` is what the width is called */
export function headDimOf(width: number, name: string, heads: number): number {
  if (width % heads !== 0) throw optionError(`${name} ${width} is no multiple of heads ${heads}`);
  return checkInteger(width / heads, `${name} / heads`, 1, 256);
}

/** Glorot's uniform numbers with a gain. */
export const glorot = (inputs: number, outputs: number, gain: number): Initial => ({
  kind: 'uniform',
  bound: gain * Math.sqrt(6 / (inputs + outputs)),
});

/** A float32 weight that begins with f of uniform numbers. */
function makeFromUniform(
  shape: Shape,
  [low, high]: readonly [number, number],
  f: (x: Tensor) => Tensor,
  { device, seed }: ModuleOptions,
): Tensor {
  return unwatched(() => {
    const where = device === undefined ? {} : { device };
    const drawn = uniform(shape, { ...where, seed: Seeds.of(seed).next(), low, high }) as Tensor;
    const values = f(drawn);
    const weight = parameter(values);
    drawn.dispose();
    values.dispose();
    return weight;
  });
}

const logOf = fused(function logOf(x) {
  // A draw of 0 would never decay, and its logarithm would have no gradient.
  return x.maximum(2 ** -20).log();
});
const stepBias = fused(function stepBias(x) {
  const step = x.exp().maximum(1e-4);
  return step.add(step.neg().expm1().neg().log());
});

/** ln of the rates A of Mamba's decays, uniform from `least` to 16: [heads]. */
export const makeLogRates = (heads: number, least: number, options: ModuleOptions): Tensor =>
  makeFromUniform([heads], [least, 16], logOf, options);

/** What softplus makes step sizes of that are spread evenly over the logarithms of 0.001 to 0.1: [heads]. */
export const makeStepBias = (heads: number, options: ModuleOptions): Tensor =>
  makeFromUniform([heads], [Math.log(0.001), Math.log(0.1)], stepBias, options);

/** Step sizes softplus(x + bias). */
export const stepSizes = fused(function stepSizes(x, bias) {
  const sum = x.add(bias);
  return sum.maximum(0).add(sum.abs().neg().exp().log1p());
});
/** ln of decays, -e^logRates times the step sizes softplus(x + bias). */
export const logDecays = fused(function logDecays(x, bias, logRates) {
  const sum = x.add(bias);
  return sum.maximum(0).add(sum.abs().neg().exp().log1p()).mul(logRates.exp()).neg();
});
/** ln sigmoid(x) / normalizer */
export const logSigmoid = fused(function logSigmoid(x, normalizer) {
  return x.minimum(0).sub(x.abs().neg().exp().log1p()).div(normalizer);
});
const gatedBySilu = fused(function gatedBySilu(x, gate) {
  return gate.mul(gate.sigmoid()).mul(x);
});

/** RMS norm of the last axis, times SiLU of a gate. */
export const gatedNorm = (x: Tensor, gate: Tensor, gain: Tensor | undefined, epsilon: number): Tensor =>
  gatedBySilu(rmsNorm(x, gain, { epsilon }), gate);

/**
 * Rotary positions of RetNet: pairs of neighbouring dims, and that of pair p is turned by position * theta^(-p / (pairs - 1)),
 * so that the last one turns by position / theta. Tables are made once for the longest sequence so far.
 */
export class RetentionRotary {
  readonly #tables: RotaryTables;

  constructor(headDim: number, theta: number) {
    if (headDim % 2 !== 0) throw optionError(`the head dim is ${headDim}; rotary positions need an even one`);
    const pairs = headDim / 2;
    this.#tables = new RotaryTables(pairs, (pair) => theta ** (-pair / Math.max(1, pairs - 1)));
  }

  /** Angles of the positions from `position` on, on the device of x. */
  anglesFrom(x: Tensor, position: number, seq: number): RopeAngles {
    const { cos, sin } = this.#tables.anglesFor(x, position + seq);
    const part = (t: Tensor<'float32', Shape>) => t.slice(0, position, position + seq);
    return { cos: part(cos), sin: part(sin) };
  }

  dispose(): void {
    this.#tables.dispose();
  }
}

/** x [batch, seq, heads, dim], turned. */
export const turned = (x: Tensor, angles: RopeAngles): Tensor =>
  x.shape[1] > 0 ? rope(x, angles, { pairs: 'interleaved' }) : x;

export interface ShortConvolutionOptions extends ModuleOptions {
  /** Tokens that one sees, with itself. Default 4. */
  readonly size?: number;
  /** Default false. */
  readonly bias?: boolean;
}

/** A causal convolution of each channel by itself over the last few tokens, and SiLU behind it: x [batch, seq, channels]. */
export class ShortConvolution extends Module {
  /** [channels, 1, size] */
  weight: Tensor;
  /** [channels] */
  bias: Tensor | undefined;
  readonly size: number;

  constructor(
    readonly channels: number,
    options: ShortConvolutionOptions = {},
  ) {
    super();
    checkInteger(channels, 'channels', 1);
    checkOptions(options, [...moduleOptionNames, 'size', 'bias']);
    const { size = 4, bias = false } = options;
    this.size = checkInteger(size, 'size', 1);
    checkBoolean(bias, 'bias');
    const all = { ...options, seed: Seeds.of(options.seed) };
    const initial: Initial = { kind: 'uniform', bound: 1 / Math.sqrt(size) };
    try {
      this.weight = makeWeight([channels, 1, size], initial, all);
      this.bias = bias ? makeWeight([channels], initial, all) : undefined;
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  forward(x: Tensor): Tensor {
    return scope(() => this.next(x).out);
  }

  /** @param state the last size - 1 tokens before x [batch, size - 1, channels]; none at the start */
  next(x: Tensor, state?: Tensor): LayerStep<Tensor> {
    const [batch, seq] = checkTokens(x, this.channels);
    const before = this.size - 1;
    if (state)
      checkShaped(state, 'the state of a convolution', [batch, before, this.channels], 'batch, size - 1, channels', x);
    return scope(() => {
      const joined = state
        ? concat([state, x], 1)
        : pad(x, [
            [0, 0],
            [before, 0],
            [0, 0],
          ]);
      const after = joined.slice(1, seq, seq + before).contiguous();
      if (seq === 0) return { out: x.contiguous(), state: after };
      const weight = this.weight.dtype === x.dtype ? this.weight : (cast(this.weight, x.dtype) as Tensor);
      const { bias } = this;
      const out = conv1d(joined.transpose(1, 2), weight, { groups: this.channels, ...(bias && { bias }) });
      return { out: silu(out.transpose(1, 2)) as Tensor, state: after };
    });
  }
}
