import { attention } from '../attention/attention.js';
import { checkBoolean, checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';
import { exp, fused, mul, sub, where } from '../ops/elementwise.js';
import { matmul } from '../ops/matmul.js';
import { max } from '../ops/reduce.js';
import { filled } from '../tape/arithmetic.js';
import { scope } from '../tape/scope.js';
import { withoutRecording } from '../tape/tape.js';
import { checkTensor, type Shape } from '../tensor/tensor.js';
import { checkAlike, narrow, type Sequence, upToEach, type Wide, wide } from './inputs.js';

export interface AftOptions {
  /** Position i sees positions up to i alone. Default false. */
  readonly causal?: boolean;
  /**
   * Whether each channel is a softmax of its own, which holds whatever the range of k and w, at the cost of an exponential for
   * each pair and channel. Default false: two products of e^(w_ij - max_j w_ij) and e^(k_j - max_j k_j), for which the largest
   * k_j + w_ij of each row and channel has to be within 80 of the sum of both maxima, or the row is NaN.
   */
  readonly exact?: boolean;
}

const gated = fused((q, values, weights) => q.sigmoid().mul(values).div(weights));
const gatedOnly = fused((q, values) => q.sigmoid().mul(values));

/** e^(x - the largest along an axis), which is constant in backward: it cancels out. */
const expBelowLargest = (x: Wide, axis: number): Wide =>
  exp(
    sub(
      x,
      withoutRecording(() => max(x, axis, { keepDims: true })),
    ),
  ) as Wide;

/**
 * AFT-full of the attention free transformer: out_i = sigmoid(q_i) sum_j e^(k_j + w_ij) v_j / sum_j e^(k_j + w_ij), element by
 * element over channels, as in the paper. Zhai et al., "An Attention Free Transformer" (2021), arXiv:2105.14103, equation 2.
 *
 * @param q [batch, seq, dim]
 * @param k [batch, seq, dim]
 * @param v [batch, seq, dim]
 * @param w position biases [seq, seq], row i for query i
 * @returns out [batch, seq, dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function aftFull<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  w: Sequence<NoInfer<D>>,
  options: AftOptions = {},
): Sequence<D> {
  checkTensor(q, 'q');
  if (q.shape.length !== 3) throw shapeError(`q has shape ${show(q.shape)}; it must be [batch, seq, dim]`);
  const [batch, seq, dim] = q.shape;
  const like = q as Sequence;
  checkAlike(k, 'k', q.shape, 'batch, seq, dim', like);
  checkAlike(v, 'v', q.shape, 'batch, seq, dim', like);
  checkAlike(w, 'w', [seq, seq], 'seq, seq', like);
  checkOptions(options, ['causal', 'exact']);
  const { causal = false, exact = false } = options;
  checkBoolean(causal, 'causal');
  checkBoolean(exact, 'exact');
  return scope(() => {
    const [query, key, value, bias] = [q, k, v, w].map((t) => wide(t as Sequence)) as [Wide, Wide, Wide, Wide];
    if (query.size === 0) return narrow(gatedOnly(query, value) as Wide, q);
    if (exact) {
      // A head for each channel, whose only query is 1.
      const heads = (t: Wide) => t.contiguous().reshape([batch, seq, dim, 1]) as Sequence<'float32'>;
      const ones = filled(q.backend, [batch, seq, dim, 1], 'float32', 1);
      const { out } = attention<'float32', Shape>(ones, heads(key), heads(value), { scale: 1, bias, causal });
      return narrow(gatedOnly(query, out.reshape(q.shape)) as Wide, q);
    }
    const lower = causal ? upToEach(seq, q) : undefined;
    const weights = expBelowLargest(lower ? (where(lower, bias, Number.NEGATIVE_INFINITY) as Wide) : bias, -1);
    const keys = expBelowLargest(key, 1);
    return narrow(gated(query, matmul(weights, mul(keys, value)), matmul(weights, keys)) as Wide, q);
  });
}
