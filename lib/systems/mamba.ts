import { checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';
import type { Scanned } from '../linear/scanOperands.js';
import { selectiveScan } from '../linear/selectiveScan.js';
import { unsqueeze } from '../ops/split.js';
import { scope } from '../tape/scope.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';

export interface MambaScanOptions {
  /** [channels]: D u is added to the result. Default: nothing is. */
  readonly D?: Tensor<FloatDType, Shape>;
  /** Of the shape of u: the result is multiplied by silu(z). Default: it is not. */
  readonly z?: Tensor<FloatDType, Shape>;
  /** [channels]: added to delta. */
  readonly deltaBias?: Tensor<FloatDType, Shape>;
  /** Whether a step is softplus(delta + deltaBias). Default false, as in `selective_scan_fn`. */
  readonly deltaSoftplus?: boolean;
  /** float32 [batch, channels, state]: the state to begin with. Default: zeros. */
  readonly initialState?: Tensor<'float32', Shape>;
}

/** [batch, length, groups, state] of [batch, groups, state, length] or, of one group, [batch, state, length]. */
function inPositions(t: Tensor, argument: string): Tensor {
  checkTensor(t, argument);
  if (t.shape.length === 3) return unsqueeze(t.transpose(1, 2) as Tensor, 2) as Tensor;
  if (t.shape.length === 4) return t.permute([0, 3, 1, 2]) as Tensor;
  throw shapeError(
    `${argument} has shape ${show(t.shape)}; it must be [batch, state, length] or [batch, groups, state, length]`,
  );
}

/** The last two axes swapped: channels and positions. */
function channelsLast(t: Tensor, argument: string): Tensor {
  checkTensor(t, argument);
  if (t.shape.length !== 3)
    throw shapeError(`${argument} has shape ${show(t.shape)}; it must be [batch, channels, length]`);
  return t.transpose(1, 2) as Tensor;
}

/**
 * `selective_scan_fn` of Mamba (Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023) in its
 * authors' layout, with positions on the last axis. `selectiveScan` is the same with channels there, and copies nothing.
 *
 * @param u [batch, channels, length]
 * @param delta of the shape of u
 * @param A [channels, state], below 0
 * @param B [batch, state, length], or [batch, groups, state, length]
 * @param C of the shape of B
 * @returns `out` [batch, channels, length], a view whose channels are contiguous, and `state`, the last one, float32
 *   [batch, channels, state]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function mambaSelectiveScan<D extends FloatDType, S extends Shape>(
  u: Tensor<D, S>,
  delta: Tensor<FloatDType, Shape>,
  A: Tensor<FloatDType, Shape>,
  B: Tensor<FloatDType, Shape>,
  C: Tensor<FloatDType, Shape>,
  options: MambaScanOptions = {},
): Scanned<D, S> {
  checkOptions(options, ['D', 'z', 'deltaBias', 'deltaSoftplus', 'initialState']);
  const { D, z, deltaBias, deltaSoftplus = false, initialState } = options;
  return scope(() => {
    const { out, state } = selectiveScan(
      channelsLast(u as Tensor, 'u'),
      {
        dt: channelsLast(delta as Tensor, 'delta'),
        a: A,
        b: inPositions(B as Tensor, 'B'),
        c: inPositions(C as Tensor, 'C'),
      },
      {
        softplus: deltaSoftplus,
        ...(D && { skip: D }),
        ...(z && { z: channelsLast(z as Tensor, 'z') }),
        ...(deltaBias && { dtBias: deltaBias }),
        ...(initialState && { initialState }),
      },
    );
    return { out: out.transpose(1, 2) as Tensor as unknown as Tensor<D, S>, state };
  });
}
