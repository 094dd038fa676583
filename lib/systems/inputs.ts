// What systems ask of their inputs before anything is computed, and how they widen and hide.
import { checkIntegers } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError, shapeError, show } from '../base/errors.js';
import { cumsum } from '../ops/alongAxis.js';
import { cast } from '../ops/cast.js';
import { concat } from '../ops/concat.js';
import { lessEqual } from '../ops/elementwise.js';
import { pad } from '../ops/split.js';
import { filled } from '../tape/arithmetic.js';
import { sameShape } from '../tensor/shape.js';
import { type AnyTensor, checkAnyTensor, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { checkInputs } from './saved.js';

export type Sequence<D extends FloatDType = FloatDType> = Tensor<D, Shape>;
export type Wide = Tensor<'float32', Shape>;

const order = ['batch', 'seq', 'heads', 'dim'];

/**
 * q, k and v [batch, seq, heads, dim] of one dtype and device, with as many tokens and heads each.
 *
 * @param valueDim whether v has the head dim of q and k
 * @throws ERR_OPTION, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED
 */
export function checkHeads(q: Tensor, k: Tensor, v: Tensor, valueDim: 'same' | 'any'): void {
  checkInputs(q, k, v, order, 3);
  if (valueDim === 'same' && v.shape[3] !== q.shape[3])
    throw shapeError(`q has shape ${show(q.shape)} and v ${show(v.shape)}; they must have the same head dim`);
  for (const [name, t] of Object.entries({ q, k, v })) t.operand(name, q.backend);
}

/**
 * A tensor of any floating-point dtype and of this shape, on the device of `like`.
 *
 * @param shape -1 stands for any length
 * @param axes the names of the axes, for messages
 * @throws ERR_OPTION, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED
 */
export function checkShaped(
  t: unknown,
  argument: string,
  shape: Shape,
  axes: string,
  like: Tensor,
): asserts t is Tensor {
  checkTensor(t, argument);
  const wanted = shape.map((n, axis) => (n < 0 ? t.shape[axis] : n));
  if (!sameShape(t.shape, wanted)) {
    const shown = shape.map((n) => (n < 0 ? 'any' : n)).join(', ');
    throw shapeError(`${argument} has shape ${show(t.shape)}; it must be [${shown}], [${axes}]`);
  }
  t.operand(argument, like.backend);
}

/** As `checkShaped`, of the dtype of `like` too. */
export function checkAlike(
  t: unknown,
  argument: string,
  shape: Shape,
  axes: string,
  like: Tensor,
): asserts t is Tensor {
  checkShaped(t, argument, shape, axes, like);
  if (t.dtype !== like.dtype)
    throw new FlashAttnError('ERR_DTYPE', `${argument} is ${t.dtype}; it must be ${like.dtype}`);
}

/** A state that goes on is float32: what it has added up must not be rounded at every call. @throws ERR_OPTION, ERR_DTYPE */
export function checkFloat32State(t: unknown, argument: string): asserts t is Tensor {
  checkTensor(t, argument);
  if (t.dtype !== 'float32') throw new FlashAttnError('ERR_DTYPE', `${argument} is ${t.dtype}; it must be float32`);
}

/**
 * Checks q [batch, Nq, heads, dim], k [batch, Nk, kv heads, dim] and v [batch, Nk, kv heads, value dim], with as many kv heads
 * as heads unless they are `grouped`.
 *
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE
 */
export function checkQkv(q: unknown, k: unknown, v: unknown, { grouped = false, self = false } = {}): void {
  checkInputs(q, k, v, ['batch', 'seq', 'heads', 'dim'], 1);
  const [query, key, value] = [q, k, v] as Tensor[];
  const [heads, kvHeads] = [query.shape[2], key.shape[2]];
  if (grouped ? kvHeads === 0 || heads % kvHeads !== 0 : heads !== kvHeads)
    throw shapeError(
      `q has ${heads} heads and k ${kvHeads}; ${grouped ? 'those of q must be a multiple of those of k' : 'they must have as many'}`,
    );
  if (self && query.shape[1] !== key.shape[1])
    throw shapeError(
      `q has ${query.shape[1]} positions and k ${key.shape[1]}; causal attention needs as many queries as keys`,
    );
  for (const [name, t] of [
    ['k', key],
    ['v', value],
  ] as const)
    t.operand(name, query.backend);
}

/** Checks which positions are real: bool [batch, seq], those of the first two axes of t. */
export function checkPositions(mask: unknown, t: Tensor): asserts mask is Tensor<'bool', Shape> {
  checkAnyTensor(mask, 'mask');
  const { dtype, shape } = mask as AnyTensor;
  if (dtype !== 'bool') throw new FlashAttnError('ERR_DTYPE', `mask is ${dtype}; it must be bool: cast() converts`);
  const [batch, seq] = t.shape;
  if (!sameShape(shape, [batch, seq]))
    throw shapeError(`mask has shape ${show(shape)}; it must be [batch, seq], here [${batch}, ${seq}]`);
  (mask as AnyTensor).operand('mask', t.backend);
}

/** In float32, which states are kept and sums are made in. */
export const wide = (t: Sequence): Wide => (t.dtype === 'float32' ? (t as Wide) : cast(t, 'float32'));

/** A result in the dtype of the inputs. */
export const narrow = <D extends FloatDType>(t: Sequence, { dtype }: Sequence<D>): Sequence<D> =>
  t.dtype === (dtype as FloatDType) ? (t as Sequence<D>) : cast(t, dtype);

/** One length for each batch entry, none beyond the sequence. @throws ERR_OPTION */
export function checkLens(lens: unknown, argument: string, batch: number, seq: number): readonly number[] {
  const checked = checkIntegers(lens, argument, 0, seq);
  if (checked.length !== batch)
    throw shapeError(`${argument} has ${checked.length} entries; it needs one for each of the ${batch} batch entries`);
  return checked;
}

/**
 * Whether a position is one of the first `lens[b]`: 1 or 0, [batch, seq, 1, 1]. Made on the device, as a captured step must be.
 */
export function within(lens: readonly number[], seq: number, { backend }: Tensor): Wide {
  if (lens.length === 0) return filled(backend, [0, seq, 1, 1], 'float32', 1);
  const real = lens.map((n) => filled(backend, [1, n, 1, 1], 'float32', 1));
  const none = [0, 0] as const;
  return concat(
    real.map((ones, b) => pad(ones, [none, [0, seq - lens[b]], none, none])),
    0,
  ) as Wide;
}

/** Whether key j is at most at query i: bool [n, n]. Made on the device. */
export function upToEach(n: number, { backend }: Tensor): Tensor<'bool', Shape> {
  const positions = cumsum(filled(backend, [n], 'float32', 1));
  return lessEqual(positions, positions.reshape([n, 1]));
}
