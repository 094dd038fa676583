import { attention, attentionBackward, type Shape4 } from '../attention/attention.js';
import type { RelativeBias } from '../attention/relative.js';
import { checkInteger, checkIntegers, checkOptions as checkNames, mustBe } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { optionError, shapeError, show } from '../base/errors.js';
import { Remember } from '../base/remember.js';
import { perHead, slidingWindow } from '../masks/index.js';
import type { Mask } from '../masks/mask.js';
import { add, fused } from '../ops/elementwise.js';
import { releaseCopies } from '../ops/gather.js';
import { matmul } from '../ops/matmul.js';
import { sum } from '../ops/reduce.js';
import { pad } from '../ops/split.js';
import { scope } from '../tape/scope.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { checkFloat32State, checkShaped, narrow, type Wide, wide } from './inputs.js';
import {
  checkGradient,
  checkInputs,
  checkOptions,
  type Regrouped,
  type RegroupedGradients,
  SavedAttention,
  type ScaleOption,
  scaleOf,
  shapesOf,
  viewOfAll,
} from './saved.js';
import { countUp } from './selectedBlocks.js';

export interface AdaptiveSpanOptions extends ScaleOption {
  /**
   * The learned span of each head as a share of the longest one: float32 [heads]. From 0 to 1; they are not read back, and
   * others stand for what the formula makes of them.
   */
  readonly span: Tensor<'float32', Shape>;
  /** Over how many tokens the soft mask falls from 1 to 0. */
  readonly ramp: number;
  /** Added to the key of every query by its place among the keys that the query sees: float32 [dim, longest span]. */
  readonly keyPe?: Tensor<'float32', Shape>;
  /**
   * How many keys before its own position a head looks at, at most the longest span: one number for all heads or one for
   * each. Keys farther away cost nothing, and are not seen: `adaptiveSpanReach` tells what the spans need. Default all.
   */
  readonly reach?: number | readonly number[];
}

export interface AdaptiveSpanGradients<D extends FloatDType = FloatDType> extends RegroupedGradients<D, Shape4> {
  readonly dSpan: Tensor<'float32', Shape>;
  readonly dKeyPe?: Tensor<'float32', Shape>;
}

/** q [batch, queries, heads, dim] and k [batch, queries + longest, kv heads, dim] */
interface Dims {
  readonly batch: number;
  readonly queries: number;
  readonly heads: number;
  readonly dim: number;
  /** The longest span: the keys before a query, columns 0 to longest - 1. */
  readonly longest: number;
}

/** How `adaptiveSpanAttention` weighs the keys. */
export interface AdaptiveSpanLayout {
  readonly dims: Dims;
  readonly ramp: number;
  readonly scale: number;
  readonly span: Tensor<'float32', Shape>;
  readonly keyPe: Tensor<'float32', Shape> | undefined;
}

const pattern = 'adaptiveSpanAttention';

function readReach(reach: unknown, { heads, longest }: Dims): readonly number[] {
  if (reach === undefined) return [longest];
  if (typeof reach === 'number') return [checkInteger(reach, 'reach', 1, longest)];
  const each = checkIntegers(reach, 'reach', 1, longest);
  if (each.length !== heads) throw mustBe('reach', each, `a number, or one for each of the ${heads} heads`);
  return each.every((n) => n === each[0]) ? [each[0]] : each;
}

function readDims(q: Tensor, k: Tensor, v: Tensor, options: AdaptiveSpanOptions): Dims {
  checkInputs(q, k, v, ['batch', 'length', 'heads', 'dim'], 1);
  checkOptions(options, ['span', 'ramp', 'keyPe', 'reach']);
  const [batch, queries, heads, dim] = q.shape;
  const longest = k.shape[1] - queries;
  if (longest < 1 || queries < 1)
    throw shapeError(`k has ${k.shape[1]} tokens for ${queries} queries; it must have one for each and those before`);
  const { span, ramp, keyPe } = options;
  checkInteger(ramp, 'ramp', 1);
  checkFloat32State(span, 'span');
  checkShaped(span, 'span', [heads], 'heads', q);
  if (keyPe !== undefined) {
    checkFloat32State(keyPe, 'keyPe');
    checkShaped(keyPe, 'keyPe', [dim, longest], 'dim, longest span', q);
  }
  return { batch, queries, heads, dim, longest };
}

/** What is left of a key of column c before it is clamped to [0, 1]. */
const shareOf = fused((span, c, longest, ramp) => span.mul(longest).sub(longest.sub(1).sub(c)).div(ramp).add(1));
const logOf = fused((share) => share.lessEqual(0).where(Number.NEGATIVE_INFINITY, share.minimum(1).log()));
/** Of the span, from that of the logarithm: there is none where the share is clamped. */
const slopeOf = fused((share, dLog, longest, ramp) =>
  share.lessEqual(0).where(0, share.lessEqual(1).where(dLog.div(share).mul(longest).div(ramp), 0)),
);

/** The shares of all columns and heads, [longest, heads]. */
const shares = (span: Tensor, { longest, heads }: Dims, ramp: number): Wide =>
  shareOf(span.reshape([1, heads]), countUp(longest, span).reshape([longest, 1]), longest, ramp) as Wide;

interface Buckets {
  readonly buckets: Int32Array;
}

const columns = new Remember<Buckets>(releaseCopies);

/** Query i sees key j in column j - i. Pairs outside of all columns are masked; their bucket means nothing. */
const columnsOf = ({ queries, longest }: Dims): Pick<RelativeBias, 'buckets' | 'origin'> => ({
  ...columns.get([queries, longest], () => ({
    buckets: Int32Array.from({ length: 2 * queries + longest }, (_, at) =>
      Math.min(Math.max(at - (queries - 1), 0), longest - 1),
    ),
  })),
  origin: queries - 1,
});

const windows = new Remember<Mask>(releaseCopies);

/** Query i stands on the diagonal with its last column. */
const sightOf = (reach: readonly number[]) =>
  reach.length === 1
    ? { window: [reach[0] - 1, 0] as const }
    : { mask: windows.get(reach, () => perHead(reach.map((n) => slidingWindow(n - 1, 0)))) };

const none = [0, 0] as const;

/** From columns [batch, heads, queries, longest] to keys [..., queries + longest - 1]: row i moves by i. */
function shifted(t: Tensor, { batch, heads, queries, longest }: Dims): Tensor {
  const keys = queries + longest - 1;
  // A row is longer by one than there are keys, so that each begins one place later than the one before.
  const spaced = pad(t, [none, none, none, [0, queries]]).reshape([batch, heads, queries * (keys + 1)]);
  return spaced
    .slice(2, 0, queries * keys)
    .contiguous()
    .reshape([batch, heads, queries, keys]);
}

/** The adjoint of `shifted`. */
function shiftedBack(t: Tensor, { batch, heads, queries, longest }: Dims): Tensor {
  const keys = queries + longest - 1;
  return pad(t.reshape([batch, heads, queries * keys]), [none, none, [0, queries]])
    .reshape([batch, heads, queries, keys + 1])
    .slice(3, 0, longest)
    .contiguous();
}

/** The last key lies after every query's span. */
const beforeLast = <D extends FloatDType>(t: Tensor<D, Shape4>) => t.slice(1, 0, t.shape[1] - 1);

/**
 * Adaptive attention span (Sukhbaatar et al. 2019, arXiv:1905.07799). Query m sees the L keys before it, column c = 0 to L - 1
 * being key m + c, through a soft mask that each head learns:
 * out_m = sum_c p_c w_c v_{m+c} / sum_c p_c w_c, p = softmax_c(scale * q_m.(k_{m+c} + keyPe_c)),
 * w_c = clamp((span * L - (L - 1 - c)) / ramp + 1, 0, 1). A query all of whose weights are 0, as with a span below
 * -ramp / L, gives zeros. (The original adds 1e-8 to the denominator.)
 *
 * One fused attention, with the logarithm of w as a bias by distance; with `keyPe` the term q.keyPe as a number for each pair,
 * [batch, heads, M, L + M] of float32. Nothing is read back. Spans, too, get gradients in `backward()`, as do q, k, v and
 * keyPe. NaN in a key of weight 0 is NaN in the result, but for keys out of `reach`.
 *
 * @param q [batch, M, heads, dim]
 * @param k [batch, L + M, kv heads, dim]: the L tokens before the queries, then those of the queries
 * @param v [batch, L + M, kv heads, value dim]
 * @returns out [batch, M, heads, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function adaptiveSpanAttention<D extends FloatDType>(
  q: Tensor<D, Shape4>,
  k: Tensor<D, Shape4>,
  v: Tensor<D, Shape4>,
  options: AdaptiveSpanOptions,
): Regrouped<D, Shape4, AdaptiveSpanLayout> {
  const dims = readDims(q, k, v, options);
  const reach = readReach(options.reach, dims);
  const { span, ramp, keyPe, scale = 1 / Math.sqrt(dims.dim) } = options;
  return scope(() => {
    const tensors = { q: viewOfAll(q), k: beforeLast(k), v: beforeLast(v) };
    const table = logOf(shares(span, dims, ramp)) as Wide;
    const places = keyPe && matmul(wide(q as Tensor).transpose(1, 2), keyPe as Tensor, { alpha: scale });
    const bias = places && shifted(places, dims);
    const used = {
      ...scaleOf(options),
      ...sightOf(reach),
      relativeBias: { table, ...columnsOf(dims) },
      ...(bias && { bias }),
    };
    const { out, lse } = attention(tensors.q, tensors.k, tensors.v, used);
    const layout = { dims, ramp, scale, span: viewOfAll(span), keyPe: keyPe && viewOfAll(keyPe) };
    const saved = new SavedAttention<D, AdaptiveSpanLayout>(
      pattern,
      { ...tensors, out, lse },
      used,
      shapesOf(q, k, v),
      layout,
      [table, bias, layout.span, layout.keyPe].filter((t) => t !== undefined),
    );
    return { out: viewOfAll(out), saved };
  });
}

/**
 * The gradients of `adaptiveSpanAttention`. A span has none through columns where the soft mask is clamped.
 *
 * @param dOut the shape and dtype of out
 * @param saved what the forward pass saved
 * @throws as `adaptiveSpanAttention`
 */
export function adaptiveSpanAttentionBackward<D extends FloatDType>(
  dOut: Tensor<D, Shape4>,
  saved: SavedAttention<D, AdaptiveSpanLayout>,
): AdaptiveSpanGradients<D> {
  checkGradient(dOut, saved, pattern);
  const { dims, ramp, scale, span, keyPe } = saved.layout;
  const { batch, queries, heads, dim, longest } = dims;
  return scope(() => {
    const { dq, dk, dv, dBias, dRelativeBias } = attentionBackward<D, Shape>(dOut, saved);
    const withLast = (t: Tensor) => pad(t, [none, [0, 1], none, none]) as Tensor<D, Shape4>;
    const slopes = slopeOf(shares(span.detach(), dims, ramp), dRelativeBias as Tensor, longest, ramp);
    const results = { dk: withLast(dk), dv: withLast(dv), dSpan: sum(slopes, 0) as Wide };
    if (!keyPe || !dBias) return { ...results, dq: dq as Tensor<D, Shape4> };
    const dPlaces = shiftedBack(dBias as Tensor, dims);
    const pairs = batch * heads * queries;
    const rows = wide(saved.q as Tensor)
      .transpose(1, 2)
      .contiguous()
      .reshape([pairs, dim]);
    const fromPlaces = matmul(dPlaces, (keyPe.detach() as Tensor).transpose(0, 1), { alpha: scale });
    return {
      ...results,
      dq: narrow(add(wide(dq), fromPlaces.transpose(1, 2)) as Tensor, saved.q) as Tensor<D, Shape4>,
      dKeyPe: matmul(rows.transpose(0, 1), dPlaces.reshape([pairs, longest]), { alpha: scale }) as Wide,
    };
  });
}

export interface AdaptiveSpanReachOptions {
  /** The longest span: k has so many tokens before the queries. */
  readonly longest: number;
  /** As for `adaptiveSpanAttention`. */
  readonly ramp: number;
}

/**
 * How many keys before its own position each head sees, for the option `reach` of `adaptiveSpanAttention`: all of those that
 * the soft mask leaves something of. Between two looks spans may grow: then ask for more.
 *
 * Reads the spans back.
 *
 * @param span [heads]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_DISPOSED; ERR_OPTION, also for spans that are not from 0 to 1
 */
export async function adaptiveSpanReach(
  span: Tensor<'float32', Shape>,
  options: AdaptiveSpanReachOptions,
): Promise<number[]> {
  checkTensor(span, 'span');
  checkFloat32State(span, 'span');
  if (span.shape.length !== 1) throw shapeError(`span has shape ${show(span.shape)}; it must be [heads]`);
  checkNames(options, ['longest', 'ramp']);
  const longest = checkInteger(options.longest, 'longest', 1);
  const ramp = checkInteger(options.ramp, 'ramp', 1);
  const spans = await span.toFloat32();
  const bad = spans.findIndex((z) => !(z >= 0 && z <= 1));
  if (bad >= 0) throw optionError(`span[${bad}] is ${spans[bad]}; it must be from 0 to 1`);
  // A key at a distance d has weight while d < span * longest + ramp; one more, as the device rounds to float32.
  return Array.from(spans, (z) => Math.min(longest, Math.ceil(z * longest + ramp) + 1));
}
