import { attention } from '../attention/attention.js';
import { checkInteger, checkNumber, checkOptions } from '../base/check.js';
import { optionError, shapeError, show } from '../base/errors.js';
import { type Initial, type ModuleOptions, moduleOptionNames, pick, Seeds } from '../nn/initial.js';
import { Linear, RMSNorm } from '../nn/layers.js';
import { Module } from '../nn/module.js';
import { MLP } from '../nn/transformer.js';
import { concat } from '../ops/concat.js';
import { add } from '../ops/elementwise.js';
import { scope } from '../tape/scope.js';
import { checkTensor, type Tensor } from '../tensor/tensor.js';
import { checkShaped } from './inputs.js';
import {
  checkTokens,
  glorot,
  headDimOf,
  type LayerStep,
  RecurrentLayer,
  RetentionRotary,
  turned,
} from './recurrentLayer.js';
import {
  GatedRetention,
  type GatedRetentionState,
  SlidingWindowAttention,
  type SlidingWindowState,
} from './yocoMixers.js';

interface DecoderOptions extends ModuleOptions {
  readonly width: number;
  /** Of this decoder. */
  readonly layers: number;
  /** Of the SwiGLU between mixers. */
  readonly hidden: number;
  /** Of the rotary wavelengths. Default 10,000. */
  readonly ropeTheta?: number;
  /** Of norms. Default 1e-5. */
  readonly epsilon?: number;
}

export interface YocoSelfDecoderOptions extends DecoderOptions {
  /** Of the mixers: a divisor of the width that leaves an even head dim. */
  readonly heads: number;
  /** Tokens that a sliding window of softmax attention sees, with itself. Default none: gated retention. */
  readonly window?: number;
}

export interface YocoCrossDecoderOptions extends DecoderOptions {
  /** Of queries: a divisor of the width that leaves an even head dim. */
  readonly heads: number;
  /** Of the shared keys and values, a divisor of heads. Default as many. */
  readonly kvHeads?: number;
}

const decoderNames = [...moduleOptionNames, 'width', 'layers', 'hidden', 'heads', 'ropeTheta', 'epsilon'] as const;

const pytorch = (inputs: number): Initial => ({ kind: 'uniform', bound: 1 / Math.sqrt(inputs) });

/** x + mixer(norm(x)), then x + SwiGLU(norm(x)). */
class DecoderLayer<Mixer extends Module> extends Module {
  readonly mixerNorm: RMSNorm;
  readonly mixer: Mixer;
  readonly mlpNorm: RMSNorm;
  readonly mlp: MLP;

  constructor({ width, hidden, epsilon = 1e-5, ...rest }: DecoderOptions, make: () => Mixer) {
    super();
    const own = pick(rest as ModuleOptions, moduleOptionNames);
    try {
      this.mixerNorm = new RMSNorm(width, { ...own, epsilon });
      this.mixer = make();
      this.mlpNorm = new RMSNorm(width, { ...own, epsilon });
      this.mlp = new MLP({
        ...own,
        width,
        hidden,
        activation: 'swiglu',
        bias: false,
        initial: pytorch(width),
        initialOut: pytorch(hidden),
      });
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** @param mix the mixer, of the norm of x */
  run(x: Tensor, mix: (normed: Tensor) => Tensor): Tensor {
    const mixed = add(x, mix(this.mixerNorm.forward(x))) as Tensor;
    return add(mixed, this.mlp.forward(this.mlpNorm.forward(mixed))) as Tensor;
  }
}

function checkDecoder(options: DecoderOptions): void {
  checkInteger(options.width, 'width', 1);
  checkInteger(options.layers, 'layers', 1);
  checkInteger(options.hidden, 'hidden', 1);
  checkNumber(options.epsilon ?? 1e-5, 'epsilon', 0);
}

type SelfState = GatedRetentionState | SlidingWindowState;

/** Of every layer. */
export type YocoSelfState = readonly SelfState[];

/**
 * The self-decoder of YOCO (Sun et al., "You Only Cache Once", 2024, arXiv:2405.05254), whose state does not grow: layers of
 * gated retention or of attention in a sliding window, each with a SwiGLU behind it, after RMS norms.
 */
export class YocoSelfDecoder extends RecurrentLayer<YocoSelfState> {
  readonly layers: readonly DecoderLayer<RecurrentLayer<SelfState>>[];
  readonly width: number;

  constructor(options: YocoSelfDecoderOptions) {
    super();
    checkOptions(options, [...decoderNames, 'window']);
    checkDecoder(options);
    const { width, heads, window, ropeTheta = 10_000, epsilon = 1e-5 } = options;
    this.width = width;
    const seed = Seeds.of(options.seed);
    const shared = { ...pick(options, moduleOptionNames), seed, width, heads, ropeTheta };
    const layers: DecoderLayer<RecurrentLayer<SelfState>>[] = [];
    this.layers = layers;
    const mixer = (): RecurrentLayer<SelfState> =>
      (window === undefined
        ? new GatedRetention({ ...shared, epsilon })
        : new SlidingWindowAttention({ ...shared, window })) as unknown as RecurrentLayer<SelfState>;
    try {
      for (let i = 0; i < options.layers; i++) layers.push(new DecoderLayer({ ...options, seed }, mixer));
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  next(x: Tensor, state?: YocoSelfState): LayerStep<YocoSelfState> {
    checkTokens(x, this.width);
    const count = this.layers.length;
    if (state !== undefined && (!Array.isArray(state) || state.length !== count))
      throw optionError(`state is ${show(state)}; it must be an array of ${count}, one for each layer`);
    return scope(() => {
      const after: SelfState[] = [];
      let out = x;
      for (const [i, layer] of this.layers.entries())
        out = layer.run(out, (normed) => {
          const step = layer.mixer.next(normed, state?.[i]);
          after.push(step.state);
          return step.out;
        });
      return { out, state: after };
    });
  }
}

/** The cache that all layers share, keys turned. */
export interface YocoCrossState {
  /** [batch, tokens so far, kv heads, head dim] */
  readonly k: Tensor;
  readonly v: Tensor;
}

/** Attention over keys and values that come from elsewhere. */
class CrossAttention extends Module {
  readonly qProj: Linear;
  readonly outProj: Linear;

  constructor(width: number, options: ModuleOptions) {
    super();
    const all = { ...options, bias: false };
    try {
      this.qProj = new Linear(width, width, { ...all, initial: glorot(width, width, 2 ** -2.5) });
      this.outProj = new Linear(width, width, { ...all, initial: glorot(width, width, 0.5) });
    } catch (error) {
      this.dispose();
      throw error;
    }
  }
}

/**
 * The cross-decoder of YOCO: keys and values are made once, of the norm of what comes in, and every layer attends to them,
 * causally, with queries of its own. Nothing else is kept of earlier tokens.
 */
export class YocoCrossDecoder extends RecurrentLayer<YocoCrossState> {
  readonly kvNorm: RMSNorm;
  readonly kProj: Linear;
  readonly vProj: Linear;
  readonly layers: readonly DecoderLayer<CrossAttention>[];
  readonly width: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly #rotary: RetentionRotary;

  constructor(options: YocoCrossDecoderOptions) {
    super();
    checkOptions(options, [...decoderNames, 'kvHeads']);
    checkDecoder(options);
    const { width, heads, kvHeads = heads, ropeTheta = 10_000, epsilon = 1e-5 } = options;
    this.width = width;
    this.heads = checkInteger(heads, 'heads', 1);
    this.headDim = headDimOf(width, 'width', heads);
    this.kvHeads = checkInteger(kvHeads, 'kvHeads', 1, heads);
    if (heads % kvHeads !== 0) throw optionError(`kvHeads is ${kvHeads}; it must divide heads, ${heads}`);
    this.#rotary = new RetentionRotary(this.headDim, checkNumber(ropeTheta, 'ropeTheta', 1));
    const own = { ...pick(options, moduleOptionNames), seed: Seeds.of(options.seed) };
    const layers: DecoderLayer<CrossAttention>[] = [];
    this.layers = layers;
    const shared = kvHeads * this.headDim;
    try {
      this.kvNorm = new RMSNorm(width, { ...own, epsilon });
      this.kProj = new Linear(width, shared, { ...own, bias: false, initial: pytorch(width) });
      this.vProj = new Linear(width, shared, { ...own, bias: false, initial: pytorch(width) });
      for (let i = 0; i < options.layers; i++)
        layers.push(new DecoderLayer({ ...options, ...own }, () => new CrossAttention(width, own)));
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  next(x: Tensor, state?: YocoCrossState): LayerStep<YocoCrossState> {
    const [batch, seq] = checkTokens(x, this.width);
    const { heads, kvHeads, headDim } = this;
    if (state !== undefined) this.#checkState(state, batch, x);
    return scope(() => {
      const position = state?.k.shape[1] ?? 0;
      const angles = this.#rotary.anglesFrom(x, position, seq);
      const normed = this.kvNorm.forward(x);
      const shared = (projection: Linear) => projection.forward(normed).reshape([batch, seq, kvHeads, headDim]);
      const [ownKeys, ownValues] = [turned(shared(this.kProj), angles), shared(this.vProj)];
      const k = state ? concat([state.k, ownKeys], 1) : ownKeys;
      const v = state ? concat([state.v, ownValues], 1) : ownValues;
      let out = x;
      for (const layer of this.layers)
        out = layer.run(out, (own) => {
          const { qProj, outProj } = layer.mixer;
          const q = turned(qProj.forward(own).reshape([batch, seq, heads, headDim]), angles);
          return outProj.forward(attention(q, k, v, { causal: true }).out.reshape([batch, seq, this.width]));
        });
      return { out, state: { k, v } };
    });
  }

  #checkState(state: YocoCrossState, batch: number, x: Tensor): void {
    checkOptions(state, ['k', 'v'], 'state');
    checkTensor(state.k, 'state.k');
    const shape = [batch, state.k.shape[1] ?? -1, this.kvHeads, this.headDim];
    if (state.k.shape.length !== 4)
      throw shapeError(`state.k has shape ${show(state.k.shape)}; it must be [batch, tokens, kv heads, head dim]`);
    for (const name of ['k', 'v'] as const)
      checkShaped(state[name], `state.${name}`, shape, 'batch, tokens, kv heads, head dim', x);
  }

  override dispose(): void {
    this.#rotary?.dispose();
    super.dispose();
  }
}

export interface YocoOptions extends Omit<DecoderOptions, 'layers'> {
  /** Of both decoders, half of them each: an even number. */
  readonly layers: number;
  /** Of the self-decoder. */
  readonly selfHeads: number;
  /** Of the cross-decoder's queries. */
  readonly heads: number;
  /** Of the shared keys and values. Default as many as heads. */
  readonly kvHeads?: number;
  /** Of the self-decoder's sliding window. Default none: gated retention. */
  readonly window?: number;
}

export interface YocoState {
  readonly self: YocoSelfState;
  readonly cross: YocoCrossState;
}

/**
 * Both decoders of YOCO (Sun et al., "You Only Cache Once", 2024, arXiv:2405.05254), between the embeddings of tokens and a
 * last norm, which are not part of it.
 */
export class Yoco extends RecurrentLayer<YocoState> {
  readonly selfDecoder: YocoSelfDecoder;
  readonly crossDecoder: YocoCrossDecoder;

  constructor(options: YocoOptions) {
    super();
    checkOptions(options, [...decoderNames, 'selfHeads', 'kvHeads', 'window']);
    const { layers, selfHeads, heads, kvHeads, window, ...rest } = options;
    checkInteger(layers, 'layers', 2);
    if (layers % 2 !== 0)
      throw optionError(`layers is ${layers}; it must be even: half of them belong to each decoder`);
    const all = { ...rest, layers: layers / 2, seed: Seeds.of(options.seed) };
    try {
      this.selfDecoder = new YocoSelfDecoder({ ...all, heads: selfHeads, ...(window !== undefined && { window }) });
      this.crossDecoder = new YocoCrossDecoder({ ...all, heads, ...(kvHeads !== undefined && { kvHeads }) });
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  next(x: Tensor, state?: YocoState): LayerStep<YocoState> {
    if (state !== undefined) checkOptions(state, ['self', 'cross'], 'state');
    return scope(() => {
      const first = this.selfDecoder.next(x, state?.self);
      const second = this.crossDecoder.next(first.out, state?.cross);
      return { out: second.out, state: { self: first.state, cross: second.state } };
    });
  }
}
