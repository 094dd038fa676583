import { checkBoolean, checkFloat32, checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { optionError, shapeError, show } from '../base/errors.js';
import { scope } from '../tape/scope.js';
import { checkTensor, type Tensor } from '../tensor/tensor.js';
import { checkAlike, checkShaped, type Sequence, wide } from './inputs.js';
import { mixedHeads } from './mixedHeads.js';
import type { ScaleOption } from './saved.js';

export interface TalkingHeadsOptions extends ScaleOption {
  /** Mixes logits before the softmax, P_l of the paper transposed: [softmax heads, heads of q]. Default: they stay as they are. */
  readonly logitsProjection?: Sequence;
  /** [softmax heads], added to mixed logits. The softmax does not see it, and its gradient is 0 but for rounding. */
  readonly logitsBias?: Sequence;
  /** Mixes probabilities, P_w of the paper transposed: [heads of v, softmax heads]. Default: they stay as they are. */
  readonly weightsProjection?: Sequence;
  /** [heads of v], added to the mixed probability of every key that is seen. */
  readonly weightsBias?: Sequence;
  /** Only keys up to the query's position, aligned at the bottom right. Default false. */
  readonly causal?: boolean;
}

function checkProjection(
  t: unknown,
  bias: unknown,
  name: 'logits' | 'weights',
  heads: readonly number[],
  q: Tensor,
): void {
  const axes = name === 'logits' ? 'softmax heads, heads of q' : 'heads of v, softmax heads';
  if (t !== undefined) checkShaped(t, `${name}Projection`, heads, axes, q);
  if (bias === undefined) return;
  if (t === undefined)
    throw optionError(`${name}Bias is ${show(bias)} without a ${name}Projection; give both or neither`);
  checkShaped(bias, `${name}Bias`, [(t as Tensor).shape[0]], name === 'logits' ? 'softmax heads' : 'heads of v', q);
}

/**
 * Talking-heads attention: heads are mixed before and after the softmax, logits'_g = sum_h projection_gh scale q_h . k_h + bias_g,
 * weights_g = sum_h projection_gh softmax(logits'_h) + bias_g, out_g = weights_g v_g, where keys that a query does not see have
 * weight 0. Heads of q and k, of the softmax and of v may differ in number. Shazeer et al., "Talking-Heads Attention" (2020),
 * arXiv:2003.02436; with biases, Touvron et al., "Going deeper with Image Transformers" (CaiT, 2021), arXiv:2103.17239.
 *
 * All heads of a pair are needed at once. On processors a kernel of its own holds them for a tile of queries and keys at a time:
 * memory beside the inputs and out is tens of megabytes, and with the gradient that of q, or of 8 of its batch entries where there
 * are fewer; time grows with the square of seq. The softmax of all keys comes before the second mixture, so that q . k is computed
 * twice where the probabilities of 32 queries are more than 5 x 2^18, and with the gradient twice more. Forward takes about 1.6
 * times as long as `attention` with 8 heads of 64, and with the gradient 1.9 times. NaN in what a query does not see does not
 * reach it. On a GPU, which has no such kernel yet, queries are taken in blocks that compute logits, both mixtures and softmax in
 * memory, and again for the gradient; there values must be finite, also where they are hidden.
 *
 * @param q [batch, Nq, heads, dim]
 * @param k [batch, Nk, heads, dim]
 * @param v [batch, Nk, value heads, value dim]
 * @returns out [batch, Nq, value heads, value dim] of the dtype of q, computed in float32; 0 of queries that see no key
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function talkingHeadsAttention<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  options: TalkingHeadsOptions = {},
): Sequence<D> {
  checkTensor(q, 'q');
  if (q.shape.length !== 4) throw shapeError(`q has shape ${show(q.shape)}; it must be [batch, seq, heads, dim]`);
  const [batch, , heads, dim] = q.shape;
  checkAlike(k, 'k', [batch, -1, heads, dim], 'batch, seq, heads, dim', q as Sequence);
  checkAlike(v, 'v', [batch, k.shape[1], -1, -1], 'batch, seq, heads, dim', q as Sequence);
  checkOptions(options, ['logitsProjection', 'logitsBias', 'weightsProjection', 'weightsBias', 'causal', 'scale']);
  const { causal = false, scale = 1 / Math.sqrt(dim) } = options;
  checkBoolean(causal, 'causal');
  checkFloat32(scale, 'scale');
  const { logitsProjection, logitsBias, weightsProjection, weightsBias } = options;
  checkProjection(logitsProjection, logitsBias, 'logits', [-1, heads], q as Sequence);
  const softmaxHeads = logitsProjection?.shape[0] ?? heads;
  const valueHeads = v.shape[2];
  checkProjection(weightsProjection, weightsBias, 'weights', [valueHeads, softmaxHeads], q as Sequence);
  if (!weightsProjection && softmaxHeads !== valueHeads)
    throw shapeError(
      `v has ${valueHeads} heads and the softmax ${softmaxHeads}; give a weightsProjection [${valueHeads}, ${softmaxHeads}]`,
    );
  const mixture = (matrix: Sequence | undefined, bias: Sequence | undefined) =>
    matrix && { matrix: wide(matrix), bias: bias && wide(bias) };
  return scope(() =>
    mixedHeads(q as Sequence<D>, k as Sequence<D>, v as Sequence<D>, {
      logits: mixture(logitsProjection, logitsBias),
      weights: mixture(weightsProjection, weightsBias),
      right: causal ? 0 : undefined,
      scale,
    }),
  );
}
