import { attention, type Shape4 } from '../attention/attention.js';
import { checkInteger, checkNumber, checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { cast } from '../ops/cast.js';
import { abs, fused, mul, sub } from '../ops/elementwise.js';
import { max, mean, min } from '../ops/reduce.js';
import { softmax } from '../ops/softmax.js';
import { scope } from '../tape/scope.js';
import { withoutRecording } from '../tape/tape.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { checkQkv, checkShaped, narrow, wide } from './inputs.js';
import { clippedTo, quantisedProduct, symmetric, ternary, throughQuantiser } from './quantise.js';

export interface QuantisedAttentionOptions {
  /** Numbers are clipped to -clip ... clip before anything else; those beyond have no gradient. Default 2.5. */
  readonly clip?: number;
}

const readClip = (options: QuantisedAttentionOptions): number => {
  checkOptions(options, ['clip']);
  return checkNumber(options.clip ?? 2.5, 'clip', Number.MIN_VALUE);
};

type Heads<D extends FloatDType> = Tensor<D, Shape4>;

const four = (t: Tensor) => t as unknown as Tensor<FloatDType, Shape4>;

/**
 * Attention with queries, keys, probabilities and values of 8 bits: out = Q(softmax(Q(q) Q(k)^T / sqrt(dim))) Q(v), where Q
 * clips, and rounds x s to whole numbers, ties to even, s = 127 / max|x| of the whole tensor: SymQuantizer of htqin/BiBERT.
 * Gradients go straight through the roundings. The scale of the probabilities is that of all of them: they are in memory
 * together, [batch, heads, Nq, Nk]. Computed in float32; products of codes are exact for dims and Nk up to 1,040.
 *
 * @param q [batch, Nq, heads, dim]
 * @param k [batch, Nk, heads, dim]
 * @param v [batch, Nk, heads, value dim]
 * @returns [batch, Nq, heads, value dim] of the dtype of q
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function int8SymmetricAttention<D extends FloatDType>(
  q: Heads<D>,
  k: Heads<NoInfer<D>>,
  v: Heads<NoInfer<D>>,
  options: QuantisedAttentionOptions = {},
): Heads<D> {
  checkQkv(q, k, v);
  const clip = readClip(options);
  const [query, key, values] = [q, k, v] as unknown as [Tensor, Tensor, Tensor];
  return scope(() => {
    // No largest number, and nothing to quantise.
    if (query.size * key.size * values.size === 0) return attention(four(query), four(key), four(values)).out;
    const int8 = symmetric(8);
    const clipped = (t: Tensor) => clippedTo(wide(t).transpose(1, 2), clip);
    const scores = quantisedProduct(clipped(query), clipped(key), int8, int8);
    const probabilities = softmax(mul(scores, 1 / Math.sqrt(query.shape[3])) as Tensor);
    const out = quantisedProduct(clippedTo(probabilities, clip), clipped(values).transpose(-2, -1), int8, int8);
    return narrow(out.transpose(1, 2).contiguous(), query);
  }) as unknown as Heads<D>;
}

/**
 * Attention to ternary keys and values: out = softmax(Q(q) Q(k)^T / sqrt(dim)) Q(v), where Q clips, and makes a sign(x) of what
 * is larger than 0.7 mean|x| of the whole tensor and 0 of the rest, a being the mean |x| of the former (ternary weight
 * networks, Li et al. 2016, arXiv:1605.04711): TwnQuantizer of htqin/BiBERT. Gradients go straight through. Computed in
 * float32.
 *
 * @param q [batch, Nq, heads, dim]
 * @param k [batch, Nk, heads, dim]
 * @param v [batch, Nk, heads, value dim]
 * @returns [batch, Nq, heads, value dim] of the dtype of q
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function ternaryAttention<D extends FloatDType>(
  q: Heads<D>,
  k: Heads<NoInfer<D>>,
  v: Heads<NoInfer<D>>,
  options: QuantisedAttentionOptions = {},
): Heads<D> {
  checkQkv(q, k, v);
  const clip = readClip(options);
  return scope(() => {
    const [query, key, values] = [q, k, v].map((t) => {
      const x = wide(t as unknown as Tensor);
      return four(x.size === 0 ? x : throughQuantiser(clippedTo(x, clip), ternary));
    }) as [Tensor<FloatDType, Shape4>, Tensor<FloatDType, Shape4>, Tensor<FloatDType, Shape4>];
    return narrow(attention(query, key, values).out as unknown as Tensor, q as unknown as Tensor);
  }) as unknown as Heads<D>;
}

/** x is about codes * step. */
export interface QuantisedRows {
  /** Whole numbers from -127 to 127, float32: [batch, seq, heads, dim]. */
  readonly codes: Tensor<'float32', Shape>;
  /** float32 [batch, seq, heads, 1] */
  readonly step: Tensor<'float32', Shape>;
}

const stepOf = fused(function stepOf(largest, most) {
  return largest.div(most);
});
const codesOf = fused(function codesOf(x, step) {
  return x.div(step.equal(0).where(1, step)).round();
});

function quantiseRows(x: Tensor): QuantisedRows {
  const step = stepOf(max(abs(x), -1, { keepDims: true }), 127);
  return { codes: codesOf(x, step), step } as unknown as QuantisedRows;
}

export interface SmoothKResult<D extends FloatDType> {
  /** [batch, Nq, heads, value dim] */
  readonly out: Heads<D>;
  /** Of q / sqrt(dim), and of k less its mean over tokens. */
  readonly q: QuantisedRows;
  readonly k: QuantisedRows;
}

/**
 * Attention with smoothed keys and scores of 8 bits (Zhang et al., "SageAttention", 2024, arXiv:2410.02367): the mean of keys
 * over tokens, which moves all scores of a query alike, is taken off; q / sqrt(dim) and k become whole numbers from -127 to 127
 * with a step for each token and head, max|x| / 127, ties to even; values stay. For inference: nothing but v has a gradient.
 * Scores are made tile by tile.
 *
 * @param q [batch, Nq, heads, dim]
 * @param k [batch, Nk, heads, dim]
 * @param v [batch, Nk, heads, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function int8SmoothKAttention<D extends FloatDType>(
  q: Heads<D>,
  k: Heads<NoInfer<D>>,
  v: Heads<NoInfer<D>>,
): SmoothKResult<D> {
  checkQkv(q, k, v);
  const [query, key, values] = [q, k, v] as unknown as [Tensor, Tensor, Tensor];
  return scope(() => {
    const rows = withoutRecording(() => ({
      q: quantiseRows(mul(wide(query), 1 / Math.sqrt(query.shape[3])) as Tensor),
      k: quantiseRows(sub(wide(key), mean(wide(key), 1, { keepDims: true })) as Tensor),
    }));
    const { out } = attention(fromRows(rows.q), fromRows(rows.k), four(wide(values)), { scale: 1 });
    return { out: narrow(out as unknown as Tensor, query) as unknown as Heads<D>, ...rows };
  });
}

/** What a kernel for whole numbers would leave out: codes times steps, as attention of floats reads them. */
const fromRows = ({ codes, step }: QuantisedRows) => four(mul(codes, step) as Tensor);

/** x is about codes * step + least. */
export interface QuantisedCacheEntry {
  /** Whole numbers from 0 to 2^bits - 1, in float16, which holds them exactly: [batch, seq, heads, dim]. */
  readonly codes: Tensor<'float16', Shape>;
  /** float32: of keys [batch, 1, heads, dim], of values [batch, seq, heads, 1]. */
  readonly step: Tensor<'float32', Shape>;
  readonly least: Tensor<'float32', Shape>;
}

export interface QuantisedKvCache {
  readonly k: QuantisedCacheEntry;
  readonly v: QuantisedCacheEntry;
}

const spanStep = fused(function spanStep(most, least, levels) {
  return most.sub(least).div(levels);
});
const codesFrom = fused(function codesFrom(x, least, step) {
  return x.sub(least).div(step.equal(0).where(1, step)).round();
});
const valuesFrom = fused(function valuesFrom(codes, step, least) {
  return codes.mul(step).add(least);
});

/** With the least and the largest number along an axis as the ends of the codes. */
function quantiseAlong(x: Tensor, axis: number, levels: number): QuantisedCacheEntry {
  const [most, least] = [max(x, axis, { keepDims: true }), min(x, axis, { keepDims: true })];
  const step = spanStep(most, least, levels);
  return { codes: cast(codesFrom(x, least, step), 'float16'), step, least } as unknown as QuantisedCacheEntry;
}

/**
 * Keys and values of a cache in few bits (Liu et al., "KIVI", 2024, arXiv:2402.02750, with all tokens in one group): keys for
 * each channel, with its least and largest number over tokens, values for each token, with those over channels; codes =
 * round((x - least) / step), step = (largest - least) / (2^bits - 1), ties to even. No gradients.
 *
 * @param k [batch, seq, heads, dim] with at least one token
 * @param v [batch, seq, heads, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function quantiseKvCache<D extends FloatDType>(
  k: Heads<D>,
  v: Heads<NoInfer<D>>,
  options: { readonly bits: number },
): QuantisedKvCache {
  checkQkv(k, k, v);
  checkOptions(options, ['bits']);
  const levels = 2 ** checkInteger(options.bits, 'bits', 1, 8) - 1;
  return scope(() =>
    withoutRecording(() => ({
      k: quantiseAlong(wide(k as unknown as Tensor), 1, levels),
      v: quantiseAlong(wide(v as unknown as Tensor), 3, levels),
    })),
  );
}

/**
 * Attention of queries to a quantised cache, all of which they see: out = softmax(q k^T / sqrt(dim)) v with k and v from their
 * codes, in float32. The gradient is that of q.
 *
 * @param q [batch, Nq, heads, dim]
 * @param cache of `quantiseKvCache`
 * @returns [batch, Nq, heads, value dim] of the dtype of q
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function quantisedKvCacheAttention<D extends FloatDType>(q: Heads<D>, cache: QuantisedKvCache): Heads<D> {
  checkOptions(cache, ['k', 'v'], 'cache');
  const query = q as unknown as Tensor;
  for (const name of ['k', 'v'] as const) {
    checkOptions(cache[name], ['codes', 'step', 'least'], `cache.${name}`);
    const { codes, step, least } = cache[name];
    checkShaped(codes, `cache.${name}.codes`, [-1, -1, -1, -1], 'batch, seq, heads, dim', query);
    const [batch, seq, heads, dim] = codes.shape;
    const shape = name === 'k' ? [batch, 1, heads, dim] : [batch, seq, heads, 1];
    checkShaped(
      step,
      `cache.${name}.step`,
      shape,
      name === 'k' ? 'batch, 1, heads, dim' : 'batch, seq, heads, 1',
      query,
    );
    checkShaped(least, `cache.${name}.least`, shape, 'those of step', query);
  }
  return scope(() => {
    const valuesOf = ({ codes, step, least }: QuantisedCacheEntry) => four(valuesFrom(wide(codes), step, least));
    const [keys, values] = withoutRecording(() => [valuesOf(cache.k), valuesOf(cache.v)] as const);
    const wideQuery = four(wide(query));
    checkQkv(wideQuery, keys, values);
    return narrow(attention(wideQuery, keys, values).out as unknown as Tensor, query);
  }) as unknown as Heads<D>;
}
