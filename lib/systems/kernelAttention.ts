import { attention } from '../attention/attention.js';
import { checkpoint } from '../autograd/checkpoint.js';
import { checkBoolean, checkFloat32, checkOptions, checkWord, mustBe } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError } from '../base/errors.js';
import { concat } from '../ops/concat.js';
import { exp, fused, mul, square, where } from '../ops/elementwise.js';
import { matmul } from '../ops/matmul.js';
import { sum } from '../ops/reduce.js';
import { softmax } from '../ops/softmax.js';
import { split, unsqueeze } from '../ops/split.js';
import { scope } from '../tape/scope.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { checkPositions, checkQkv, narrow, type Sequence, type Wide, wide } from './inputs.js';

export interface KernelAttentionOptions {
  /** 'gaussian' (default): e^(-|q - k|_2^2 / (2 sigma^2)); 'laplacian': e^(-|q - k|_1 / sigma). */
  readonly kernel?: 'gaussian' | 'laplacian';
  /** Width of the kernel, above 0. Default dim^(1/4) of the Gaussian, with which q . k is scaled as in softmax attention, and sqrt(dim) of the Laplacian. */
  readonly sigma?: number;
  /** Whether each row is divided by the sum of its weights (Nadaraya and Watson; default) or not (Skyformer). */
  readonly normalize?: boolean;
  /**
   * Which positions are real, [batch, seq], of as many queries as keys: keys that are not have weight 0, and queries that are not
   * are taken as vectors of zeros, as in Skyformer.
   */
  readonly mask?: Tensor<'bool', Shape>;
}

type Mask = Tensor<'bool', Shape> | undefined;

/**
 * -|q - k|^2 / 2 s^2 = q . k / s^2 - |k|^2 / 2 s^2 - |q|^2 / 2 s^2: softmax attention with a bias by key, whose rows do not know
 * of |q|; the sum of their weights is e^(lse - |q|^2 / 2 s^2).
 */
function gaussian(q: Sequence, k: Sequence, v: Sequence, sigma: number, normalize: boolean, mask: Mask): Sequence {
  const half = -0.5 / sigma ** 2;
  const halfSquares = (t: Sequence) => mul(sum(square(wide(t)), -1), half).transpose(1, 2);
  const ofKeys = unsqueeze(halfSquares(k), 2);
  const bias = mask
    ? where(mask.reshape([mask.shape[0], 1, 1, mask.shape[1]]), ofKeys, Number.NEGATIVE_INFINITY)
    : ofKeys;
  const { out, lse } = attention<FloatDType, Shape>(q, k, v, { scale: sigma ** -2, bias });
  if (normalize) return out;
  const weights = exp(sumOfWeights(lse, halfSquares(q)));
  return narrow(mul(out, unsqueeze(weights.transpose(1, 2), -1)) as Wide, out);
}

const sumOfWeights = fused((lse, ofQuery) => lse.add(ofQuery));

/** How many numbers |q_d - k_d| are held at once. */
const mostDifferences = 2 ** 20;

const distanceAlong = fused((q, k) => q.sub(k).abs());

/** Some queries with all keys: q [batch, heads, queries, dim], k [batch * heads, 1, dim, keys], v [batch, heads, keys, value dim] */
function laplacianRows(q: Wide, k: Wide, v: Wide, sigma: number, normalize: boolean, mask: Mask): Wide {
  const [batch, heads, queries, dim] = q.shape;
  const keys = v.shape[2];
  const rows = q.contiguous().reshape([batch * heads, queries, dim, 1]);
  const distances = sum(distanceAlong(rows, k) as Wide, 2);
  const scores = mul(distances, -1 / sigma).reshape([batch, heads, queries, keys]) as Wide;
  const visible = mask?.reshape([batch, 1, 1, keys]);
  const hidden = visible ? where(visible, scores, Number.NEGATIVE_INFINITY) : scores;
  const weights = normalize ? softmax(hidden) : exp(hidden);
  // Where nothing is visible the softmax is NaN, and the row is 0 as in attention.
  return matmul(visible && normalize ? where(visible, weights, 0) : weights, v);
}

function laplacian(q: Sequence, k: Sequence, v: Sequence, sigma: number, normalize: boolean, mask: Mask): Sequence {
  const [batch, keys, heads, dim] = k.shape;
  const [query, value] = [q, v].map((t) => wide(t).transpose(1, 2).contiguous()) as [Wide, Wide];
  // Keys lie along the last axis, the long one, in which kernels are fast; batch and heads are one axis, for they walk over four.
  const key = wide(k)
    .permute([0, 2, 3, 1])
    .contiguous()
    .reshape([batch * heads, 1, dim, keys]);
  const rows = Math.max(1, Math.floor(mostDifferences / Math.max(1, batch * heads * keys * dim)));
  const blocks = split(query, rows, 2).map((block) =>
    checkpoint(
      (own, keysOfAll, valuesOfAll) =>
        laplacianRows(own as Wide, keysOfAll as Wide, valuesOfAll as Wide, sigma, normalize, mask),
      block,
      key,
      value,
    ),
  );
  const out = blocks.length === 1 ? blocks[0] : concat(blocks, 2);
  return narrow(out.transpose(1, 2).contiguous(), q);
}

/**
 * Kernel attention, exact: out_i = sum_j w_ij v_j, over sum_j w_ij when normalised, with a Gaussian or Laplacian kernel w_ij of
 * the distance between q_i and k_j. Tsai et al., "Transformer Dissection" (2019), arXiv:1908.11775; not normalised, Chen et al.,
 * "Skyformer" (2021), arXiv:2111.00035.
 *
 * The Gaussian kernel is one fused attention. The Laplacian has no product in it: it takes queries block by block, computes
 * each block again for its gradient, and holds at most 2^20 differences, or those of one query with all keys.
 *
 * @param q [batch, Nq, heads, dim]
 * @param k [batch, Nk, heads, dim]
 * @param v [batch, Nk, heads, value dim]
 * @returns out [batch, Nq, heads, value dim], of the dtype of q
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function kernelAttention<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  options: KernelAttentionOptions = {},
): Sequence<D> {
  checkOptions(options, ['kernel', 'sigma', 'normalize', 'mask']);
  const { kernel = 'gaussian', normalize = true, mask } = options;
  checkWord(kernel, 'kernel', ['gaussian', 'laplacian']);
  checkBoolean(normalize, 'normalize');
  checkQkv(q, k, v);
  const dim = q.shape[3];
  const { sigma = kernel === 'gaussian' ? dim ** 0.25 : Math.sqrt(dim) } = options;
  if (checkFloat32(sigma, 'sigma') <= 0) throw mustBe('sigma', sigma, 'a number above 0');
  if (mask !== undefined) {
    checkPositions(mask, q);
    if (k.shape[1] !== q.shape[1])
      throw shapeError(`q has ${q.shape[1]} positions and k ${k.shape[1]}; with a mask they must have as many`);
  }
  return scope(() => {
    const query = mask ? where(mask.reshape([...mask.shape, 1, 1]), q, 0) : q;
    const solve = kernel === 'gaussian' ? gaussian : laplacian;
    return solve(query as Sequence, k, v, sigma, normalize, mask) as Sequence<D>;
  });
}
