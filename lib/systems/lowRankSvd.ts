import { checkBoolean, checkInteger } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError } from '../base/errors.js';
import { mul, where } from '../ops/elementwise.js';
import { matmul } from '../ops/matmul.js';
import { softmax } from '../ops/softmax.js';
import { unsqueeze } from '../ops/split.js';
import { svd } from '../ops/svd.js';
import { scope } from '../tape/scope.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { checkQkv, narrow, type Sequence, upToEach, type Wide, wide } from './inputs.js';
import { checkOptions, type ScaleOption } from './saved.js';

/** What `svd` takes. */
const longest = 256;

export interface LowRankSvdOptions extends ScaleOption {
  /** How many singular values are kept, from 1 to the shorter of both lengths. */
  readonly rank: number;
  /** Query i sees keys j <= i. Default false. */
  readonly causal?: boolean;
}

export interface LowRankSvdResult<D extends FloatDType> {
  /** [batch, Nq, heads, value dim] */
  readonly out: Sequence<D>;
  /** All of the matrix of probabilities, falling: float32 [batch, heads, the shorter of both lengths]. */
  readonly singularValues: Tensor<'float32', Shape>;
}

/**
 * Attention of low rank, the best that there is: out = A_r v with A_r = U_r S_r V_r^T, the truncated singular value decomposition
 * of A = softmax(scale q k^T). What it bounds is the error of every other approximation of the same rank; it is no faster than
 * softmax attention, and holds A.
 *
 * Differentiated through the decomposition: see `svd`. Where the last value that is kept equals the first that is not, A_r is
 * not determined, and gradients grow as they come close. In float32.
 *
 * @param q [batch, Nq, heads, dim]; the shorter of both lengths at most 256
 * @param k [batch, Nk, heads, dim]
 * @param v [batch, Nk, heads, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function lowRankSvdAttention<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  options: LowRankSvdOptions,
): LowRankSvdResult<D> {
  checkOptions(options, ['rank', 'causal']);
  const { rank, causal = false } = options;
  checkBoolean(causal, 'causal');
  checkQkv(q, k, v, { self: causal });
  const { scale = 1 / Math.sqrt(q.shape[3]) } = options;
  const shorter = Math.min(q.shape[1], k.shape[1]);
  if (shorter > longest)
    throw shapeError(
      `q has ${q.shape[1]} positions and k ${k.shape[1]}; the shorter of both may have at most ${longest}`,
    );
  checkInteger(rank, 'rank', 1, shorter);
  return scope(() => {
    const [query, key, value] = [q, k, v].map((t) => wide(t).transpose(1, 2)) as [Wide, Wide, Wide];
    const scores = matmul(query, key.transpose(-2, -1), { alpha: scale });
    const weights = softmax(causal ? where(upToEach(q.shape[1], q), scores, Number.NEGATIVE_INFINITY) : scores);
    const { u, s, v: right } = svd(weights as Wide);
    const kept = (t: Wide) => t.slice(-1, 0, rank);
    const left = mul(kept(u), unsqueeze(kept(s), -2)) as Wide;
    const out = matmul(left, matmul(kept(right).transpose(-2, -1), value));
    return { out: narrow(out.transpose(1, 2).contiguous(), q), singularValues: s };
  });
}
