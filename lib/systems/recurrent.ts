// What systems that are a recurrence share: their options, what they ask of their inputs, and decays by head.
import { checkFloat32, checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError, optionError, shapeError, show } from '../base/errors.js';
import type { DeviceName } from '../devices/registry.js';
import { type Recurrence, type RecurrenceOptions, recurrence } from '../linear/recurrence.js';
import { cumsum } from '../ops/alongAxis.js';
import { ones } from '../ops/create.js';
import { fused } from '../ops/elementwise.js';
import { sameShape } from '../tensor/shape.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';

/** What every recurrent system takes. */
export interface RecurrentOptions {
  /** float32 [sequences, heads, key dim, value dim]: what another call has left. Default zeros. */
  readonly initialState?: Tensor<'float32', Shape> | undefined;
  /** Sequences packed behind one another: where each begins, and where the last ends. Tensors have no batch axis then. */
  readonly cuSeqlens?: ArrayLike<number> | undefined;
  /** Whether gates are read and looked at first: see `recurrence`. Default false. */
  readonly checkGates?: boolean | undefined;
}

export interface ScaledRecurrentOptions extends RecurrentOptions {
  /** Of queries. Default 1 / sqrt(key dim). */
  readonly scale?: number | undefined;
}

const recurrentNames = [
  'initialState',
  'cuSeqlens',
  'checkGates',
] as const satisfies readonly (keyof RecurrentOptions)[];

/** The rows of checked inputs, and the heads of their states. */
export interface RecurrentShape {
  /** [batch, seq], or [total] where sequences are packed. */
  readonly rows: Shape;
  readonly heads: number;
  readonly keyDim: number;
  readonly valueDim: number;
}

/**
 * q and k [batch, seq, heads, key dim] and v [batch, seq, heads, value dim], or without the batch axis where sequences are
 * packed, of one dtype and device. Heads of q, k and v may be fewer than those of the states, which are the most of k and v.
 *
 * @param names of the three in the system's words
 * @throws ERR_OPTION, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED
 */
export function checkRecurrent(
  [q, k, v]: readonly [Tensor, Tensor, Tensor],
  { initialState, cuSeqlens }: RecurrentOptions,
  names: readonly [string, string, string] = ['q', 'k', 'v'],
): RecurrentShape {
  const text = cuSeqlens === undefined ? 'batch, seq' : 'total';
  const rank = cuSeqlens === undefined ? 4 : 3;
  for (const [i, t] of [q, k, v].entries()) {
    const name = names[i];
    checkTensor(t, name);
    if (t.shape.length !== rank)
      throw shapeError(`${name} has shape ${show(t.shape)}; it must have ${rank} axes, [${text}, heads, dim]`);
    if (!sameShape(t.shape.slice(0, rank - 2), q.shape.slice(0, rank - 2)))
      throw shapeError(
        `${name} has shape ${show(t.shape)} and ${names[0]} ${show(q.shape)}; their axes ${text} must be the same`,
      );
    if (t.dtype !== q.dtype)
      throw new FlashAttnError(
        'ERR_DTYPE',
        `${name} is ${t.dtype} and ${names[0]} is ${q.dtype}; they must be the same`,
      );
    t.operand(name, q.backend);
  }
  const [heads, valueHeads, queryHeads] = [k, v, q].map((t) => t.shape[rank - 2]) as [number, number, number];
  const most = Math.max(heads, valueHeads);
  for (const [name, own] of [
    [names[1], heads],
    [names[2], valueHeads],
  ] as const)
    if (own === 0 ? most !== 0 : most % own !== 0)
      throw shapeError(`${name} has ${own} heads; their number must divide ${most}, that of the states`);
  const [more, less] = queryHeads > most ? [queryHeads, most] : [most, queryHeads];
  if (less === 0 ? more !== 0 : more % less !== 0)
    throw shapeError(`${names[0]} has ${queryHeads} heads; their number must divide ${most}, or be a multiple of it`);
  const [keyDim, ownDim] = [k.shape[rank - 1], q.shape[rank - 1]];
  if (keyDim !== ownDim)
    throw shapeError(`${names[1]} has head dim ${keyDim}; it must be ${ownDim}, that of ${names[0]}`);
  const valueDim = v.shape[rank - 1];
  for (const [name, dim] of [
    [names[1], keyDim],
    [names[2], valueDim],
  ] as const)
    if (dim < 1 || dim > 256) throw shapeError(`${name} has head dim ${dim}; it must be from 1 to 256`);
  if (initialState !== undefined) checkTensor(initialState, 'initialState');
  return { rows: q.shape.slice(0, rank - 2), heads: most, keyDim, valueDim };
}

/**
 * A gate for every position of every head of the states, of any floating-point dtype.
 *
 * @param last what follows heads
 * @throws ERR_OPTION, ERR_SHAPE, ERR_DEVICE, ERR_DISPOSED
 */
export function checkGate(
  t: unknown,
  argument: string,
  { rows, heads }: RecurrentShape,
  like: Tensor,
  ...last: readonly number[]
): asserts t is Tensor {
  if (t === undefined) throw optionError(`${argument} is missing`);
  checkTensor(t, argument);
  const shape = [...rows, heads, ...last];
  if (!sameShape(t.shape, shape)) {
    const axes = [rows.length === 2 ? 'batch, seq' : 'total', 'heads', ...(last.length > 0 ? ['key dim'] : [])];
    throw shapeError(`${argument} has shape ${show(t.shape)}; it must be ${show(shape)}, [${axes.join(', ')}]`);
  }
  t.operand(argument, like.backend);
}

/** The engine with what the options leave out left out. */
export function recur<D extends FloatDType>(
  q: Tensor<D, Shape>,
  k: Tensor<D, Shape>,
  v: Tensor<D, Shape>,
  options: RecurrentOptions,
  own: RecurrenceOptions,
): Recurrence<D> {
  const { initialState, cuSeqlens, checkGates } = options;
  return recurrence(q, k, v, { ...own, initialState, cuSeqlens, checkGates });
}

/** @throws ERR_OPTION */
export function checkScale(scale: number | undefined, keyDim: number): number {
  return scale === undefined ? 1 / Math.sqrt(keyDim) : checkFloat32(scale, 'scale');
}

/** @throws ERR_OPTION for a name that is none of them */
export function checkRecurrentOptions<O extends RecurrentOptions>(
  options: O,
  ...names: readonly Extract<keyof O, string>[]
): void {
  checkOptions<RecurrentOptions>(options, [...names, ...recurrentNames] as (keyof RecurrentOptions)[]);
}

/** 0, 1, ... count - 1, float32: made on the device, as a captured step must be. */
export const counted = (count: number, device: DeviceName): Tensor =>
  fromZero(cumsum(ones([count], { device }), 0) as Tensor);

const fromZero = fused(function fromZero(x) {
  return x.sub(1);
});
const logOfRest = fused(function logOfRest(exponent, two) {
  return two.pow(exponent.neg().sub(5)).neg().log1p();
});

/** Logarithms of the decays of RetNet, ln(1 - 2^(-5 - h)) of head h: float32 [heads]. */
export const retentionDecays = (heads: number, device: DeviceName): Tensor => logOfRest(counted(heads, device), 2);
