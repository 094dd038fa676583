import { attention, type Shape4 } from '../attention/attention.js';
import type { RelativeBias } from '../attention/relative.js';
import { checkNumber, checkOptions, mustBe } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';
import { Remember } from '../base/remember.js';
import { fused, mul } from '../ops/elementwise.js';
import { gatherRows, RowMap, releaseCopies } from '../ops/gather.js';
import { matmul } from '../ops/matmul.js';
import { softmax } from '../ops/softmax.js';
import { stack, unbind } from '../ops/split.js';
import { scope } from '../tape/scope.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { byDifference } from './gatedAttention.js';
import { checkQkv, checkShaped, narrow, type Sequence, type Wide, wide } from './inputs.js';

export interface DifferentiableMaskOptions {
  /** Exponential numbers with mean 1, of the shape of the logits, which Gumbel noise -log(noise + 1e-5) is made of. Default no noise. */
  readonly noise?: Tensor<FloatDType, Shape>;
  /** Of the softmax that the gradient goes through. Default 1. */
  readonly temperature?: number;
}

const gumbel = fused((logit, noise) => logit.sub(noise.add(1e-5).log()));
/** Of two, the first by softmax, and whether it is the larger one; equal ones count as that. */
const share = fused((keep, drop, temperature) => keep.sub(drop).div(temperature).sigmoid());
const isLarger = fused((keep, drop) => drop.lessEqual(keep).where(1, 0));
/** A constant with the gradient of p. */
const straightThrough = fused((p, constant, hard) => p.sub(constant).add(hard));

const positive = (temperature: unknown): number => {
  if (checkNumber(temperature, 'temperature', 0) === 0) throw mustBe('temperature', temperature, 'more than 0');
  return temperature as number;
};

/**
 * Which distances the heads of SparseBERT keep: 1 where the first of two logits, with Gumbel noise, is the larger one, else 0; gradients
 * are those of its softmax. Shi et al., "SparseBERT" (2021), arXiv:2102.12871, as the authors compute it.
 *
 * @param alphas [heads, seq, 2]: to keep a distance, and to drop it
 * @returns [heads, seq], float32
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function differentiableAttentionMask(
  alphas: Tensor<FloatDType, Shape>,
  options: DifferentiableMaskOptions = {},
): Tensor<'float32', Shape> {
  checkTensor(alphas, 'alphas');
  if (alphas.shape.length !== 3 || alphas.shape[2] !== 2)
    throw shapeError(`alphas has shape ${show(alphas.shape)}; it must be [heads, seq, 2]`);
  checkOptions(options, ['noise', 'temperature']);
  const { noise, temperature = 1 } = options;
  positive(temperature);
  if (noise !== undefined) checkShaped(noise, 'noise', alphas.shape, 'heads, seq, 2', alphas);
  return scope(() => {
    const logits = noise ? gumbel(wide(alphas), wide(noise)) : wide(alphas);
    const [keep, drop] = unbind(logits, 2) as [Tensor, Tensor];
    const p = share(keep, drop, temperature);
    return straightThrough(p, p.detach(), isLarger(keep.detach(), drop.detach())) as Wide;
  });
}

/** What is added to the logits of a pair that is dropped. */
const dropped = -10_000;
const biasOf = fused((keep) => keep.neg().add(1).mul(dropped));

interface Distances {
  readonly buckets: Int32Array;
  readonly rows: RowMap;
}

const known = new Remember<Distances>(releaseCopies);

/** |j - i| for j - i from 1 - seq to seq - 1. */
const distances = (seq: number): Distances =>
  known.get([seq], () => {
    const buckets = Int32Array.from({ length: Math.max(0, 2 * seq - 1) }, (_, at) => Math.abs(at - seq + 1));
    return { buckets, rows: RowMap.of(buckets, seq) };
  });

export interface SparseBertOptions {
  /** What `differentiableAttentionMask` gives: [heads, seq], 1 for a distance that a head keeps, else 0. */
  readonly keep: Tensor<FloatDType, Shape>;
  /** Added to the logits, such as -10,000 for tokens that are none; broadcasts to [batch, heads, seq, seq]. */
  readonly attentionMask?: Tensor<FloatDType, Shape>;
}

/**
 * Attention of SparseBERT with a mask that is learned by distance: softmax_j(q_i . k_j / sqrt(dim) + attentionMask - 10,000
 * (1 - keep[head, |i - j|])) v, with gradients of keep. Shi et al., "SparseBERT" (2021), arXiv:2102.12871, as the authors' code has it;
 * it makes the gradients of keep 10,000 times as large as those of the probabilities, which the paper multiplies by the
 * mask. A query whose keys are all dropped sees all of them, with logits that float32 rounds to a thousandth.
 *
 * Never holds pairs: the mask is a table of distances.
 *
 * @param q [batch, seq, heads, dim]
 * @param k [batch, seq, heads, dim]
 * @param v [batch, seq, heads, value dim]
 * @returns [batch, seq, heads, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function sparseBertAttention<D extends FloatDType>(
  q: Tensor<D, Shape4>,
  k: Tensor<NoInfer<D>, Shape4>,
  v: Tensor<NoInfer<D>, Shape4>,
  options: SparseBertOptions,
): Tensor<D, Shape4> {
  const [query, key, value] = [q, k, v] as unknown as readonly [Tensor, Tensor, Tensor];
  checkQkv(query, key, value, { self: true });
  checkOptions(options, ['keep', 'attentionMask']);
  const { keep, attentionMask } = options;
  const [, seq, heads] = query.shape as readonly number[];
  checkShaped(keep, 'keep', [heads, seq], 'heads, seq', query);
  if (attentionMask !== undefined) checkTensor(attentionMask, 'attentionMask');
  return scope(() => {
    const mask = attentionMask && { bias: attentionMask };
    if (query.size === 0) return attention(query, key, value, { ...mask }).out;
    const table = biasOf(wide(keep)).transpose(0, 1).contiguous();
    const relativeBias: RelativeBias = { table, buckets: distances(seq).buckets, origin: seq - 1 };
    return attention(query, key, value, { ...mask, relativeBias }).out;
  }) as unknown as Tensor<D, Shape4>;
}

/**
 * The mask of `sparseBertAttention` pair by pair, to look at it: M[h, i, j] = keep[h, |i - j|].
 *
 * @param keep [heads, seq]
 * @returns [heads, seq, seq]
 * @throws ERR_SHAPE, ERR_OPTION, ERR_DTYPE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function sparseBertMask<D extends FloatDType>(keep: Tensor<D, Shape>): Tensor<D, Shape> {
  checkTensor(keep, 'keep');
  const t = keep as Tensor;
  if (t.shape.length !== 2 || t.size === 0)
    throw shapeError(`keep has shape ${show(t.shape)}; it must be [heads, seq], not empty`);
  const [heads, seq] = t.shape;
  return scope(() => {
    const byDistance = t.transpose(0, 1).contiguous().reshape([1, seq, heads]);
    const both = gatherRows(byDistance, distances(seq).rows).reshape([2 * seq - 1, heads]);
    return stack(unbind(both, 1).map((own) => byDifference(own.contiguous(), seq)));
  }) as Tensor<D, Shape>;
}

export interface UnstructuredMaskOptions {
  /** A logit for each pair of positions: [heads, seq, seq]. */
  readonly alphas: Tensor<FloatDType, Shape>;
  /** Logistic numbers that are added to them, of their shape. Default none. */
  readonly noise?: Tensor<FloatDType, Shape>;
  /** Of the sigmoid that the gradient goes through. Default 0.5. */
  readonly temperature?: number;
}

export interface UnstructuredResult<D extends FloatDType = FloatDType> {
  readonly out: Tensor<D, Shape4>;
  /** 1 for pairs that are kept, else 0: [heads, seq, seq], float32. */
  readonly mask: Tensor<'float32', Shape>;
}

const sum = fused((alpha, noise) => alpha.add(noise));
const tempered = fused((logit, temperature) => logit.div(temperature).sigmoid());
const isPositive = fused((logit) => logit.lessEqual(0).where(0, 1));

/**
 * Attention of SparseBERT with a logit for each pair: out = (softmax(q k^T / sqrt(dim)) M) v, with M = 1 where alphas + noise > 0, else
 * 0, gradients of M being those of sigmoid((alphas + noise) / temperature); what remains is not made to sum up to 1. Shi et al. (2021),
 * arXiv:2102.12871, the unstructured mask. Pairs that are dropped have a gradient too, so that they can come back.
 *
 * Holds all pairs, in float32: the mask itself has one parameter for each of them.
 *
 * @param q [batch, seq, heads, dim]
 * @param k [batch, seq, heads, dim]
 * @param v [batch, seq, heads, value dim]
 * @returns out [batch, seq, heads, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function sparseBertUnstructuredAttention<D extends FloatDType>(
  q: Tensor<D, Shape4>,
  k: Tensor<NoInfer<D>, Shape4>,
  v: Tensor<NoInfer<D>, Shape4>,
  options: UnstructuredMaskOptions,
): UnstructuredResult<D> {
  const [query, key, value] = [q, k, v] as unknown as readonly [Tensor, Tensor, Tensor];
  checkQkv(query, key, value, { self: true });
  checkOptions(options, ['alphas', 'noise', 'temperature']);
  const { alphas, noise, temperature = 0.5 } = options;
  const [, seq, heads, dim] = query.shape as readonly number[];
  checkShaped(alphas, 'alphas', [heads, seq, seq], 'heads, seq, seq', query);
  if (noise !== undefined) checkShaped(noise, 'noise', [heads, seq, seq], 'heads, seq, seq', query);
  positive(temperature);
  return scope(() => {
    const logits = noise ? sum(wide(alphas), wide(noise)) : wide(alphas);
    const p = tempered(logits, temperature);
    const mask = straightThrough(p, p.detach(), isPositive(logits.detach()));
    const [qh, kh, vh] = [query, key, value].map((t) => wide(t).transpose(1, 2)) as [Sequence, Sequence, Sequence];
    const weights = softmax(matmul(qh, kh.transpose(2, 3), { alpha: 1 / Math.sqrt(dim) }));
    const out = matmul(mul(weights, mask) as Sequence, vh)
      .transpose(1, 2)
      .contiguous();
    return { out: narrow(out, query), mask };
  }) as unknown as UnstructuredResult<D>;
}
