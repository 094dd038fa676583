import { attention } from '../attention/attention.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';
import { matmul } from '../ops/matmul.js';
import { scope } from '../tape/scope.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { checkQkv, narrow, type Sequence } from './inputs.js';
import { checkOptions, type ScaleOption, scaleOf } from './saved.js';

export interface LinformerOptions extends ScaleOption {
  /**
   * E of the paper: which sum of the keys each of the k projected keys is. [at least Nk, k], of which the first Nk rows are
   * taken, or one for each head [kv heads, at least Nk, k]; any float dtype.
   */
  readonly keyProjection: Tensor<FloatDType, Shape>;
  /** F, of the values, in either form. Default E. */
  readonly valueProjection?: Tensor<FloatDType, Shape>;
}

/** E^T t: [batch, seq, heads, dim] -> [batch, k, heads, dim]. */
function projected<D extends FloatDType>(t: Sequence<D>, projection: Sequence): Sequence<D> {
  const [batch, seq, heads, dim] = t.shape;
  const sums = narrow(projection.slice(-2, 0, seq), t).transpose(-2, -1);
  if (projection.shape.length === 3) return matmul(sums, t.transpose(1, 2)).transpose(1, 2);
  const rows = t.isContiguous ? t : t.contiguous();
  return matmul(sums, rows.reshape([batch, seq, heads * dim])).reshape([batch, projection.shape[1], heads, dim]);
}

function checkProjection(t: unknown, argument: string, k: Sequence): asserts t is Sequence {
  checkTensor(t, argument);
  const [, seq, heads] = k.shape;
  const { shape } = t;
  const rank = shape.length;
  if ((rank !== 2 && rank !== 3) || shape[rank - 2] < seq || shape[rank - 1] < 1 || (rank === 3 && shape[0] !== heads))
    throw shapeError(
      `${argument} has shape ${show(shape)}; it must be [at least ${seq}, k] or [${heads}, at least ${seq}, k], for k of shape ${show(k.shape)}`,
    );
  t.operand(argument, k.backend);
}

/**
 * Linformer: softmax attention to k sums of all keys and values in the place of all of them,
 * out = softmax(scale q (E^T k)^T) (F^T v), which takes time and memory in proportion to the length. Wang et al., "Linformer"
 * (2020), arXiv:2006.04768, equation 7; a sequence shorter than E takes its first rows, as in lucidrains/linformer. There is no
 * causal form: every projected key is made of all positions.
 *
 * @param q [batch, Nq, heads, dim]
 * @param k [batch, Nk, kv heads, dim]; heads a multiple of kv heads, query head h reads kv head floor(h / (heads / kv heads))
 * @param v [batch, Nk, kv heads, value dim]
 * @returns out [batch, Nq, heads, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function linformerAttention<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  options: LinformerOptions,
): Sequence<D> {
  checkQkv(q, k, v, { grouped: true });
  checkOptions(options, ['keyProjection', 'valueProjection']);
  const { keyProjection, valueProjection = keyProjection } = options;
  checkProjection(keyProjection, 'keyProjection', k);
  checkProjection(valueProjection, 'valueProjection', v);
  const [kept, keptValues] = [keyProjection, valueProjection].map((t) => t.shape[t.shape.length - 1]);
  if (kept !== keptValues)
    throw shapeError(
      `keyProjection has shape ${show(keyProjection.shape)} and valueProjection ${show(valueProjection.shape)}; they must end with the same k`,
    );
  return scope(
    () => attention<D, Shape>(q, projected(k, keyProjection), projected(v, valueProjection), scaleOf(options)).out,
  ) as Sequence<D>;
}
