import { checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { optionError, shapeError, show } from '../base/errors.js';
import { compile } from '../kernels/elementwise.js';
import { type Expression, input } from '../kernels/expression.js';
import { broadcast, launchElementwise } from '../tape/arithmetic.js';
import { record } from '../tape/tape.js';
import { sameShape } from '../tensor/shape.js';
import { allocateTensor, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { tidying } from '../tensor/track.js';

/**
 * Angles of rotary positions: that of position p and pair i is p * base^(-2 i / dim), with base 10,000 in the paper. float32
 * [length, dim / 2]; or [..., length, dim / 2] where the positions differ along the axes before, broadcast to those of x.
 */
export interface RopeAngles {
  /** The cosine of each angle. */
  readonly cos: Tensor<'float32', Shape>;
  /** And the sine. */
  readonly sin: Tensor<'float32', Shape>;
}

export interface RopeOptions {
  /**
   * Which dims are turned together: i and i + dim / 2 ('half', as in GPT-NeoX and Llama), or 2 i and 2 i + 1
   * ('interleaved', as in GPT-J and the paper). Default 'half'.
   */
  readonly pairs?: 'half' | 'interleaved';
}

const [x, y, c, s] = [0, 1, 2, 3].map(input) as [Expression, Expression, Expression, Expression];
const turn = compile([x.mul(c).sub(y.mul(s)), x.mul(s).add(y.mul(c))], 4);
const turnBack = compile([x.mul(c).add(y.mul(s)), y.mul(c).sub(x.mul(s))], 4);

/** The two dims of every pair, as views. */
function pairsOf(t: Tensor, rotated: number, pairs: 'half' | 'interleaved'): readonly [Tensor, Tensor] {
  const own = t.detach();
  const last = t.shape.length - 1;
  return pairs === 'half'
    ? [own.slice(last, 0, rotated / 2), own.slice(last, rotated / 2, rotated)]
    : [own.slice(last, 0, rotated, 2), own.slice(last, 1, rotated, 2)];
}

function rotate(t: Tensor, { cos, sin }: RopeAngles, pairs: 'half' | 'interleaved', program: typeof turn): Tensor {
  const { backend, shape } = t;
  const half = cos.shape[cos.shape.length - 1];
  const rotated = 2 * half;
  const last = shape.length - 1;
  const turned = () => {
    const result = allocateTensor(backend, shape, t.dtype);
    const [first, second] = pairsOf(t, rotated, pairs);
    const targets = pairsOf(result, rotated, pairs);
    // [..., length, dim / 2] seen as [..., length, 1, dim / 2]: the same for all heads.
    const angles = [cos, sin].map((each) =>
      broadcast(each.detach().reshape([...each.shape.slice(0, -1), 1, half]), 'angles', first.shape, backend),
    );
    launchElementwise(backend, {
      program,
      inputs: [first.strided('x', backend), second.strided('x', backend), ...angles],
      outputs: targets.map((target) => target.strided('x', backend)),
    });
    if (rotated < shape[last]) {
      const [rest, target] = [t, result].map((each) => each.detach().slice(last, rotated, shape[last]));
      rest.copyInto(target);
    }
    return result;
  };
  return tidying(turned, (result) => [result]);
}

/** @internal The gradient of what was turned, from that of the result. */
export const turnedBack = (gradient: Tensor, angles: RopeAngles, pairs: 'half' | 'interleaved' = 'half'): Tensor =>
  rotate(gradient, angles, pairs, turnBack);

/** Whether angles of this shape fit x: [..., length, at most dim / 2], broadcast to the axes before the heads. */
function fits(angles: Shape, x: Shape): boolean {
  const missing = x.length - 1 - angles.length;
  if (x.length < 3 || angles.length < 2 || missing < 0) return false;
  if (2 * angles[angles.length - 1] > x[x.length - 1]) return false;
  const length = angles.length - 2;
  for (let axis = 0; axis <= length; axis++)
    if (angles[axis] !== x[axis + missing] && (axis === length || angles[axis] !== 1)) return false;
  return true;
}

/**
 * Rotary position embedding: pairs of dims of queries or keys, turned by an angle that grows with the position. Su et al.,
 * "RoFormer" (2021).
 *
 * @param x [..., length, heads, dim]; its first 2 * angles dims are turned, the others stay
 * @param angles of the `length` positions, contiguous; they have no gradient
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function rope<D extends FloatDType, S extends Shape>(
  x: Tensor<D, S>,
  angles: RopeAngles,
  options: RopeOptions = {},
): Tensor<D, S> {
  checkTensor(x, 'x');
  checkOptions(options, ['pairs']);
  const { pairs = 'half' } = options;
  if (pairs !== 'half' && pairs !== 'interleaved')
    throw optionError(`pairs is ${show(pairs)}; it must be 'half' or 'interleaved'`);
  if (angles === null || typeof angles !== 'object')
    throw optionError(`angles is ${show(angles)}; it must be { cos, sin }`);
  const source = x as unknown as Tensor;
  const { shape } = source;
  for (const [name, t] of [
    ['angles.cos', angles.cos],
    ['angles.sin', angles.sin],
  ] as const) {
    checkTensor(t, name);
    if (!fits(t.shape, shape))
      throw shapeError(
        `${name} has shape ${show(t.shape)} and x ${show(shape)}; they must be [length, at most dim / 2] and [..., length, heads, dim]`,
      );
    if (!sameShape(t.shape, angles.cos.shape))
      throw shapeError(
        `${name} has shape ${show(t.shape)} and angles.cos ${show(angles.cos.shape)}; they must be equal`,
      );
    if (!t.isContiguous) throw shapeError(`${name} must be contiguous`);
    t.operand(name, x.backend);
  }
  const result = rotate(source, angles, pairs, turn);
  record('rope', [source], [result], [angles.cos, angles.sin], ([gradient], [cos, sin]) => [
    gradient && turnedBack(gradient, { cos, sin } as RopeAngles, pairs),
  ]);
  return result as unknown as Tensor<D, S>;
}
