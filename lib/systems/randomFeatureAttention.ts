import { checkInteger, checkOptions, checkWord } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { type FourierOptions, randomFourier } from '../linear/featureMaps.js';
import { fused } from '../ops/elementwise.js';
import { normal, type RandomOptions, uniform } from '../ops/random.js';
import { scope } from '../tape/scope.js';
import type { Sequence, Wide } from './inputs.js';
import { type LinearAttentionOptions, type LinearOptions, linearAttention } from './linearAttention.js';

export interface FrequencyDraw extends Omit<RandomOptions<'float32'>, 'dtype'> {
  /** Head dim. */
  readonly dim: number;
  /** P: cosines and sines make 2 P features of them. */
  readonly count: number;
  /** The kernel that is estimated. */
  readonly kernel: 'gaussian' | 'laplacian';
}

/** The quantile function of the Cauchy distribution, within +-20. */
const cauchyOf = fused((u) => {
  const angle = u.sub(0.5).mul(Math.PI);
  return angle.sin().div(angle.cos()).maximum(-20).minimum(20);
});

/**
 * Frequencies omega [dim, count] for `randomFeatureAttention`: normal ones for the Gaussian kernel e^(-t |q - k|^2 / 2), Cauchy
 * ones cut at +-20 for the Laplacian e^(-sqrt(t) |q - k|_1). Rahimi and Recht (2007).
 *
 * @throws ERR_OPTION, ERR_DEVICE, ERR_OUT_OF_MEMORY
 */
export function randomFrequencies(options: FrequencyDraw): Wide {
  checkOptions(options, ['dim', 'count', 'kernel', 'seed', 'device']);
  const { dim, count, kernel, ...rest } = options;
  const shape = [checkInteger(dim, 'dim', 1), checkInteger(count, 'count', 1)];
  checkWord(kernel, 'kernel', ['gaussian', 'laplacian']);
  if (kernel === 'gaussian') return normal(shape, rest) as Wide;
  return scope(() => cauchyOf(uniform(shape, rest)) as Wide);
}

export interface RandomFeatureOptions
  extends LinearOptions,
    FourierOptions,
    Pick<LinearAttentionOptions, 'epsilon' | 'kLens'> {}

/**
 * Linear attention with random Fourier features of a shift-invariant kernel, which omega chooses: see `randomFrequencies`.
 * phi(x) = [cos u, sin u] / sqrt(P), u = sqrt(softmaxTemp) x omega, and one constant feature more with `smoothing`.
 * Peng et al., "Random Feature Attention" (2021), arXiv:2103.02143, as fast-transformers computes it: the divisor has epsilon
 * added (1e-6) and may be near 0 or below it, since estimated weights may be negative.
 *
 * @param q [batch, Nq, heads, dim]
 * @param k [batch, Nk, kv heads, dim]
 * @param v [batch, Nk, kv heads, value dim]
 * @returns out [batch, Nq, heads, value dim]; omega has a gradient too
 * @throws as `linearAttention`
 */
export function randomFeatureAttention<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  options: RandomFeatureOptions,
): Sequence<D> {
  checkOptions(options, ['omega', 'softmaxTemp', 'smoothing', 'causal', 'epsilon', 'kLens']);
  const { omega, softmaxTemp, smoothing, ...rest } = options;
  const fourier = {
    omega,
    ...(softmaxTemp !== undefined && { softmaxTemp }),
    ...(smoothing !== undefined && { smoothing }),
  };
  return linearAttention(q, k, v, { ...rest, featureMap: (x) => randomFourier(x, fourier) });
}
