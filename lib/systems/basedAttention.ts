import { checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { taylorSecondOrder } from '../linear/featureMaps.js';
import type { Sequence } from './inputs.js';
import { type LinearAttentionOptions, linearAttention } from './linearAttention.js';

export interface BasedOptions extends Pick<LinearAttentionOptions, 'epsilon'> {
  /** Position i sees keys up to i alone. Default true. */
  readonly causal?: boolean;
}

/**
 * The linear attention of Based (Arora et al. 2024, arXiv:2402.18668): weights 1 + s + s^2 / 2 of s = q . k / sqrt(dim), the
 * second order Taylor expansion of e^s, divided by their sum plus epsilon, 1e-6 by default. The 1 + dim + dim^2 features ask
 * for small dims, such as 16.
 *
 * @param q [batch, N, heads, dim]
 * @param k [batch, N, kv heads, dim]
 * @param v [batch, N, kv heads, value dim]
 * @returns out [batch, N, heads, value dim]
 * @throws as `linearAttention`
 */
export function basedAttention<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  options: BasedOptions = {},
): Sequence<D> {
  checkOptions(options, ['causal', 'epsilon']);
  return linearAttention(q, k, v, { causal: true, ...options, featureMap: taylorSecondOrder });
}
