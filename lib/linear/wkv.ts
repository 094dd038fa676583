import { checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError } from '../base/errors.js';
import { type ScanShape, scanBlocks } from '../kernels/scan.js';
import { wkvBackward, wkv as wkvOperation, wkvScratch } from '../kernels/wkv.js';
import { filled } from '../tape/arithmetic.js';
import { needsRecord, record } from '../tape/tape.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import {
  checkSequences,
  checkShape,
  checkState,
  checkUsable,
  gradientOf,
  type Scanned,
  ScanOperands,
  scanShapeOf,
} from './scanOperands.js';

export interface WkvInputs<D extends FloatDType = FloatDType> {
  /** Of the shape and dtype of k. */
  readonly v: Tensor<D, Shape>;
  /** [channels], below 0, of any floating-point dtype: what an exponent loses with every position; w of the paper, negated. */
  readonly decay: Tensor<FloatDType, Shape>;
  /** [channels], of any floating-point dtype: what the exponent of a position itself has besides; u of the paper. */
  readonly bonus: Tensor<FloatDType, Shape>;
}

export interface WkvOptions {
  /**
   * float32 [batch, 3, channels], the `state` that an earlier call returned: the sums with and without v, both divided by
   * e^peak, and peak, the largest exponent so far. Default: nothing has been seen.
   */
  readonly initialState?: Tensor<'float32', Shape>;
}

interface Inputs extends ScanShape {
  readonly k: Tensor;
  readonly v: Tensor;
  readonly decay: Tensor;
  readonly bonus: Tensor;
}

function backward(
  { k, v, decay, bonus, ...shape }: Inputs,
  kept: Tensor,
  dOut: Tensor,
  dFinal: Tensor | undefined,
  needed: readonly boolean[],
): readonly (Tensor | undefined)[] {
  const { backend } = k;
  return ScanOperands.within(backend, (operands, allocate) => {
    const [dK, dV] = [needed[0], needed[1]].map((is) => (is ? allocate(k.shape, k.dtype) : undefined));
    const floats = (is: boolean | undefined, of: Shape) => (is ? (allocate(of, 'float32') as Tensor) : undefined);
    const [dDecay, dBonus] = [floats(needed[2], decay.shape), floats(needed[3], bonus.shape)];
    const dInitial = floats(needed[4], [shape.batch, 3, shape.channels]);
    backend.launch(wkvBackward, {
      k: operands.sequences(k, 'k'),
      v: operands.sequences(v, 'v'),
      decay: operands.floats(decay, 'decay'),
      bonus: operands.floats(bonus, 'bonus'),
      kept: operands.floats(kept, 'kept'),
      dOut: operands.sequences(dOut, 'dOut'),
      dFinal: operands.floats(dFinal, 'dState'),
      dK: operands.sequences(dK, 'dK'),
      dV: operands.sequences(dV, 'dV'),
      dInitial: operands.floats(dInitial, 'dInitialState'),
      dDecay: operands.floats(dDecay, 'dDecay'),
      dBonus: operands.floats(dBonus, 'dBonus'),
      ofSequences: operands.scratch(dDecay || dBonus ? wkvScratch(shape) : 0),
      ...shape,
    });
    return [dK, dV, gradientOf(decay, dDecay), gradientOf(bonus, dBonus), dInitial];
  });
}

/**
 * The weighted average of RWKV-4 (Peng et al., "RWKV: Reinventing RNNs for the Transformer Era", 2023), of each channel for
 * itself:
 *
 * out_t = (the sum over j < t of e^((t - 1 - j) decay + k_j) v_j + e^(bonus + k_t) v_t) / (the same without v)
 *
 * Both sums are kept divided by the power of the largest exponent so far, so that none overflows, however large keys are.
 * They are float32, whatever the dtypes. Gradients, also of both states, compute them again from what is kept at every 32nd
 * position.
 *
 * @param k [batch, length, channels]
 * @returns `out` of the shape and dtype of k, and `state`, after the last position, float32 [batch, 3, channels]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function wkv<D extends FloatDType, S extends Shape>(
  k: Tensor<D, S>,
  inputs: WkvInputs<D>,
  options: WkvOptions = {},
): Scanned<D, S> {
  const keys: unknown = k;
  checkSequences(keys, 'k');
  checkOptions(inputs, ['v', 'decay', 'bonus'], 'inputs');
  checkOptions(options, ['initialState']);
  const v = inputs.v as Tensor;
  const { decay, bonus } = inputs;
  const shape = scanShapeOf(keys, 'k');
  const { batch, length, channels } = shape;
  checkShape(v, 'v', keys.shape, 'that of k');
  if (v.dtype !== keys.dtype)
    throw new FlashAttnError('ERR_DTYPE', `v is ${v.dtype} and k is ${keys.dtype}; they must be the same`);
  checkShape(decay, 'decay', [channels], 'a number for each channel of k');
  checkShape(bonus, 'bonus', [channels], 'a number for each channel of k');
  const initial = options.initialState as Tensor | undefined;
  if (initial !== undefined) checkState(initial, 'initialState', [batch, 3, channels], '[batch, 3, channels] of k');
  const { backend } = keys;
  checkUsable(backend, { k: keys, v, decay, bonus, initialState: initial });
  const all = [keys, v, decay, bonus, initial];
  const records = needsRecord(all);
  const { out, state, kept } = ScanOperands.within(backend, (operands, allocate) => {
    const out = allocate(keys.shape, keys.dtype);
    const state = allocate([batch, 3, channels], 'float32');
    const kept = records ? allocate([batch, scanBlocks(length), 3, channels], 'float32') : undefined;
    backend.launch(wkvOperation, {
      k: operands.sequences(keys, 'k'),
      v: operands.sequences(v, 'v'),
      decay: operands.floats(decay, 'decay'),
      bonus: operands.floats(bonus, 'bonus'),
      out: operands.sequences(out, 'out'),
      initial: operands.floats(initial, 'initialState'),
      finalState: state.flat('state', backend),
      kept: kept?.flat('kept', backend),
      ...shape,
    });
    return { out, state, kept };
  });
  if (kept) {
    record('wkv', all, [out, state], [keys, v, decay, bonus, kept], ([dOut, dState], saved, needed) => {
      const [ownK, ownV, ownDecay, ownBonus, own] = saved as [Tensor, Tensor, Tensor, Tensor, Tensor];
      using zero = dOut ? undefined : filled(backend, ownK.shape, ownK.dtype, 0);
      const again = { k: ownK, v: ownV, decay: ownDecay, bonus: ownBonus, ...shape };
      return backward(again, own, dOut ?? (zero as Tensor), dState, needed);
    });
    kept.dispose();
  }
  return { out: out as Tensor<D, Shape> as Tensor<D, S>, state };
}
