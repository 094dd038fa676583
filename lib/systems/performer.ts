import { checkInteger, checkOptions, checkWord } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { favorHyperbolic, favorPositive, generalizedRelu, type HyperbolicOptions } from '../linear/featureMaps.js';
import { mul, sqrt, square } from '../ops/elementwise.js';
import { matmul } from '../ops/matmul.js';
import { normal, type RandomOptions } from '../ops/random.js';
import { sum } from '../ops/reduce.js';
import { split } from '../ops/split.js';
import { svd } from '../ops/svd.js';
import { scope } from '../tape/scope.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import type { Sequence, Wide } from './inputs.js';
import { type LinearAttentionOptions, type LinearOptions, linearAttention } from './linearAttention.js';

export interface ProjectionDraw extends Omit<RandomOptions<'float32'>, 'dtype'> {
  readonly features: number;
  /** Head dim, at most 256. */
  readonly dim: number;
}

/**
 * An orthogonal random projection [features, dim]: rows are orthogonal to each other in blocks of `dim`, each as long as a row of
 * normal numbers. Estimates vary less with it than with independent rows. Choromanski et al. (2021), arXiv:2009.14794.
 *
 * @throws ERR_OPTION, ERR_DEVICE, ERR_OUT_OF_MEMORY
 */
export function orthogonalProjection(options: ProjectionDraw): Wide {
  checkOptions(options, ['features', 'dim', 'seed', 'device']);
  const { features, dim, ...rest } = options;
  checkInteger(features, 'features', 1);
  checkInteger(dim, 'dim', 1, 256);
  return scope(() => {
    const blocks = Math.ceil(features / dim);
    const rows = blocks * dim;
    const [matrices, lengths] = split(normal([rows + features, dim], rest) as Wide, [rows, features]);
    // The orthogonal factor of a matrix of normal numbers is uniform over all orthogonal matrices.
    const { u, v } = svd(matrices.reshape([blocks, dim, dim]));
    const directions = matmul(u, v.transpose(-2, -1)).reshape([rows, dim]).slice(0, 0, features);
    return mul(directions, sqrt(sum(square(lengths), -1, { keepDims: true }))) as Wide;
  });
}

export interface PerformerOptions extends LinearOptions {
  /** [features, dim], float32: `orthogonalProjection` draws one. */
  readonly projection: Tensor<'float32', Shape>;
  /**
   * 'softmax' (default): positive features of the softmax kernel, FAVOR+; 'relu': the generalised attention
   * max(dim^(-1/4) x projection^T, 0).
   */
  readonly kernel?: 'softmax' | 'relu';
  /** Added to every feature. Default 1e-4 of 'softmax', 1e-3 of 'relu'. */
  readonly kernelEpsilon?: number;
  /** How many keys of each batch entry are real. */
  readonly kLens?: LinearAttentionOptions['kLens'];
}

/**
 * Performer: linear attention with random features of the softmax kernel e^(q . k / sqrt(dim)), or of ReLU. Choromanski et al.,
 * "Rethinking Attention with Performers" (2021), arXiv:2009.14794, as performer-pytorch computes it: exponents are taken off the
 * largest of each query, and of each head for keys, also of later positions when causal; the divisor has no epsilon, and
 * when causal 1e-6 is added to each feature of the sum of keys.
 *
 * @param q [batch, Nq, heads, dim]
 * @param k [batch, Nk, kv heads, dim]
 * @param v [batch, Nk, kv heads, value dim]
 * @returns out [batch, Nq, heads, value dim]
 * @throws as `linearAttention`
 */
export function performerAttention<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  options: PerformerOptions,
): Sequence<D> {
  checkOptions(options, ['projection', 'kernel', 'kernelEpsilon', 'causal', 'kLens']);
  const { projection, kernel = 'softmax', kernelEpsilon, causal = false, kLens } = options;
  checkWord(kernel, 'kernel', ['softmax', 'relu']);
  const features = { projection, ...(kernelEpsilon !== undefined && { epsilon: kernelEpsilon }) };
  const maps =
    kernel === 'relu'
      ? { featureMap: (x: Sequence) => generalizedRelu(x, features) }
      : {
          qMap: (x: Sequence) => favorPositive(x, { ...features, stabilizer: 'position' }),
          kMap: (x: Sequence) => favorPositive(x, { ...features, stabilizer: 'head' }),
        };
  const divisor = { epsilon: causal ? 1e-6 : 0, epsilonIn: causal ? 'keys' : 'denominator' } as const;
  return linearAttention(q, k, v, { ...maps, ...divisor, causal, ...(kLens !== undefined && { kLens }) });
}

export interface PerformerHyperbolicOptions
  extends LinearOptions,
    HyperbolicOptions,
    Pick<LinearAttentionOptions, 'epsilon' | 'kLens'> {}

/**
 * Performer with hyperbolic features [e^(u - o), e^(-u - o)] / sqrt(2 P) of u = sqrt(softmaxTemp) x omega, which have less
 * variance: see `favorHyperbolic`. Choromanski et al. (2021), as fast-transformers' Favor computes it, with epsilon 1e-6 added
 * to the divisor.
 *
 * @param q [batch, Nq, heads, dim]
 * @param k [batch, Nk, kv heads, dim]
 * @param v [batch, Nk, kv heads, value dim]
 * @returns out [batch, Nq, heads, value dim]; omega has a gradient too
 * @throws as `linearAttention`
 */
export function performerHyperbolicAttention<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  options: PerformerHyperbolicOptions,
): Sequence<D> {
  checkOptions(options, ['omega', 'softmaxTemp', 'stabilize', 'causal', 'epsilon', 'kLens']);
  const { omega, softmaxTemp, stabilize, ...rest } = options;
  const features = {
    omega,
    ...(softmaxTemp !== undefined && { softmaxTemp }),
    ...(stabilize !== undefined && { stabilize }),
  };
  return linearAttention(q, k, v, { ...rest, featureMap: (x) => favorHyperbolic(x, features) });
}
