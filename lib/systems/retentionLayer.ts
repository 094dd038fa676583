import type { Shape4 } from '../attention/attention.js';
import { checkInteger, checkNumber, checkOptions, checkWord } from '../base/check.js';
import { type Initial, type ModuleOptions, moduleOptionNames, pick, Seeds } from '../nn/initial.js';
import { Linear } from '../nn/layers.js';
import { mul } from '../ops/elementwise.js';
import { pad } from '../ops/split.js';
import { scope } from '../tape/scope.js';
import type { Tensor } from '../tensor/tensor.js';
import {
  checkTokens,
  gatedNorm,
  glorot,
  headDimOf,
  type LayerStep,
  RecurrentLayer,
  RetentionRotary,
  turned,
} from './recurrentLayer.js';
import {
  retentionTorchscaleChunkwise,
  retentionTorchscaleParallel,
  retentionTorchscaleRecurrent,
  type TorchscaleRetentionState,
} from './retentionTorchscale.js';

export interface MultiScaleRetentionOptions extends ModuleOptions {
  readonly width: number;
  /** A divisor of the width that leaves an even head dim. */
  readonly heads: number;
  /** Of values and gates: a multiple of heads. Default twice the width. */
  readonly valueWidth?: number;
  /**
   * How `forward` computes: see `retentionTorchscaleRecurrent` (default), `retentionTorchscaleParallel` and
   * `retentionTorchscaleChunkwise`. They differ by a number a position, which the norm behind them takes out but for its epsilon.
   */
  readonly form?: 'recurrent' | 'parallel' | 'chunkwise';
  /** Tokens of a chunk of the chunkwise form. Default 512. */
  readonly chunk?: number;
  /** Of the rotary wavelengths. Default 10,000. */
  readonly ropeTheta?: number;
  /** Of the norm of each head. Default 1e-6. */
  readonly epsilon?: number;
  /** Of the projections. Default Glorot's, with a gain of 2^-2.5 but for the last, as the authors'. */
  readonly initial?: Initial;
}

const names = [
  ...moduleOptionNames,
  ...(['width', 'heads', 'valueWidth', 'form', 'chunk', 'ropeTheta', 'epsilon', 'initial'] as const),
] as const satisfies readonly (keyof MultiScaleRetentionOptions)[];

export interface MultiScaleRetentionState extends TorchscaleRetentionState {
  /** Tokens so far. */
  readonly position: number;
}

/**
 * Multi-scale retention of RetNet (Sun et al. 2023, arXiv:2307.08621) as its code (microsoft/torchscale) has it: projections
 * without biases, rotary positions, retention with a decay for each head, an RMS norm of each head without gains, and a gate of
 * SiLU before the projection back.
 */
export class MultiScaleRetention extends RecurrentLayer<MultiScaleRetentionState> {
  readonly qProj: Linear;
  readonly kProj: Linear;
  readonly vProj: Linear;
  readonly gProj: Linear;
  readonly outProj: Linear;
  readonly width: number;
  readonly valueWidth: number;
  readonly heads: number;
  readonly form: 'recurrent' | 'parallel' | 'chunkwise';
  readonly chunk: number;
  readonly epsilon: number;
  readonly #rotary: RetentionRotary;

  constructor(options: MultiScaleRetentionOptions) {
    super();
    checkOptions(options, names);
    const { width, heads, valueWidth = 2 * width, form = 'recurrent', chunk = 512, ropeTheta = 10_000 } = options;
    this.width = checkInteger(width, 'width', 1);
    this.heads = checkInteger(heads, 'heads', 1);
    this.valueWidth = checkInteger(valueWidth, 'valueWidth', 1);
    this.form = checkWord(form, 'form', ['recurrent', 'parallel', 'chunkwise']);
    this.chunk = checkInteger(chunk, 'chunk', 1);
    this.epsilon = checkNumber(options.epsilon ?? 1e-6, 'epsilon', 0);
    this.#rotary = new RetentionRotary(headDimOf(width, 'width', heads), checkNumber(ropeTheta, 'ropeTheta', 1));
    headDimOf(valueWidth, 'valueWidth', heads);
    const all = { ...pick(options, moduleOptionNames), seed: Seeds.of(options.seed), bias: false };
    const linear = (inputs: number, outputs: number, gain: number) =>
      new Linear(inputs, outputs, { ...all, initial: options.initial ?? glorot(inputs, outputs, gain) });
    try {
      this.qProj = linear(width, width, 2 ** -2.5);
      this.kProj = linear(width, width, 2 ** -2.5);
      this.vProj = linear(width, valueWidth, 2 ** -2.5);
      this.gProj = linear(width, valueWidth, 2 ** -2.5);
      this.outProj = linear(valueWidth, width, 1);
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  override forward(x: Tensor): Tensor {
    if (this.form === 'recurrent') return super.forward(x);
    checkTokens(x, this.width);
    return scope(() => {
      const { q, k, v } = this.#heads(x, 0);
      if (this.form === 'parallel') return this.#end(x, retentionTorchscaleParallel(q, k, v));
      const seq = x.shape[1];
      // No token sees those behind it: what fills the last chunk up makes no difference.
      const missing = (this.chunk - (seq % this.chunk)) % this.chunk;
      const filled = [q, k, v].map(
        (t) =>
        missing > 0 ? pad(t as unknown as Tensor, [[0, 0], [0, missing], [0, 0], [0, 0]]) : t, // biome-ignore format: a pair an axis
      ) as unknown as [typeof q, typeof q, typeof q];
      const out = retentionTorchscaleChunkwise(...filled, { chunk: this.chunk });
      return this.#end(x, out.slice(1, 0, seq));
    });
  }

  next(x: Tensor, state?: MultiScaleRetentionState): LayerStep<MultiScaleRetentionState> {
    checkTokens(x, this.width);
    if (state !== undefined) {
      checkOptions(state, ['kv', 'scale', 'position'], 'state');
      checkInteger(state.position, 'state.position', 0);
    }
    return scope(() => {
      const position = state?.position ?? 0;
      const { q, k, v } = this.#heads(x, position);
      const { out, state: after } = retentionTorchscaleRecurrent(
        q,
        k,
        v,
        state && { kv: state.kv, scale: state.scale },
      );
      return { out: this.#end(x, out), state: { ...after, position: position + x.shape[1] } };
    });
  }

  /** Queries and keys, turned, and values, by head. */
  #heads(x: Tensor, position: number) {
    const { heads } = this;
    const [batch, seq] = x.shape as readonly [number, number, number];
    const dim = this.width / heads;
    const angles = this.#rotary.anglesFrom(x, position, seq);
    const split = (t: Tensor, of: number) => t.reshape([batch, seq, heads, of]);
    const four = (t: Tensor) => t as unknown as Tensor<'float32', Shape4>;
    return {
      q: four(turned(split(this.qProj.forward(x), dim), angles)),
      k: four(turned(split(mul(this.kProj.forward(x), 1 / Math.sqrt(dim)) as Tensor, dim), angles)),
      v: four(split(this.vProj.forward(x), this.valueWidth / heads)),
    };
  }

  #end(x: Tensor, out: unknown): Tensor {
    const { heads, valueWidth } = this;
    const [batch, seq] = x.shape as readonly [number, number, number];
    const gate = this.gProj.forward(x).reshape([batch, seq, heads, valueWidth / heads]);
    const gated = gatedNorm(out as Tensor, gate, undefined, this.epsilon);
    return this.outProj.forward(gated.reshape([batch, seq, valueWidth]));
  }

  override dispose(): void {
    this.#rotary?.dispose();
    super.dispose();
  }
}
