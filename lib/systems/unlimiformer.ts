import { attention } from '../attention/attention.js';
import { checkInteger } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { takeAlongAxis } from '../ops/alongAxis.js';
import { equal, where } from '../ops/elementwise.js';
import type { Indices } from '../ops/embedding.js';
import { scope } from '../tape/scope.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { checkPositions, checkQkv, type Sequence } from './inputs.js';
import { knn } from './knn.js';
import { checkOptions, type ScaleOption, scaleOf } from './saved.js';

export interface UnlimiformerOptions extends ScaleOption {
  /** How many keys each query of each head attends to, from 1 to Nk. */
  readonly neighbours: number;
  /** Which keys are real, [batch, Nk]. Default all. */
  readonly mask?: Tensor<'bool', Shape>;
}

export interface UnlimiformerResult<D extends FloatDType> {
  /** [batch, Nq, heads, value dim] */
  readonly out: Sequence<D>;
  /** Which keys, the nearest first: int32 [batch, heads, Nq, neighbours]. Those beyond the real keys mean nothing. */
  readonly indices: Indices;
}

/** Rows of t [batch, Nk, heads, dim] by index: [batch * heads * Nq, neighbours, 1, dim]. */
function taken<D extends FloatDType>(t: Sequence<D>, indices: Indices): Sequence<D> {
  const [batch, heads, queries, count] = indices.shape;
  const dim = t.shape[3];
  const places = indices.reshape([batch, heads, queries * count, 1]).expand([batch, heads, queries * count, dim]);
  return takeAlongAxis(t.transpose(1, 2), places as Indices, 2).reshape([batch * heads * queries, count, 1, dim]);
}

/**
 * Retrieval attention of Unlimiformer (Bertsch et al. 2023, arXiv:2305.01625): each query of each head attends to the
 * `neighbours` keys with the largest q . k alone, however many there are; softmax of scale q . k over these. The search is exact:
 * see `knn`, also for ties and NaN. The choice itself has no gradient.
 *
 * Memory for the keys and values that were chosen, batch * heads * Nq * neighbours rows, and never for all pairs.
 *
 * @param q [batch, Nq, heads, dim]
 * @param k [batch, Nk, heads, dim]
 * @param v [batch, Nk, heads, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function unlimiformerAttention<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  options: UnlimiformerOptions,
): UnlimiformerResult<D> {
  checkQkv(q, k, v);
  checkOptions(options, ['neighbours', 'mask']);
  const { neighbours, mask } = options;
  const [batch, queries, heads, dim] = q.shape;
  const keys = k.shape[1];
  checkInteger(neighbours, 'neighbours', 1, keys);
  if (mask !== undefined) checkPositions(mask, k as Sequence);
  return scope(() => {
    const visible = mask && { mask: mask.reshape([batch, 1, 1, keys]) };
    const { values, indices } = knn(q.transpose(1, 2), k.transpose(1, 2), { count: neighbours, ...visible });
    // Where fewer keys are real, others have been found in their place.
    const none = where(equal(values, Number.NEGATIVE_INFINITY), Number.NEGATIVE_INFINITY, 0);
    const bias = visible && { bias: none.reshape([batch * heads * queries, 1, 1, neighbours]) };
    const alone = q
      .transpose(1, 2)
      .contiguous()
      .reshape([batch * heads * queries, 1, 1, dim]);
    const { out } = attention<D, Shape>(
      alone,
      taken(k as Sequence<D>, indices) as Sequence<NoInfer<D>>,
      taken(v as Sequence<D>, indices) as Sequence<NoInfer<D>>,
      {
        ...scaleOf(options),
        ...bias,
      },
    );
    return { out: out.reshape([batch, heads, queries, v.shape[3]]).transpose(1, 2).contiguous(), indices };
  });
}
