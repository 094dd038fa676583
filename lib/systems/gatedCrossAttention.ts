import { attention, type Shape4 } from '../attention/attention.js';
import { lookup, type ScoreMod } from '../attention/scoreMod.js';
import { checkBoolean, checkInteger, checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError, optionError, shapeError, show } from '../base/errors.js';
import { type Initial, type ModuleOptions, makeWeight, moduleOptionNames, pick, Seeds } from '../nn/initial.js';
import { LayerNorm, Linear } from '../nn/layers.js';
import { Module } from '../nn/module.js';
import { cumsum } from '../ops/alongAxis.js';
import { cast } from '../ops/cast.js';
import { fused, gelu } from '../ops/elementwise.js';
import { layerNorm } from '../ops/norm.js';
import { split } from '../ops/split.js';
import { scope } from '../tape/scope.js';
import { sameShape } from '../tensor/shape.js';
import { type AnyTensor, checkAnyTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { narrow } from './inputs.js';
import { checkSequence, project, type Weight, weightsOf } from './weights.js';

/** Matrices are [out, in]; none has a bias. */
export interface GatedCrossAttentionWeights {
  /** [1] each, before their tanh: 0 lets nothing through. */
  readonly attentionGate: Weight;
  readonly feedForwardGate: Weight;
  /** [dim] each. */
  readonly normWeight: Weight;
  readonly normBias: Weight;
  /** [heads head dim, dim] */
  readonly query: Weight;
  /** Keys above values: [2 heads head dim, media dim]. */
  readonly keyValue: Weight;
  /** [dim, heads head dim] */
  readonly out: Weight;
  /** [dim] each. */
  readonly feedForwardNormWeight: Weight;
  readonly feedForwardNormBias: Weight;
  /** [hidden, dim] and [dim, hidden] */
  readonly up: Weight;
  readonly down: Weight;
}

const weightNames = [
  ...(['attentionGate', 'feedForwardGate', 'normWeight', 'normBias', 'query', 'keyValue', 'out'] as const),
  ...(['feedForwardNormWeight', 'feedForwardNormBias', 'up', 'down'] as const),
] as const satisfies readonly (keyof GatedCrossAttentionWeights)[];

export interface GatedCrossAttentionOptions {
  readonly heads: number;
  /**
   * Which tokens stand for a medium, bool [batch, seq]: the tokens from the n-th of them on see medium n. Default: all see all.
   */
  readonly mediaLocations?: Tensor<'bool', Shape>;
  /** With `mediaLocations` whether tokens see the last medium alone, not all those before it too. Default true. */
  readonly onlyImmediate?: boolean;
}

const optionNames = ['heads', 'mediaLocations', 'onlyImmediate'] as const;

const plusGated = fused(function plusGated(x, gate, update) {
  return x.add(gate.tanh().mul(update));
});

/** Hides what a token does not see: `times` counts the media up to each token, [batch, seq]. */
const seen = (times: Tensor<'float32', Shape>, perMedium: number, onlyImmediate: boolean): ScoreMod =>
  function byMedium(score, b, _head, i, j) {
    const own = lookup(times, b, i);
    // Halves, so that a rounded quotient falls on the right side.
    const medium = j.add(0.5).div(perMedium).floor().add(1);
    return (onlyImmediate ? medium.equal(own) : medium.lessEqual(own)).where(score, Number.NEGATIVE_INFINITY);
  };

/**
 * The gated cross-attention of Flamingo (Alayrac et al. 2022, arXiv:2204.14198) as lucidrains/flamingo-pytorch has it, with the
 * feed-forward network behind it: y = x + tanh(attentionGate) attention(layerNorm(x) Wq^T, media Wk^T, media Wv^T) Wo^T,
 * out = y + tanh(feedForwardGate) gelu(layerNorm(y) W1^T) W2^T, with scale 1 / sqrt(head dim), epsilon 1e-5 and the exact GELU.
 * A token before the first medium gets nothing from attention. No [seq, entries] mask is made.
 *
 * @param x [batch, seq, dim]
 * @param media [batch, media, entries, media dim], of the dtype of x
 * @param weights of any floating-point dtype; they are used in that of x
 * @returns of the shape and dtype of x
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function gatedCrossAttention<D extends FloatDType>(
  x: Tensor<D, Shape>,
  media: Tensor<NoInfer<D>, Shape>,
  weights: GatedCrossAttentionWeights,
  options: GatedCrossAttentionOptions,
): Tensor<D, Shape> {
  const [source, context] = [x as Tensor, media as Tensor];
  const { heads, mediaLocations, onlyImmediate = true } = checkArguments(source, context, weights, options);
  const [batch, seq] = source.shape;
  const [, count, entries, mediaDim] = context.shape;
  const inner = weights.query.shape[0];
  const byHead = (t: Tensor) =>
    t.reshape([t.shape[0], t.shape[1], heads, inner / heads]) as unknown as Tensor<FloatDType, Shape4>;
  return scope(() => {
    const { normWeight, normBias, feedForwardNormWeight, feedForwardNormBias } = weights;
    const q = project(layerNorm(source, normWeight, normBias), weights.query);
    const flat = context.isContiguous ? context : context.contiguous();
    const [wk, wv] = split(weights.keyValue, inner) as [Weight, Weight];
    const sequence = flat.reshape([batch, count * entries, mediaDim]);
    const hide =
      mediaLocations && source.size > 0
        ? { scoreMod: seen(cumsum(cast(mediaLocations, 'float32')), Math.max(1, entries), onlyImmediate) }
        : {};
    const { out } = attention(byHead(q), byHead(project(sequence, wk)), byHead(project(sequence, wv)), hide);
    const update = project((out as unknown as Tensor).reshape([batch, seq, inner]), weights.out);
    const attended = plusGated(source, narrow(weights.attentionGate, source), update);
    const normal = layerNorm(attended, feedForwardNormWeight, feedForwardNormBias);
    const fed = project(gelu(project(normal, weights.up)), weights.down);
    return plusGated(attended, narrow(weights.feedForwardGate, source), fed);
  }) as Tensor<D, Shape>;
}

function checkArguments(
  x: Tensor,
  media: Tensor,
  weights: GatedCrossAttentionWeights,
  options: GatedCrossAttentionOptions,
): GatedCrossAttentionOptions {
  checkSequence(x, 'x');
  checkSequence(media, 'media', 'batch, media, entries, media dim');
  const [batch, seq, dim] = x.shape;
  if (media.shape[0] !== batch)
    throw shapeError(`x has shape ${show(x.shape)} and media ${show(media.shape)}; they must have the same batch`);
  if (media.dtype !== x.dtype)
    throw new FlashAttnError('ERR_DTYPE', `media is ${media.dtype}; it must be ${x.dtype} as x is`);
  media.operand('media', x.backend);
  checkOptions(options, optionNames);
  const { heads, mediaLocations, onlyImmediate = true } = options;
  checkInteger(heads, 'heads', 1);
  checkBoolean(onlyImmediate, 'onlyImmediate');
  if (mediaLocations !== undefined) {
    checkAnyTensor(mediaLocations, 'mediaLocations');
    const { dtype, shape } = mediaLocations as AnyTensor;
    if (dtype !== 'bool') throw new FlashAttnError('ERR_DTYPE', `mediaLocations is ${dtype}; it must be bool`);
    if (!sameShape(shape, [batch, seq]))
      throw shapeError(`mediaLocations has shape ${show(shape)}; it must be [batch, seq], here [${batch}, ${seq}]`);
    mediaLocations.operand('mediaLocations', x.backend);
  }
  const check = weightsOf(weights, weightNames, x);
  for (const name of ['attentionGate', 'feedForwardGate'] as const) check(name, [1], '1');
  for (const name of ['normWeight', 'normBias', 'feedForwardNormWeight', 'feedForwardNormBias'] as const)
    check(name, [dim], 'dim');
  check('query', [-1, dim], 'heads head dim, dim');
  const inner = weights.query.shape[0];
  if (inner === 0 || inner % heads !== 0)
    throw shapeError(
      `weights.query has shape ${show(weights.query.shape)}; its rows must be a multiple of the ${heads} heads`,
    );
  check('keyValue', [2 * inner, media.shape[3]], '2 heads head dim, media dim');
  check('out', [dim, inner], 'dim, heads head dim');
  check('up', [-1, dim], 'hidden, dim');
  check('down', [dim, weights.up.shape[0]], 'dim, hidden');
  return options;
}

export interface GatedCrossAttentionLayerOptions extends ModuleOptions {
  readonly width: number;
  /** Of the media. Default the width. */
  readonly mediaWidth?: number;
  readonly heads: number;
  /** Default width / heads. */
  readonly headDim?: number;
  /** Of the feed-forward network. Default four times the width. */
  readonly hidden?: number;
  readonly onlyImmediate?: boolean;
  /** Of the matrices. Default PyTorch's: see `Linear`. */
  readonly initial?: Initial;
}

const names = [
  ...moduleOptionNames,
  ...(['width', 'mediaWidth', 'heads', 'headDim', 'hidden', 'onlyImmediate', 'initial'] as const),
] as const satisfies readonly (keyof GatedCrossAttentionLayerOptions)[];

/** A layer of `gatedCrossAttention`, whose gates begin closed: the model around it is at first what it was without it. */
export class GatedCrossAttention extends Module {
  attentionGate: Tensor;
  feedForwardGate: Tensor;
  readonly norm: LayerNorm;
  readonly query: Linear;
  readonly keyValue: Linear;
  readonly out: Linear;
  readonly feedForwardNorm: LayerNorm;
  readonly up: Linear;
  readonly down: Linear;
  readonly heads: number;
  readonly onlyImmediate: boolean;

  constructor(options: GatedCrossAttentionLayerOptions) {
    super();
    checkOptions(options, names);
    const { width, mediaWidth = width, heads, hidden = 4 * width, onlyImmediate = true } = options;
    checkInteger(width, 'width', 1);
    checkInteger(mediaWidth, 'mediaWidth', 1);
    checkInteger(hidden, 'hidden', 1);
    this.heads = checkInteger(heads, 'heads', 1);
    this.onlyImmediate = checkBoolean(onlyImmediate, 'onlyImmediate');
    if (options.headDim === undefined && width % heads !== 0)
      throw optionError(`width ${width} is no multiple of heads ${heads}; give headDim`);
    const inner = heads * checkInteger(options.headDim ?? width / heads, 'headDim', 1, 256);
    const all = { ...pick(options, moduleOptionNames), seed: Seeds.of(options.seed) };
    const linear = { ...all, ...pick(options, ['initial']), bias: false };
    try {
      this.attentionGate = makeWeight([1], { kind: 'zeros' }, all);
      this.feedForwardGate = makeWeight([1], { kind: 'zeros' }, all);
      this.norm = new LayerNorm(width, all);
      this.query = new Linear(width, inner, linear);
      this.keyValue = new Linear(mediaWidth, 2 * inner, linear);
      this.out = new Linear(inner, width, linear);
      this.feedForwardNorm = new LayerNorm(width, all);
      this.up = new Linear(width, hidden, linear);
      this.down = new Linear(hidden, width, linear);
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** @param mediaLocations see `gatedCrossAttention` */
  forward(x: Tensor, media: Tensor, mediaLocations?: Tensor<'bool', Shape>): Tensor {
    const weights = {
      attentionGate: this.attentionGate,
      feedForwardGate: this.feedForwardGate,
      normWeight: this.norm.weight,
      normBias: this.norm.bias,
      query: this.query.weight,
      keyValue: this.keyValue.weight,
      out: this.out.weight,
      feedForwardNormWeight: this.feedForwardNorm.weight,
      feedForwardNormBias: this.feedForwardNorm.bias,
      up: this.up.weight,
      down: this.down.weight,
    };
    const { heads, onlyImmediate } = this;
    return gatedCrossAttention(x, media, weights, { heads, onlyImmediate, ...(mediaLocations && { mediaLocations }) });
  }
}
