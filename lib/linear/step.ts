// A recurrence one position at a time: decoding.
import { checkObject } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError, shapeError, show } from '../base/errors.js';
import { unsqueeze } from '../ops/split.js';
import { needsRecord, withoutRecording } from '../tape/tape.js';
import { type AnyTensor, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { checkGates, type RecurrenceOptions, readRecurrence } from './problem.js';
import { forward } from './recurrence.js';

export interface RecurrenceStepOptions extends Omit<RecurrenceOptions, 'initialState' | 'cuSeqlens'> {
  /** float32 [batch, heads, key dim, value dim], with a normalizer [..., value dim + 1]; contiguous. Goes on in place. */
  readonly state: Tensor<'float32', Shape>;
}

export interface RecurrenceStep<D extends FloatDType = FloatDType> {
  /** [batch, heads, value dim] */
  readonly out: Tensor<D, Shape>;
}

export interface NormalizedRecurrenceStep<D extends FloatDType = FloatDType> extends RecurrenceStep<D> {
  /** float32 [batch, heads] */
  readonly normalizer: Tensor<'float32', Shape>;
}

function withoutAxis(t: Tensor): Tensor {
  const shaped = t.reshape([t.shape[0], ...t.shape.slice(2)]);
  t.dispose();
  return shaped;
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
  const { state, decay, update, ...others } = options;
  checkTensor(state, 'state');
  const { beta, read, write } = (update ?? {}) as { beta?: Tensor; read?: Tensor; write?: Tensor };
  const gates = [decay?.log, beta, read, write, others.bonus];
  if (needsRecord([q, k, v, state, ...gates]))
    throw new FlashAttnError(
      'ERR_AUTOGRAD',
      'recurrenceStep changes the state where it lies and has no gradient: call it within noGrad, or use recurrence',
    );
  const made: AnyTensor[] = [];
  const atOnePosition = (t: unknown, argument: string, order: string, rank: number): Tensor => {
    checkTensor(t, argument);
    if (t.shape.length !== rank)
      throw shapeError(`${argument} has shape ${show(t.shape)}; it must have ${rank} axes, ${order}`);
    const { shape } = t;
    const result = t.isContiguous ? t.reshape([shape[0], 1, ...shape.slice(1)]) : (unsqueeze(t, 1) as Tensor);
    made.push(result);
    return result;
  };
  return withoutRecording(() => {
    try {
      const query = atOnePosition(q, 'q', '[batch, heads, key dim]', 3);
      const key = atOnePosition(k, 'k', '[batch, heads, key dim]', 3);
      const value = atOnePosition(v, 'v', '[batch, heads, value dim]', 3);
      const gateOf = (kind: 'position' | 'channel', log: Tensor) =>
        kind === 'channel'
          ? atOnePosition(log, 'decay.log', '[batch, heads, key dim]', 3)
          : atOnePosition(log, 'decay.log', '[batch, heads]', 2);
      const { per } = decay ?? {};
      const updateAt = (given: typeof update): typeof update => {
        if (given?.kind === 'delta')
          return { ...given, beta: atOnePosition(given.beta, 'update.beta', '[batch, heads]', 2) };
        if (given?.kind !== 'lowRank') return given;
        const rows = (t: unknown, argument: string) => atOnePosition(t, argument, '[batch, heads, key dim]', 3);
        return { ...given, read: rows(given.read, 'update.read'), write: rows(given.write, 'update.write') };
      };
      const withAxis = {
        ...others,
        decay:
          decay && (per === 'position' || per === 'channel') ? { per, log: gateOf(per, decay.log as Tensor) } : decay,
        update: updateAt(update),
        initialState: state,
      };
      const checked = readRecurrence(query, key, value, withAxis, 'state');
      if (options.checkGates) checkGates(checked);
      if (!state.isContiguous)
        throw shapeError(`state has strides ${show(state.strides)}; it must be contiguous to be changed where it lies`);
      const { out, normalizer } = forward({ ...checked, q: query, k: key, v: value }, state);
      state.written();
      return {
        out: withoutAxis(out),
        ...(normalizer ? { normalizer: withoutAxis(normalizer) } : {}),
      } as RecurrenceStep;
    } finally {
      for (const t of made) t.dispose();
    }
  });
}
