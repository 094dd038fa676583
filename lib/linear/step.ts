// A recurrence one position at a time: decoding.
import { checkObject, checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError, shapeError, show } from '../base/errors.js';
import { needsRecord } from '../tape/tape.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { checkGates, type RecurrenceOptions, readRecurrence } from './problem.js';
import { forward } from './recurrence.js';

export interface RecurrenceStepOptions extends Omit<RecurrenceOptions, 'initialState' | 'cuSeqlens'> {
  /** float32 [batch, heads, key dim, value dim], with a normalizer [..., value dim + 1]; contiguous. Goes on in place. */
  readonly state: Tensor<'float32', Shape>;
}

const names = [
  'state',
  'decay',
  'update',
  'bonus',
  'normalizer',
  'scale',
  'checkGates',
] as const satisfies readonly (keyof RecurrenceStepOptions)[];

export interface RecurrenceStep<D extends FloatDType = FloatDType> {
  /** [batch, heads, value dim] */
  readonly out: Tensor<D, Shape>;
}

export interface NormalizedRecurrenceStep<D extends FloatDType = FloatDType> extends RecurrenceStep<D> {
  /** float32 [batch, heads] */
  readonly normalizer: Tensor<'float32', Shape>;
}

/**
 * One position of `recurrence`, for a batch: the state is read, changed where it lies, and read by the queries. What takes
 * time is to read and write the states once (the delta rule reads them twice); nothing grows with the positions before.
 *
 * Has no gradient: use `recurrence` with `initialState` for one.
 *
 * @param q [batch, heads, key dim]
 * @param k [batch, heads, key dim], of the dtype of q
 * @param v [batch, heads, value dim], of the dtype of q
 * @param options gates have no axis for positions: [heads], [batch, heads] or [batch, heads, key dim]; beta [batch, heads]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY, ERR_AUTOGRAD when a gradient would
 *   have to be recorded
 */
export function recurrenceStep<D extends FloatDType>(
  q: Tensor<D, Shape>,
  k: Tensor<D, Shape>,
  v: Tensor<D, Shape>,
  options: RecurrenceStepOptions & { readonly normalizer: true },
): NormalizedRecurrenceStep<D>;
export function recurrenceStep<D extends FloatDType>(
  q: Tensor<D, Shape>,
  k: Tensor<D, Shape>,
  v: Tensor<D, Shape>,
  options: RecurrenceStepOptions,
): RecurrenceStep<D>;
export function recurrenceStep(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: RecurrenceStepOptions,
): RecurrenceStep | NormalizedRecurrenceStep {
  checkObject(options, 'options');
  checkOptions(options, names);
  const { state, ...others } = options;
  checkTensor(state, 'state');
  const checked = readRecurrence(q, k, v, { ...others, initialState: state }, 'step');
  const { decay, beta, read, write, bonus } = checked;
  if (needsRecord([q, k, v, state, decay, beta, read, write, bonus]))
    throw new FlashAttnError(
      'ERR_AUTOGRAD',
      'recurrenceStep changes the state where it lies and has no gradient: call it within noGrad, or use recurrence',
    );
  if (!state.isContiguous)
    throw shapeError(`state has strides ${show(state.strides)}; it must be contiguous to be changed where it lies`);
  if (options.checkGates) checkGates(checked);
  const { out, normalizer } = forward({ ...checked, q, k, v }, state);
  state.written();
  return normalizer ? { out, normalizer: normalizer as Tensor<'float32', Shape> } : { out };
}
