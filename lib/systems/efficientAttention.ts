import { checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { exponential, softmaxFeatures, softmaxSequence } from '../linear/featureMaps.js';
import type { Sequence } from './inputs.js';
import { type LinearOptions, linearAttention } from './linearAttention.js';

/**
 * Efficient attention (Shen et al. 2018, arXiv:1812.01243): queries are softmaxed over their features and keys over the
 * positions, out = softmax(q) (softmax(k)^T v), without a scale; the weights of a row sum up to 1. When causal, as
 * performer-pytorch computes it, keys are e^k and rows are divided by their sums, with 1e-6 added to each feature of the
 * sum of keys.
 *
 * @param q [batch, Nq, heads, dim]
 * @param k [batch, Nk, kv heads, dim]
 * @param v [batch, Nk, kv heads, value dim]
 * @returns out [batch, Nq, heads, value dim]
 * @throws as `linearAttention`
 */
export function efficientAttention<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  options: LinearOptions = {},
): Sequence<D> {
  checkOptions(options, ['causal']);
  const { causal = false } = options;
  if (causal) return linearAttention(q, k, v, { qMap: softmaxFeatures, kMap: exponential, causal, epsilonIn: 'keys' });
  return linearAttention(q, k, v, { qMap: softmaxFeatures, kMap: softmaxSequence, normalize: false });
}
