import { checkBoolean, checkInteger, checkOptions, checkWord } from '../base/check.js';
import { checkFloatDType, type FloatDType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';
import { cast } from '../ops/cast.js';
import { type CrossEntropyOptions, crossEntropy } from '../ops/crossEntropy.js';
import { add } from '../ops/elementwise.js';
import { embedding, type Indices } from '../ops/embedding.js';
import { scope } from '../tape/scope.js';
import { checkIndices, type Shape, type Tensor } from '../tensor/tensor.js';
import type { Initial, ModuleOptions } from './initial.js';
import { Seeds } from './initial.js';
import { Dropout, Embedding, type LayerNorm, Linear, type RMSNorm, timesTransposed } from './layers.js';
import { type Layer, Module } from './module.js';
import {
  type CachedAttention,
  type MultiHeadAttention,
  makeNorm,
  TransformerBlock,
  type TransformerBlockOptions,
} from './transformer.js';

export interface GPTOptions<A extends Layer = MultiHeadAttention>
  extends ModuleOptions,
    Omit<TransformerBlockOptions<A>, 'initial' | 'initialOut' | 'causal'> {
  readonly vocabulary: number;
  /** The longest sequence. */
  readonly context: number;
  readonly layers: number;
  /** Learned vectors that are added to the tokens', or none: with `rope` or `alibi`. Default 'learned' without those. */
  readonly positions?: 'learned' | 'none';
  /** Whether the last layer has the weights of the token embedding. Default true, as in GPT-2. */
  readonly tied?: boolean;
  /** What activations are computed in; weights stay in `dtype`. Default that. */
  readonly compute?: FloatDType;
}

/** All of them: one that is missing here would be refused. */
const known: Readonly<Record<keyof GPTOptions, true>> = {
  vocabulary: true,
  context: true,
  layers: true,
  width: true,
  heads: true,
  kvHeads: true,
  headDim: true,
  hidden: true,
  activation: true,
  norm: true,
  epsilon: true,
  bias: true,
  dropout: true,
  positions: true,
  rope: true,
  alibi: true,
  window: true,
  mask: true,
  softcap: true,
  scoreMod: true,
  scale: true,
  deterministic: true,
  checkpoint: true,
  attention: true,
  tied: true,
  compute: true,
  device: true,
  dtype: true,
  seed: true,
};
const optionNames = Object.keys(known) as (keyof GPTOptions)[];

/**
 * A decoder-only transformer: token ids int32 [batch, length] to logits [batch, length, vocabulary]. The defaults are those
 * of GPT-2 (Radford et al. 2019), weights included; `GPT.llama` gives those of Llama (Touvron et al. 2023).
 */
export class GPT<A extends Layer = MultiHeadAttention> extends Module {
  readonly tokens: Embedding;
  readonly positions: Embedding | undefined;
  readonly drop: Dropout;
  readonly blocks: readonly TransformerBlock<A>[];
  readonly norm: LayerNorm | RMSNorm;
  readonly head: Linear | undefined;
  readonly context: number;
  readonly vocabulary: number;
  readonly #compute: FloatDType | undefined;

  constructor(options: GPTOptions<A>) {
    super();
    checkOptions(options, optionNames);
    const {
      vocabulary,
      context,
      layers,
      width,
      rope,
      alibi,
      tied = true,
      compute,
      positions: wanted,
      ...block
    } = options;
    const positions = wanted ?? (rope || alibi ? 'none' : 'learned');
    checkInteger(vocabulary, 'vocabulary', 1);
    checkInteger(context, 'context', 1);
    checkInteger(layers, 'layers', 1);
    checkInteger(width, 'width', 1);
    checkWord(positions, 'positions', ['learned', 'none']);
    checkBoolean(tied, 'tied');
    const seed = Seeds.of(options.seed);
    // Each layer adds to the residual stream: its projections begin smaller the more of them there are.
    const initial: Initial = { kind: 'normal', std: 0.02 };
    const initialOut: Initial = { kind: 'normal', std: 0.02 / Math.sqrt(2 * layers) };
    this.context = context;
    this.vocabulary = vocabulary;
    this.#compute = compute === undefined ? undefined : checkFloatDType(compute, 'compute');
    const blocks: TransformerBlock<A>[] = [];
    this.blocks = blocks;
    const where = { device: options.device, dtype: options.dtype, seed } as ModuleOptions;
    try {
      this.tokens = new Embedding(vocabulary, width, { ...where, initial });
      this.positions = positions === 'learned' ? new Embedding(context, width, { ...where, initial }) : undefined;
      this.drop = new Dropout(options.dropout ?? 0, { seed });
      const shape = {
        ...block,
        width,
        ...(rope && { rope }),
        ...(alibi && { alibi }),
        causal: true,
        initial,
        initialOut,
      };
      for (let layer = 0; layer < layers; layer++) blocks.push(new TransformerBlock<A>({ ...shape, seed }));
      this.norm = makeNorm({ ...options, seed });
      this.head = tied ? undefined : new Linear(width, vocabulary, { ...where, bias: false, initial });
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** A model in the shape of Llama: rotary positions of softmax attention, RMS norm, SwiGLU, no biases, and a head of its own. */
  static llama<A extends Layer = MultiHeadAttention>(options: GPTOptions<A>): GPT<A> {
    const third = Math.ceil((8 * options.width) / 3 / 32) * 32;
    return new GPT<A>({
      norm: 'rms',
      activation: 'swiglu',
      hidden: third,
      // Layers in the place of softmax attention have positions of their own, or need none.
      ...(options.attention === undefined ? { rope: {} } : { positions: 'none' as const }),
      bias: false,
      tied: false,
      ...options,
    });
  }

  /**
   * Logits for the token after each.
   *
   * @param ids int32 [batch, length], at most `context` long
   * @returns [batch, length, vocabulary], in the dtype that is computed in
   * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION for an id that is none, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
   */
  forward(ids: Indices): Tensor {
    checkIndices(ids, 'ids');
    const [, length = 0] = ids.shape;
    if (ids.shape.length !== 2 || length > this.context || length === 0)
      throw shapeError(`ids has shape ${show(ids.shape)}; it must be [batch, length], 1 to ${this.context} long`);
    return scope(() => {
      let x = this.tokens.forward(ids);
      if (this.positions) x = add(x, this.positions.weight.slice(0, 0, length));
      x = this.drop.forward(this.#computed(x));
      for (const block of this.blocks) x = block.forward(x);
      return this.#logits(x);
    });
  }

  /** @internal What activations are computed in. */
  get computes(): FloatDType {
    return this.#compute ?? this.tokens.weight.dtype;
  }

  /**
   * Logits of some of the rows, with attention of each layer as told.
   *
   * @internal
   * @param ids int32 [1, rows], of any sequences behind one another
   * @param positions int32 [1, rows]
   * @param wanted int32 [count]: rows
   * @returns [count, vocabulary]
   */
  logitsWith(ids: Indices, positions: Indices, wanted: Indices, attend: (layer: number) => CachedAttention): Tensor {
    return scope(() => {
      let x = this.tokens.forward(ids);
      if (this.positions) x = add(x, this.positions.forward(positions));
      x = this.#computed(x);
      for (const [layer, block] of this.blocks.entries()) x = block.forwardWith(x, attend(layer));
      return this.#logits(embedding(x.select(0, 0), wanted));
    });
  }

  #computed(x: Tensor): Tensor {
    return this.#compute !== undefined && this.#compute !== x.dtype ? cast(x, this.#compute) : x;
  }

  #logits(x: Tensor): Tensor {
    const normed = this.norm.forward(x);
    return this.head ? this.head.forward(normed) : timesTransposed(normed, this.tokens.weight);
  }

  /**
   * The mean cross entropy of the tokens after each, in nats.
   *
   * @param targets int32 [batch, length]: `ids` one place further
   */
  loss(ids: Indices, targets: Indices, options: CrossEntropyOptions = {}): Tensor<'float32', Shape> {
    return scope(() => {
      const logits = this.forward(ids);
      const loss = crossEntropy(logits, targets, options as CrossEntropyOptions & { reduction?: 'mean' });
      // Then the gradient can take the place of the logits.
      logits.dispose();
      return loss;
    });
  }
}
