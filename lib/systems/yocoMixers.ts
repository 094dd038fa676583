// What the layers of YOCO's self-decoder mix tokens with: gated retention, or attention in a sliding window.
import { attention } from '../attention/attention.js';
import { checkInteger, checkNumber, checkOptions } from '../base/check.js';
import { type Initial, type ModuleOptions, moduleOptionNames, pick, Seeds } from '../nn/initial.js';
import { Linear } from '../nn/layers.js';
import { concat } from '../ops/concat.js';
import { scope } from '../tape/scope.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { checkFloat32State, checkShaped, wide } from './inputs.js';
import {
  checkTokens,
  gatedNorm,
  glorot,
  headDimOf,
  type LayerStep,
  logSigmoid,
  RecurrentLayer,
  RetentionRotary,
  turned,
} from './recurrentLayer.js';
import { gatedRetention } from './retention.js';

interface MixerOptions extends ModuleOptions {
  readonly width: number;
  /** A divisor of the width that leaves an even head dim. */
  readonly heads: number;
  /** Of the rotary wavelengths. Default 10,000. */
  readonly ropeTheta?: number;
  /** Of the projections. Default Glorot's, with a gain of 2^-2.5, and 1/2 for the last, as the authors'. */
  readonly initial?: Initial;
}

export interface GatedRetentionLayerOptions extends MixerOptions {
  /** What ln sigmoid of the projection to decays is divided by. Default 16. */
  readonly gateNormalizer?: number;
  /** Of the norm of each head. Default 1e-5. */
  readonly epsilon?: number;
}

export interface GatedRetentionState {
  /** float32 [batch, heads, head dim, head dim] */
  readonly memory: Tensor<'float32', Shape>;
  /** Tokens so far. */
  readonly position: number;
}

const mixerNames = [...moduleOptionNames, 'width', 'heads', 'ropeTheta', 'initial'] as const;

/** Queries, keys, values and the projection back, which both mixers have. */
abstract class Mixer<State> extends RecurrentLayer<State> {
  readonly qProj: Linear;
  readonly kProj: Linear;
  readonly vProj: Linear;
  readonly outProj: Linear;
  readonly width: number;
  readonly heads: number;
  protected readonly rotary: RetentionRotary;

  constructor({ width, heads, ropeTheta = 10_000, initial, ...rest }: MixerOptions) {
    super();
    this.width = checkInteger(width, 'width', 1);
    this.heads = checkInteger(heads, 'heads', 1);
    const rotary = new RetentionRotary(headDimOf(width, 'width', heads), checkNumber(ropeTheta, 'ropeTheta', 1));
    this.rotary = rotary;
    const all = { ...pick(rest as ModuleOptions, moduleOptionNames), bias: false };
    const linear = (gain: number) =>
      new Linear(width, width, { ...all, initial: initial ?? glorot(width, width, gain) });
    try {
      this.qProj = linear(2 ** -2.5);
      this.kProj = linear(2 ** -2.5);
      this.vProj = linear(2 ** -2.5);
      this.outProj = linear(0.5);
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** [batch, seq, heads, head dim], queries and keys turned. */
  protected projected(x: Tensor, position: number): readonly [q: Tensor, k: Tensor, v: Tensor] {
    const [batch, seq] = x.shape as readonly [number, number, number];
    const split = (t: Tensor) => t.reshape([batch, seq, this.heads, this.width / this.heads]);
    const angles = this.rotary.anglesFrom(x, position, seq);
    return [
      turned(split(this.qProj.forward(x)), angles),
      turned(split(this.kProj.forward(x)), angles),
      split(this.vProj.forward(x)),
    ];
  }

  override dispose(): void {
    this.rotary?.dispose();
    super.dispose();
  }
}

/**
 * The gated retention layer of YOCO (Sun et al. 2024, arXiv:2405.05254): rotary positions, `gatedRetention` with decays ln
 * sigmoid(W x) / 16 by position, an RMS norm of each head without gains, and a gate of SiLU before the projection back.
 */
export class GatedRetention extends Mixer<GatedRetentionState> {
  readonly gProj: Linear;
  /** To the decays. */
  readonly gtProj: Linear;
  readonly gateNormalizer: number;
  readonly epsilon: number;

  constructor(options: GatedRetentionLayerOptions) {
    checkOptions(options, [...mixerNames, 'gateNormalizer', 'epsilon']);
    const { width, heads, gateNormalizer = 16, epsilon = 1e-5, initial } = options;
    const seed = Seeds.of(options.seed);
    super({ ...pick(options, mixerNames), seed });
    const all = { ...pick(options, moduleOptionNames), seed, bias: false };
    const linear = (outputs: number) =>
      new Linear(width, outputs, { ...all, initial: initial ?? glorot(width, outputs, 2 ** -2.5) });
    try {
      this.gateNormalizer = checkNumber(gateNormalizer, 'gateNormalizer', Number.MIN_VALUE);
      this.epsilon = checkNumber(epsilon, 'epsilon', 0);
      this.gProj = linear(width);
      this.gtProj = linear(heads);
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  next(x: Tensor, state?: GatedRetentionState): LayerStep<GatedRetentionState> {
    const [batch, seq] = checkTokens(x, this.width);
    if (state !== undefined) {
      checkOptions(state, ['memory', 'position'], 'state');
      checkInteger(state.position, 'state.position', 0);
      checkFloat32State(state.memory, 'state.memory');
    }
    return scope(() => {
      const position = state?.position ?? 0;
      const logGates = logSigmoid(wide(this.gtProj.forward(x)), this.gateNormalizer);
      const { out, state: memory } = gatedRetention(...this.projected(x, position), {
        logGates,
        initialState: state?.memory,
      });
      const gate = this.gProj.forward(x).reshape(out.shape);
      const gated = gatedNorm(out, gate, undefined, this.epsilon).reshape([batch, seq, this.width]);
      return { out: this.outProj.forward(gated), state: { memory, position: position + seq } };
    });
  }
}

export interface SlidingWindowAttentionOptions extends MixerOptions {
  /** Tokens that one sees, with itself. */
  readonly window: number;
}

export interface SlidingWindowState {
  /** The last tokens, up to window - 1 [batch, tokens, heads, head dim], turned. */
  readonly k: Tensor;
  readonly v: Tensor;
  /** Tokens so far. */
  readonly position: number;
}

/** Softmax attention in which every token sees itself and the window - 1 before it, with YOCO's rotary positions. */
export class SlidingWindowAttention extends Mixer<SlidingWindowState> {
  readonly window: number;

  constructor(options: SlidingWindowAttentionOptions) {
    checkOptions(options, [...mixerNames, 'window']);
    const window = checkInteger(options.window, 'window', 1);
    super({ ...pick(options, mixerNames), seed: Seeds.of(options.seed) });
    this.window = window;
  }

  next(x: Tensor, state?: SlidingWindowState): LayerStep<SlidingWindowState> {
    const [batch, seq] = checkTokens(x, this.width);
    const { window, heads, width } = this;
    if (state !== undefined) {
      checkOptions(state, ['k', 'v', 'position'], 'state');
      const tokens = Math.min(window - 1, checkInteger(state.position, 'state.position', 0));
      for (const name of ['k', 'v'] as const)
        checkShaped(
          state[name],
          `state.${name}`,
          [batch, tokens, heads, width / heads],
          'batch, tokens, heads, dim',
          x,
        );
    }
    return scope(() => {
      const position = state?.position ?? 0;
      const [q, ownKeys, ownValues] = this.projected(x, position);
      const k = state ? concat([state.k, ownKeys], 1) : ownKeys;
      const v = state ? concat([state.v, ownValues], 1) : ownValues;
      const { out } = attention(q, k, v, { causal: true, window: [window - 1, 0] });
      const tokens = k.shape[1];
      const last = (t: Tensor) => t.slice(1, Math.max(0, tokens - window + 1), tokens).contiguous();
      return {
        out: this.outProj.forward(out.reshape([batch, seq, width])),
        state: { k: last(k), v: last(v), position: position + seq },
      };
    });
  }
}
