import { checkBoolean, checkInteger, checkOptions, mustBe } from '../base/check.js';
import { optionError, shapeError } from '../base/errors.js';
import { type Initial, type ModuleOptions, makeWeight, moduleOptionNames, pick, Seeds } from '../nn/initial.js';
import { Linear, linearOptionNames } from '../nn/layers.js';
import { Module } from '../nn/module.js';
import { scope } from '../tape/scope.js';
import type { Tensor } from '../tensor/tensor.js';
import { linformerAttention } from './linformer.js';
import { checkTokens } from './recurrentLayer.js';

export interface LinformerLayerOptions extends ModuleOptions {
  readonly width: number;
  readonly heads: number;
  /** Default width / heads. */
  readonly headDim?: number;
  /** Heads of keys and values, which divide `heads`. Default as many. */
  readonly kvHeads?: number;
  /** The longest sequence that there will be. */
  readonly maxLength: number;
  /** How many keys stand for all of them. */
  readonly projectedLength: number;
  /** Whether keys are the values too, and both have one projection of the length. Default false. */
  readonly shareKv?: boolean;
  /** Of the projections to queries, keys and values. Default no; the one back has one. */
  readonly bias?: boolean;
  readonly initial?: Initial;
}

const names = [
  ...linearOptionNames,
  ...(['width', 'heads', 'headDim', 'kvHeads', 'maxLength', 'projectedLength', 'shareKv'] as const),
] as const satisfies readonly (keyof LinformerLayerOptions)[];

/**
 * Attention of Linformer (Wang et al. 2020, arXiv:2006.04768) with its projections, as lucidrains/linformer has it: see
 * `linformerAttention`. Not causal, and all tokens are real: each key is a sum of all of them.
 */
export class LinformerAttention extends Module {
  readonly qProj: Linear;
  readonly kProj: Linear;
  readonly vProj: Linear | undefined;
  readonly out: Linear;
  /** E and F of the paper: [longest sequence, projected length] */
  keyProjection: Tensor;
  valueProjection: Tensor | undefined;
  readonly width: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly maxLength: number;

  constructor(options: LinformerLayerOptions) {
    super();
    checkOptions(options, names);
    const { width, heads, kvHeads = heads, maxLength, projectedLength, shareKv = false, bias = false } = options;
    this.width = checkInteger(width, 'width', 1);
    this.heads = checkInteger(heads, 'heads', 1);
    this.kvHeads = checkInteger(kvHeads, 'kvHeads', 1, heads);
    if (heads % kvHeads !== 0) throw mustBe('kvHeads', kvHeads, `a divisor of heads, ${heads}`);
    this.maxLength = checkInteger(maxLength, 'maxLength', 1);
    checkInteger(projectedLength, 'projectedLength', 1);
    checkBoolean(shareKv, 'shareKv');
    if (options.headDim === undefined && width % heads !== 0)
      throw optionError(`width ${width} is no multiple of heads ${heads}; give headDim`);
    this.headDim = checkInteger(options.headDim ?? width / heads, 'headDim', 1, 256);
    const all = { ...pick(options, linearOptionNames), seed: Seeds.of(options.seed) };
    const inner = kvHeads * this.headDim;
    const ofLength: Initial = { kind: 'uniform', bound: 1 / Math.sqrt(projectedLength) };
    const projection = () => makeWeight([maxLength, projectedLength], ofLength, pick(all, moduleOptionNames));
    try {
      this.qProj = new Linear(width, heads * this.headDim, { ...all, bias });
      this.kProj = new Linear(width, inner, { ...all, bias });
      this.vProj = shareKv ? undefined : new Linear(width, inner, { ...all, bias });
      this.keyProjection = projection();
      this.valueProjection = shareKv ? undefined : projection();
      this.out = new Linear(heads * this.headDim, width, { ...all, bias: true });
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /**
   * @param x [batch, seq, width]
   * @param context what keys and values are made of: [batch, at most maxLength, width]. Default x
   * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
   */
  forward(x: Tensor, context: Tensor = x): Tensor {
    const [batch, seq] = checkTokens(x, this.width);
    const [, keys] = checkTokens(context, this.width);
    if (keys > this.maxLength)
      throw shapeError(
        `there are ${keys} tokens to attend to; this layer has projections for at most ${this.maxLength}`,
      );
    const { heads, kvHeads, headDim, keyProjection, valueProjection } = this;
    return scope(() => {
      const q = this.qProj.forward(x).reshape([batch, seq, heads, headDim]);
      const k = this.kProj.forward(context).reshape([batch, keys, kvHeads, headDim]);
      const v = this.vProj ? this.vProj.forward(context).reshape([batch, keys, kvHeads, headDim]) : k;
      const out = linformerAttention(q, k, v, { keyProjection, ...(valueProjection && { valueProjection }) });
      return this.out.forward(out.reshape([batch, seq, heads * headDim]));
    });
  }
}
