// Linear attention that corrects its state: DeltaNet and Gated DeltaNet.
import { checkFloat32, mustBe } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import type { Recurrence } from '../linear/recurrence.js';
import { fused } from '../ops/elementwise.js';
import { sum } from '../ops/reduce.js';
import { scope } from '../tape/scope.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { narrow, wide } from './inputs.js';
import {
  checkGate,
  checkRecurrent,
  checkRecurrentOptions,
  checkScale,
  recur,
  type ScaledRecurrentOptions,
} from './recurrent.js';

type Sequence<D extends FloatDType> = Tensor<D, Shape>;

const squared = fused(function squared(x) {
  return x.mul(x);
});
const unit = fused(function unit(x, squares, epsilon) {
  return x.mul(squares.add(epsilon).rsqrt());
});

/** Rows of length 1: x / sqrt(sum of x^2 + epsilon), in float32 inside. */
export function l2Normalized(x: Tensor, epsilon: number): Tensor {
  const rows = wide(x);
  return narrow(unit(rows, sum(squared(rows), -1, { keepDims: true }), epsilon), x);
}

export interface DeltaRuleOptions extends ScaledRecurrentOptions {
  /** How much of what the state holds for a key is replaced: [batch, seq, heads], of any float dtype. */
  readonly beta: Tensor<FloatDType, Shape>;
  /** Added to the sum of squares that keys are divided by the root of. Default 0, and a key of zeros is not to come. */
  readonly epsilon?: number | undefined;
}

export interface GatedDeltaRuleOptions extends DeltaRuleOptions {
  /** Logarithms of the decays, at most 0: [batch, seq, heads], of any float dtype. */
  readonly g: Tensor<FloatDType, Shape>;
}

function run<D extends FloatDType>(
  [q, k, v]: readonly [Sequence<D>, Sequence<D>, Sequence<D>],
  options: DeltaRuleOptions & { readonly g?: Tensor<FloatDType, Shape> },
): Recurrence<D> {
  const { beta, g, epsilon = 0 } = options;
  const like = q as unknown as Tensor;
  const shape = checkRecurrent([q, k, v] as unknown as [Tensor, Tensor, Tensor], options);
  checkGate(beta, 'beta', shape, like);
  if (g) checkGate(g, 'g', shape, like);
  const scale = checkScale(options.scale, shape.keyDim);
  if (checkFloat32(epsilon, 'epsilon') < 0) throw mustBe('epsilon', epsilon, 'a number >= 0');
  return scope(() => {
    const keys = l2Normalized(k as unknown as Tensor, epsilon) as unknown as Sequence<D>;
    const update = { kind: 'delta', beta } as const;
    return recur(q, keys, v, options, g ? { decay: { per: 'position', log: g }, update, scale } : { update, scale });
  });
}

/**
 * The delta rule of DeltaNet (Schlag et al. 2021, arXiv:2102.11174; Yang et al. 2024, arXiv:2406.06484): with keys of length 1,
 * k^ = k / |k|, S_t = S_{t-1} + k^_t (beta_t (v_t - S_{t-1}^T k^_t))^T, out_t = scale S_t^T q_t.
 *
 * @param q [batch, seq, heads, key dim]
 * @param k [batch, seq, heads, key dim], of any length but 0
 * @param v [batch, seq, heads, value dim]
 * @returns out [batch, seq, heads, value dim] and state [batch, heads, key dim, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function deltaRule<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  options: DeltaRuleOptions,
): Recurrence<D> {
  checkRecurrentOptions(options, 'beta', 'scale', 'epsilon');
  return run([q, k, v], options);
}

/**
 * The gated delta rule of Gated DeltaNet (Yang et al. 2024, arXiv:2412.06464): as `deltaRule`, of a state that has decayed by
 * e^(g_t) first.
 *
 * @param q [batch, seq, heads, key dim]
 * @param k [batch, seq, heads, key dim]
 * @param v [batch, seq, heads, value dim]
 * @returns out [batch, seq, heads, value dim] and state [batch, heads, key dim, value dim]
 * @throws as `deltaRule`
 */
export function gatedDeltaRule<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  options: GatedDeltaRuleOptions,
): Recurrence<D> {
  checkRecurrentOptions(options, 'beta', 'g', 'scale', 'epsilon');
  checkPresent(options);
  return run([q, k, v], options);
}

function checkPresent({ g }: GatedDeltaRuleOptions): void {
  if (g === undefined) throw mustBe('g', g, 'a tensor');
}
