import type { Shape4 } from '../attention/attention.js';
import { checkInteger, checkOptions, mustBe } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { optionError } from '../base/errors.js';
import { type Initial, type ModuleOptions, pick, Seeds } from '../nn/initial.js';
import { Linear, linearOptionNames } from '../nn/layers.js';
import { Module } from '../nn/module.js';
import { Rotary, type RotaryOptions } from '../nn/transformer.js';
import { sigmoid } from '../ops/elementwise.js';
import { rope } from '../ops/rope.js';
import { unbind } from '../ops/split.js';
import { scope } from '../tape/scope.js';
import type { Tensor } from '../tensor/tensor.js';
import { type NsaOptions, nativeSparseAttention } from './nsa.js';
import { checkTokens } from './recurrentLayer.js';

export interface NsaLayerOptions
  extends ModuleOptions,
    Pick<NsaOptions, 'blockSize' | 'blockCount' | 'window' | 'initialBlocks' | 'localBlocks'> {
  readonly width: number;
  readonly heads: number;
  /** Heads of keys and values, which divide `heads`. Default as many. */
  readonly kvHeads?: number;
  /** Default width / heads. */
  readonly headDim?: number;
  /** Rotary positions of queries and keys, before anything is compressed. Default none. */
  readonly rope?: RotaryOptions;
  /** Whether the projections but that of the gates have biases. Default false. */
  readonly bias?: boolean;
  readonly initial?: Initial;
}

const attentionNames = ['blockSize', 'blockCount', 'window', 'initialBlocks', 'localBlocks'] as const;

const names = [
  ...linearOptionNames,
  ...attentionNames,
  ...(['width', 'heads', 'kvHeads', 'headDim', 'rope'] as const),
] as const satisfies readonly (keyof NsaLayerOptions)[];

/**
 * Causal self-attention by `nativeSparseAttention` between projections, with gates that are sigmoids of a projection of each
 * token, as the layer of fla-org/native-sparse-attention has it. Yuan et al. (2025), arXiv:2502.11089.
 */
export class NativeSparseAttention extends Module {
  readonly qProj: Linear;
  readonly kProj: Linear;
  readonly vProj: Linear;
  /** To the gates of each head: compressed, selected and sliding, or without a window the first two. */
  readonly gateProj: Linear;
  readonly outProj: Linear;
  readonly width: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly window: number;
  readonly #options: Pick<NsaOptions, (typeof attentionNames)[number]>;
  readonly #rotary: Rotary | undefined;

  constructor(options: NsaLayerOptions) {
    super();
    checkOptions(options, names);
    const { width, heads, kvHeads = heads, rope, bias = false, window = 512 } = options;
    const { blockSize = 64, blockCount = 16, initialBlocks = 0, localBlocks = 1 } = options;
    this.width = checkInteger(width, 'width', 1);
    this.heads = checkInteger(heads, 'heads', 1);
    this.kvHeads = checkInteger(kvHeads, 'kvHeads', 1, heads);
    if (heads % kvHeads !== 0) throw mustBe('kvHeads', kvHeads, `a divisor of heads, ${heads}`);
    if (options.headDim === undefined && width % heads !== 0)
      throw optionError(`width ${width} is no multiple of heads ${heads}; give headDim`);
    this.headDim = checkInteger(options.headDim ?? width / heads, 'headDim', 1, 256);
    this.window = checkInteger(window, 'window', 0);
    checkInteger(blockSize, 'blockSize', 1);
    checkInteger(blockCount, 'blockCount', 1);
    checkInteger(initialBlocks, 'initialBlocks', 0);
    checkInteger(localBlocks, 'localBlocks', 1);
    if (initialBlocks + localBlocks > blockCount)
      throw mustBe('blockCount', blockCount, `at least initialBlocks + localBlocks, ${initialBlocks + localBlocks}`);
    this.#options = { blockSize, blockCount, window, initialBlocks, localBlocks };
    this.#rotary = rope && new Rotary(rope, this.headDim);
    const all = { ...pick(options, linearOptionNames), bias, seed: Seeds.of(options.seed) };
    const inner = heads * this.headDim;
    try {
      this.qProj = new Linear(width, inner, all);
      this.kProj = new Linear(width, kvHeads * this.headDim, all);
      this.vProj = new Linear(width, kvHeads * this.headDim, all);
      this.gateProj = new Linear(width, heads * (window > 0 ? 3 : 2), { ...all, bias: false });
      this.outProj = new Linear(inner, width, all);
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /**
   * @param x [batch, seq, width]
   * @returns [batch, seq, width]
   * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
   */
  forward(x: Tensor): Tensor {
    const [batch, seq] = checkTokens(x, this.width);
    const { heads, kvHeads, headDim } = this;
    return scope(() => {
      const tokens = (t: Tensor) => t as unknown as Tensor<FloatDType, Shape4>;
      const turned = (t: Tensor) => {
        if (!this.#rotary || t.size === 0) return tokens(t);
        const { cos, sin, ...pairs } = this.#rotary.optionFor(x, seq);
        return tokens(rope(t, { cos: cos.slice(0, 0, seq), sin: sin.slice(0, 0, seq) }, pairs));
      };
      const own = (projection: Linear, count: number) =>
        projection.forward(x).reshape([batch, seq, count, headDim]) as Tensor;
      const gates = sigmoid(this.gateProj.forward(x)).reshape([batch, seq, heads, this.window > 0 ? 3 : 2]) as Tensor;
      const [compressed, selected, sliding] = unbind(gates, 3) as [Tensor, Tensor, Tensor | undefined];
      const { out } = nativeSparseAttention(
        turned(own(this.qProj, heads)),
        turned(own(this.kProj, kvHeads)),
        tokens(own(this.vProj, kvHeads)),
        { ...this.#options, gates: { compressed, selected, ...(sliding && { sliding }) } },
      );
      return this.outProj.forward((out as unknown as Tensor).reshape([batch, seq, heads * headDim]));
    });
  }

  override dispose(): void {
    this.#rotary?.dispose();
    super.dispose();
  }
}
