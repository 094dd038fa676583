import { checkBoolean, checkFloat32, checkOptions, mustBe } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { cosineReweighting, relu } from '../linear/featureMaps.js';
import { div, fused } from '../ops/elementwise.js';
import { max } from '../ops/reduce.js';
import { unsqueeze } from '../ops/split.js';
import { scope } from '../tape/scope.js';
import { checkQkv, narrow, type Sequence, type Wide, wide } from './inputs.js';
import { type LinearOptions, linearSums } from './linearAttention.js';

export interface CosformerOptions extends LinearOptions {
  /** The least divisor, above 0. Default 1e-6. */
  readonly epsilon?: number;
}

const orOne = fused((size) => size.equal(0).where(1, size));
const divided = fused((out, weights, epsilon, size) => out.div(weights.maximum(size.pow(-1).mul(epsilon))));

/**
 * cosFormer (Qin et al. 2022, arXiv:2202.08791): A_ij = (relu(q_i) . relu(k_j)) cos(pi (i - j) / 2 M) with M the longer of both
 * sequences, out_i = sum_j A_ij v_j / max(sum_j A_ij, epsilon).
 *
 * @param q [batch, Nq, heads, dim]
 * @param k [batch, Nk, kv heads, dim]; heads a multiple of kv heads
 * @param v [batch, Nk, kv heads, value dim]
 * @returns out [batch, Nq, heads, value dim], of the dtype of q
 * @throws as `linearAttention`
 */
export function cosformerAttention<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  options: CosformerOptions = {},
): Sequence<D> {
  checkOptions(options, ['causal', 'epsilon']);
  const { causal = false, epsilon = 1e-6 } = options;
  checkBoolean(causal, 'causal');
  if (checkFloat32(epsilon, 'epsilon') <= 0) throw mustBe('epsilon', epsilon, 'a number above 0');
  checkQkv(q, k, v, { grouped: true, self: causal });
  const length = Math.max(q.shape[1], k.shape[1], 1);
  return scope(() => {
    // Out does not change with the size of a query while no divisor is epsilon. With queries of size 1 the gradient of q has
    // nothing along q, and not the difference of two large numbers where q is small.
    const query = relu(q);
    const sizes = orOne(max(query, -1, { keepDims: true }));
    const phiQ = cosineReweighting(div(query, sizes), { length });
    const phiK = cosineReweighting(relu(k), { length });
    const { out, normalizer } = linearSums(phiQ, phiK, wide(v), causal);
    return narrow(divided(out, unsqueeze(normalizer, -1), epsilon, sizes) as Wide, q);
  });
}
