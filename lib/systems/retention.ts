// Linear attention whose state decays by the head: RetNet, Lightning attention, and the gated retention of YOCO.
import type { FloatDType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';
import type { DeviceName } from '../devices/registry.js';
import type { Recurrence } from '../linear/recurrence.js';
import { mul, neg } from '../ops/elementwise.js';
import { scope } from '../tape/scope.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import {
  checkGate,
  checkRecurrent,
  checkRecurrentOptions,
  checkScale,
  type RecurrentOptions,
  recur,
  retentionDecays,
  type ScaledRecurrentOptions,
} from './recurrent.js';

type Sequence<D extends FloatDType> = Tensor<D, Shape>;
type Three = [Tensor, Tensor, Tensor];

/**
 * Retention (Sun et al., "Retentive Network", 2023, arXiv:2307.08621) of queries and keys as they are, without rotation or
 * norms: S_t = gamma_h S_{t-1} + k_t v_t^T, out_t = scale S_t^T q_t, with gamma_h = 1 - 2^(-5 - h) of head h.
 *
 * @param q [batch, seq, heads, key dim]
 * @param k [batch, seq, heads, key dim]
 * @param v [batch, seq, heads, value dim]
 * @returns out [batch, seq, heads, value dim] and state [batch, heads, key dim, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function retention<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  options: ScaledRecurrentOptions = {},
): Recurrence<D> {
  checkRecurrentOptions(options, 'scale');
  const { heads, keyDim } = checkRecurrent([q, k, v] as unknown as Three, options);
  const scale = checkScale(options.scale, keyDim);
  return scope(() => {
    const log = retentionDecays(heads, q.device as DeviceName);
    return recur(q, k, v, options, { decay: { per: 'head', log }, scale });
  });
}

export interface LightningOptions extends ScaledRecurrentOptions {
  /** Of the decays: head h keeps e^-slopes_h a position. [heads], of any float dtype. Default: no decay. */
  readonly slopes?: Tensor<FloatDType, Shape> | undefined;
}

/**
 * Lightning attention (Qin et al. 2024, arXiv:2401.04658 and 2405.17381): S_t = e^(-slopes_h) S_{t-1} + k_t v_t^T, out_t =
 * S_t^T q_t, without a normaliser, and by default without a scale.
 *
 * @param q [batch, seq, heads, key dim]
 * @param k [batch, seq, heads, key dim]
 * @param v [batch, seq, heads, value dim]
 * @returns out [batch, seq, heads, value dim] and state [batch, heads, key dim, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function lightningAttention<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  options: LightningOptions = {},
): Recurrence<D> {
  checkRecurrentOptions(options, 'slopes', 'scale');
  const { slopes, scale = 1 } = options;
  const { heads, keyDim } = checkRecurrent([q, k, v] as unknown as Three, options);
  checkScale(scale, keyDim);
  if (slopes === undefined) return recur(q, k, v, options, { scale });
  checkTensor(slopes, 'slopes');
  if (slopes.shape.length !== 1 || slopes.shape[0] !== heads)
    throw shapeError(`slopes has shape ${show(slopes.shape)}; it must be [${heads}], the heads of the states`);
  slopes.operand('slopes', q.backend);
  return scope(() => recur(q, k, v, options, { decay: { per: 'head', log: neg(slopes) }, scale }));
}

export interface GatedRetentionOptions extends RecurrentOptions {
  /** Logarithms of the decays, at most 0: [batch, seq, heads], of any float dtype. */
  readonly logGates: Tensor<FloatDType, Shape>;
}

/**
 * The gated retention of YOCO (Sun et al. 2024, arXiv:2405.05254): S_t = e^(g_t) S_{t-1} + (k_t / sqrt(key dim)) v_t^T, out_t
 * = S_t^T q_t. The state has the scale of the keys in it, as its authors' has.
 *
 * @param q [batch, seq, heads, key dim]
 * @param k [batch, seq, heads, key dim]
 * @param v [batch, seq, heads, value dim]
 * @returns out [batch, seq, heads, value dim] and state [batch, heads, key dim, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function gatedRetention<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  options: GatedRetentionOptions,
): Recurrence<D> {
  checkRecurrentOptions(options, 'logGates');
  const shape = checkRecurrent([q, k, v] as unknown as Three, options);
  checkGate(options.logGates, 'logGates', shape, q as unknown as Tensor);
  return scope(() => {
    const keys = mul(k, 1 / Math.sqrt(shape.keyDim)) as Sequence<D>;
    return recur(q, keys, v, options, { decay: { per: 'position', log: options.logGates }, scale: 1 });
  });
}
