// Linear attention whose state decays as the data says: by position (simple GLA, Mamba-2), or by key channel (GLA, RWKV-6).
import type { FloatDType } from '../base/dtype.js';
import type { Recurrence } from '../linear/recurrence.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { checkShaped } from './inputs.js';
import {
  checkGate,
  checkRecurrent,
  checkRecurrentOptions,
  checkScale,
  type RecurrentOptions,
  recur,
  type ScaledRecurrentOptions,
} from './recurrent.js';

type Sequence<D extends FloatDType> = Tensor<D, Shape>;
type Three = [Tensor, Tensor, Tensor];

export interface SimpleGlaOptions extends ScaledRecurrentOptions {
  /** Logarithms of the decays, at most 0: [batch, seq, heads], of any float dtype. */
  readonly g: Tensor<FloatDType, Shape>;
}

/**
 * Gated linear attention with one decay for each position and head, as flash-linear-attention's simple_gla has it: S_t =
 * e^(g_t) S_{t-1} + k_t v_t^T, out_t = scale S_t^T q_t.
 *
 * @param q [batch, seq, heads, key dim]
 * @param k [batch, seq, heads, key dim]
 * @param v [batch, seq, heads, value dim]
 * @returns out [batch, seq, heads, value dim] and state [batch, heads, key dim, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function simpleGla<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  options: SimpleGlaOptions,
): Recurrence<D> {
  checkRecurrentOptions(options, 'g', 'scale');
  const shape = checkRecurrent([q, k, v] as unknown as Three, options);
  checkGate(options.g, 'g', shape, q as unknown as Tensor);
  const scale = checkScale(options.scale, shape.keyDim);
  return recur(q, k, v, options, { decay: { per: 'position', log: options.g }, scale });
}

export interface GlaOptions extends ScaledRecurrentOptions {
  /** Logarithms of the decays, at most 0: [batch, seq, heads, key dim], of any float dtype. */
  readonly gk: Tensor<FloatDType, Shape>;
}

/**
 * Gated linear attention (Yang et al. 2023, arXiv:2312.06635), with a decay for each key channel: S_t = diag(e^(gk_t)) S_{t-1}
 * + k_t v_t^T, out_t = scale S_t^T q_t.
 *
 * @param q [batch, seq, heads, key dim]
 * @param k [batch, seq, heads, key dim]
 * @param v [batch, seq, heads, value dim]
 * @returns out [batch, seq, heads, value dim] and state [batch, heads, key dim, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function gla<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  options: GlaOptions,
): Recurrence<D> {
  checkRecurrentOptions(options, 'gk', 'scale');
  const shape = checkRecurrent([q, k, v] as unknown as Three, options);
  checkGate(options.gk, 'gk', shape, q as unknown as Tensor, shape.keyDim);
  const scale = checkScale(options.scale, shape.keyDim);
  return recur(q, k, v, options, { decay: { per: 'channel', log: options.gk }, scale });
}

export interface Rwkv6Options extends RecurrentOptions {
  /** Logarithms of the decays, at most 0: [batch, seq, heads, key dim], of any float dtype. */
  readonly w: Tensor<FloatDType, Shape>;
  /** The bonus of the current position: float32 [heads, key dim]. */
  readonly u: Tensor<'float32', Shape>;
}

/**
 * The WKV of RWKV-6 (Peng et al., "Eagle and Finch", 2024, arXiv:2404.05892): out_t = (S_{t-1} + diag(u) k_t v_t^T)^T r_t, then
 * S_t = diag(e^(w_t)) S_{t-1} + k_t v_t^T. No scale.
 *
 * @param r the receptance [batch, seq, heads, key dim]
 * @param k [batch, seq, heads, key dim]
 * @param v [batch, seq, heads, value dim]
 * @returns out [batch, seq, heads, value dim] and state [batch, heads, key dim, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function rwkv6Wkv<D extends FloatDType>(
  r: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  options: Rwkv6Options,
): Recurrence<D> {
  checkRecurrentOptions(options, 'w', 'u');
  const { w, u } = options;
  const shape = checkRecurrent([r, k, v] as unknown as Three, options, ['r', 'k', 'v']);
  checkGate(w, 'w', shape, r as unknown as Tensor, shape.keyDim);
  checkShaped(u, 'u', [shape.heads, shape.keyDim], 'heads, key dim', r as unknown as Tensor);
  return recur(r, k, v, options, { decay: { per: 'channel', log: w }, bonus: u, scale: 1 });
}

export interface Rwkv7Options extends RecurrentOptions {
  /** Logarithms of the decays, at most 0: [batch, seq, heads, key dim], of any float dtype. */
  readonly w: Tensor<FloatDType, Shape>;
  /** What is looked up in the state, in RWKV-7 minus the normalised key: [batch, seq, heads, key dim], of the dtype of r. */
  readonly a: Tensor<FloatDType, Shape>;
  /** What it is written back under, in RWKV-7 the normalised key times the rate of learning: as `a`. */
  readonly b: Tensor<FloatDType, Shape>;
}

/**
 * The WKV of RWKV-7 (Peng et al., "RWKV-7 Goose", 2025, arXiv:2503.14456):
 * S_t = diag(e^(w_t)) S_{t-1} + b_t (S_{t-1}^T a_t)^T + k_t v_t^T, out_t = S_t^T r_t. No scale.
 *
 * @param r the receptance [batch, seq, heads, key dim]
 * @param k [batch, seq, heads, key dim]
 * @param v [batch, seq, heads, value dim]
 * @returns out [batch, seq, heads, value dim] and state [batch, heads, key dim, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function rwkv7Wkv<D extends FloatDType>(
  r: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  options: Rwkv7Options,
): Recurrence<D> {
  checkRecurrentOptions(options, 'w', 'a', 'b');
  const { w, a, b } = options;
  const shape = checkRecurrent([r, k, v] as unknown as Three, options, ['r', 'k', 'v']);
  for (const [name, t] of Object.entries({ w, a, b })) checkGate(t, name, shape, r as unknown as Tensor, shape.keyDim);
  const update = { kind: 'lowRank', read: a, write: b } as const;
  return recur(r, k, v, options, { decay: { per: 'channel', log: w }, update, scale: 1 });
}

/**
 * Mamba-2's state space duality (Dao and Gu 2024, arXiv:2405.21060): S_t = e^(a_t) S_{t-1} + b_t x_t^T, out_t = S_t^T c_t, with
 * x and a multiplied by the step sizes already. Heads of b and c are as many as those of x, or groups that share them.
 *
 * @param x [batch, seq, heads, head dim]
 * @param a logarithms of the decays, at most 0: [batch, seq, heads], of any float dtype
 * @param b [batch, seq, groups, state dim]
 * @param c [batch, seq, groups, state dim]
 * @returns out [batch, seq, heads, head dim] and state [batch, heads, state dim, head dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function mamba2Ssd<D extends FloatDType>(
  x: Sequence<D>,
  a: Tensor<FloatDType, Shape>,
  b: Sequence<NoInfer<D>>,
  c: Sequence<NoInfer<D>>,
  options: RecurrentOptions = {},
): Recurrence<D> {
  checkRecurrentOptions(options);
  const shape = checkRecurrent([c, b, x] as unknown as Three, options, ['c', 'b', 'x']);
  checkGate(a, 'a', shape, x as unknown as Tensor);
  return recur(c, b, x, options, { decay: { per: 'position', log: a }, scale: 1 });
}
