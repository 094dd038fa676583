import type { Shape4 } from '../attention/attention.js';
import { checkBoolean, checkInteger, checkOptions, checkWord } from '../base/check.js';
import { optionError, shapeError, show } from '../base/errors.js';
import { type Initial, type ModuleOptions, makeWeight, moduleOptionNames, pick, Seeds } from '../nn/initial.js';
import { Linear, linearOptionNames } from '../nn/layers.js';
import { Module } from '../nn/module.js';
import { Rotary, type RotaryOptions } from '../nn/transformer.js';
import { split } from '../ops/split.js';
import { scope } from '../tape/scope.js';
import { checkTensor, type Tensor } from '../tensor/tensor.js';
import { type InfiniState, infiniAttention, infiniAttentionPaper } from './infini.js';

export interface InfiniLayerOptions extends ModuleOptions {
  readonly width: number;
  readonly heads: number;
  /** Default width / heads. */
  readonly headDim?: number;
  /** Tokens of a segment. */
  readonly segment: number;
  /** Whether the memory stores by the delta rule: see `infiniAttention`. Default false. */
  readonly delta?: boolean;
  /** 'paper' (default): `infiniAttentionPaper`; 'code': `infiniAttention`. */
  readonly gating?: 'paper' | 'code';
  /** Rotary positions of the attention within segments; the memory knows none. */
  readonly rope?: RotaryOptions;
  /** Whether the projections have biases. Default false. */
  readonly bias?: boolean;
  readonly initial?: Initial;
}

const names = [
  ...linearOptionNames,
  ...(['width', 'heads', 'headDim', 'segment', 'delta', 'gating', 'rope'] as const),
] as const satisfies readonly (keyof InfiniLayerOptions)[];

/**
 * Self-attention of an Infini-Transformer (Munkhdalai et al. 2024, arXiv:2404.07143): causal within segments of tokens, with a
 * memory of all segments before, and projections before and after it. `next` carries the memory from call to call.
 */
export class InfiniAttention extends Module {
  /** To queries, keys and values, in this order. */
  readonly qkv: Linear;
  readonly out: Linear;
  /** Of memory against attention [heads]: begins with 0, which takes half of each. */
  gate: Tensor;
  readonly heads: number;
  readonly headDim: number;
  readonly segment: number;
  readonly delta: boolean;
  readonly gating: 'paper' | 'code';
  readonly #rotary: Rotary | undefined;

  constructor(options: InfiniLayerOptions) {
    super();
    checkOptions(options, names);
    const { width, heads, segment, delta = false, gating = 'paper', rope, bias = false } = options;
    checkInteger(width, 'width', 1);
    this.heads = checkInteger(heads, 'heads', 1);
    this.segment = checkInteger(segment, 'segment', 1);
    this.delta = checkBoolean(delta, 'delta');
    this.gating = checkWord(gating, 'gating', ['paper', 'code']);
    if (options.headDim === undefined && width % heads !== 0)
      throw optionError(`width ${width} is no multiple of heads ${heads}; give headDim`);
    this.headDim = checkInteger(options.headDim ?? width / heads, 'headDim', 1, 256);
    this.#rotary = rope && new Rotary(rope, this.headDim);
    const all = { ...pick(options, linearOptionNames), bias, seed: Seeds.of(options.seed) };
    const inner = heads * this.headDim;
    try {
      this.qkv = new Linear(width, 3 * inner, all);
      this.out = new Linear(inner, width, all);
      this.gate = makeWeight([heads], { kind: 'zeros' }, pick(all, moduleOptionNames));
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** x [batch, seq, width] from the start of a sequence. */
  forward(x: Tensor): Tensor {
    return scope(() => this.next(x).out);
  }

  /**
   * The tokens that follow those that a state has been left by: as if both had come in one call. Detach the state's tensors
   * where gradients are not to reach back that far.
   *
   * @param x [batch, seq, width]
   * @param state that `next` has returned for the tokens before; none at the start
   * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
   */
  next(x: Tensor, state?: InfiniState): { readonly out: Tensor; readonly state: InfiniState } {
    checkTensor(x, 'x');
    const { heads, headDim, segment, delta, gate } = this;
    if (x.shape.length !== 3 || x.shape[2] !== this.qkv.inputs)
      throw shapeError(`x has shape ${show(x.shape)}; it must be [batch, seq, ${this.qkv.inputs}]`);
    const [batch, seq] = x.shape as readonly [number, number, number];
    return scope(() => {
      const all = this.qkv.forward(x).reshape([batch, seq, 3 * heads, headDim]);
      const [q, k, v] = split(all, [heads, heads, heads], 2) as unknown as Tensor<'float32', Shape4>[];
      const rope = this.#rotary?.optionFor(x, seq + (state?.k?.shape[1] ?? 0));
      const run = this.gating === 'paper' ? infiniAttentionPaper : infiniAttention;
      const { out, state: after } = run(q, k, v, {
        gate,
        segment,
        delta,
        ...(state && { state }),
        ...(rope && { rope }),
      });
      return { out: this.out.forward((out as unknown as Tensor).reshape([batch, seq, heads * headDim])), state: after };
    });
  }

  override dispose(): void {
    this.#rotary?.dispose();
    super.dispose();
  }
}
