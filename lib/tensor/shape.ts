import { checkInteger, mustBe } from '../base/check.js';
import type { DataOf, DType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';

/** The length of each axis. */
export type Shape = readonly number[];

/** Tuples of numbers keep their length, so that TypeScript knows the rank. */
export type Widen<S extends Shape> = { readonly [axis in keyof S]: number };

// Bounds within which every offset, in elements and in bytes, is an exact double. No machine has as much memory.
const mostAxes = 64;
const mostElements = 2 ** 50;

/** The axes that are empty do not count: views of a tensor without elements must not overflow either. */
function checkCount(shape: Shape, argument: string): void {
  const product = shape.reduce((count, n) => (n === 0 ? count : count * n), 1);
  if (product > mostElements) throw shapeError(`${argument} is ${show(shape)}; it may have at most 2^50 elements`);
}

/** Axes from `least` on: a frozen copy. */
function readAxes(shape: unknown, argument: string, least: number): number[] {
  const needed = `a shape is an array of integers >= ${least}`;
  if (!Array.isArray(shape)) throw shapeError(`${argument} is ${show(shape)}; ${needed}`);
  if (shape.length > mostAxes)
    throw shapeError(`${argument} is ${show(shape)}; a shape has at most ${mostAxes} axes, not ${shape.length}`);
  const axes: number[] = [];
  // By index and from the copy on: `every` skips holes, and a proxy may answer differently the next time.
  for (let axis = 0; axis < shape.length; axis++) {
    const n: unknown = shape[axis];
    if (!(Number.isSafeInteger(n) && (n as number) >= least))
      throw shapeError(`${argument} is ${show(shape)}; ${needed}`);
    axes.push((n as number) + 0); // 0 for -0
  }
  return axes;
}

/**
 * The one way in for shapes: a frozen copy of an array of integers >= 0, of at most 64 axes and 2^50 elements.
 *
 * @throws ERR_SHAPE
 */
export function checkShape(shape: unknown, argument: string): Shape {
  const axes = readAxes(shape, argument, 0);
  checkCount(axes, argument);
  return Object.freeze(axes);
}

/** Like `checkShape` for `count` elements, with one axis that may be -1: whatever is left for it. @throws ERR_SHAPE */
export function checkReshape(shape: unknown, from: Shape): Shape {
  const axes = readAxes(shape, 'shape', -1);
  const count = elementCount(from);
  const open = axes.indexOf(-1);
  if (open >= 0) {
    if (axes.indexOf(-1, open + 1) >= 0) throw mustBe('shape', axes, 'without a second -1', 'ERR_SHAPE');
    const others = axes.reduce((product, n, axis) => (axis === open ? product : product * n), 1);
    if (others === 0 || count % others !== 0)
      throw shapeError(
        `shape ${show(axes)} does not fit the ${count} elements of the tensor ${show(from)}: -1 cannot be told`,
      );
    axes[open] = count / others;
  }
  checkCount(axes, 'shape');
  if (elementCount(axes) !== count)
    throw shapeError(`shape ${show(axes)} has ${elementCount(axes)} elements, the tensor ${show(from)} has ${count}`);
  return Object.freeze(axes);
}

/** Strides in elements, one for each axis: a frozen copy. @throws ERR_OPTION, ERR_SHAPE */
export function checkStrides(strides: unknown, shape: Shape): readonly number[] {
  const needed = 'an array of integers >= 0, in elements';
  if (!Array.isArray(strides)) throw mustBe('strides', strides, needed);
  if (strides.length !== shape.length)
    throw shapeError(`strides has ${strides.length} entries; shape ${show(shape)} needs ${shape.length}`);
  const copy = shape.map((_, axis) => strides[axis] as unknown);
  if (!copy.every((n) => Number.isSafeInteger(n) && (n as number) >= 0)) throw mustBe('strides', copy, needed);
  const exact = copy as number[];
  if (elementSpan(shape, exact) > mostElements)
    throw shapeError(`strides is ${show(exact)}; shape ${show(shape)} would span more than 2^50 elements`);
  return Object.freeze(exact.map((n) => n + 0));
}

/** By index: shapes are frozen, and methods of frozen arrays are slow. */
export function sameShape(a: Shape, b: Shape): boolean {
  if (a.length !== b.length) return false;
  for (let axis = 0; axis < a.length; axis++) if (a[axis] !== b[axis]) return false;
  return true;
}

/** An axis of a shape, from 0 on; negative ones count from the end. @throws ERR_SHAPE */
export function checkAxis(axis: unknown, shape: Shape): number {
  const rank = shape.length;
  if (Number.isInteger(axis) && (axis as number) >= -rank && (axis as number) < rank)
    return (axis as number) < 0 ? (axis as number) + rank : (axis as number) + 0;
  const within = rank === 0 ? 'but there are no axes in' : `must lie within [${-rank}, ${rank}) for`;
  throw shapeError(`axis ${show(axis)} ${within} ${show(shape)}`);
}

/** Every axis of a shape once. @throws ERR_SHAPE */
export function checkPermutation(axes: unknown, shape: Shape): readonly number[] {
  const order = Array.isArray(axes) ? axes.map((axis) => checkAxis(axis, shape)) : [];
  if (order.length !== shape.length || new Set(order).size !== order.length)
    throw shapeError(`axes is ${show(axes)}; it must name each of the ${shape.length} axes of ${show(shape)} once`);
  return order;
}

/** What a shape is expanded to. @throws ERR_SHAPE */
export function checkExpand(shape: unknown, from: Shape): Shape {
  const missing = Array.isArray(shape) ? shape.length - from.length : -1;
  const axes =
    missing < 0 ? [] : (shape as unknown[]).map((n, axis) => (n === -1 && axis >= missing ? from[axis - missing] : n));
  const result = missing < 0 ? [] : checkShape(axes, 'shape');
  if (missing < 0 || from.some((n, axis) => n !== 1 && n !== result[axis + missing]))
    throw shapeError(`shape is ${show(shape)}; ${show(from)} can only be repeated along axes of length 1 and in front`);
  return result;
}

/** How many of the elements [start, end) of an axis a slice takes, and from which on. @throws ERR_SHAPE */
export function checkSlice(
  shape: Shape,
  axis: number,
  start: unknown,
  end: unknown,
  step: unknown,
): [first: number, count: number, step: number] {
  const length = shape[axis];
  const isInside = (n: unknown, least: number) =>
    Number.isInteger(n) && (n as number) >= least && (n as number) <= length;
  if (!(isInside(start, 0) && isInside(end, start as number)))
    throw shapeError(
      `slice [${show(start)}, ${show(end)}) must lie within [0, ${length}) on axis ${axis} of ${show(shape)}`,
    );
  const [first, last] = [(start as number) + 0, (end as number) + 0];
  const stride = checkInteger(step, 'step', 1, Number.POSITIVE_INFINITY, 'ERR_SHAPE');
  // A longer step than the axis takes one element and must not make a stride that is no longer exact.
  return [first, Math.ceil((last - first) / stride), Math.min(stride, Math.max(1, length))];
}

/** An index of an axis. @throws ERR_SHAPE */
export function checkIndex(index: unknown, shape: Shape, axis: number): number {
  const length = shape[axis];
  if (Number.isInteger(index) && (index as number) >= 0 && (index as number) < length) return (index as number) + 0;
  throw shapeError(`index ${show(index)} must lie within [0, ${length}) on axis ${axis} of ${show(shape)}`);
}

/** Strides in elements of a row-major array. */
export function contiguousStrides(shape: Shape): readonly number[] {
  const strides = new Array<number>(shape.length);
  let stride = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    strides[axis] = stride;
    stride *= shape[axis];
  }
  return strides;
}

/** Where element `at` in row-major order is, as messages say it: '[1, 0, 3]'. */
export function placeOf(shape: Shape, at: number): string {
  const strides = contiguousStrides(shape);
  return `[${strides.map((stride, axis) => Math.floor(at / stride) % shape[axis]).join(', ')}]`;
}

export const elementCount = (shape: Shape): number => shape.reduce((product, n) => product * n, 1);

/** From the first to the last element that a strided view covers. */
export const elementSpan = (shape: Shape, strides: readonly number[]): number =>
  elementCount(shape) === 0 ? 0 : shape.reduce((span, n, axis) => span + (n - 1) * strides[axis], 1);

/** Whether the elements lie row by row without gaps. */
export function isContiguous(shape: Shape, strides: readonly number[]): boolean {
  const packed = contiguousStrides(shape);
  return elementCount(shape) === 0 || shape.every((n, axis) => n === 1 || strides[axis] === packed[axis]);
}

/** Copies a strided view into `result`, row by row. */
export function copyStrided<Elements extends DataOf[DType]>(
  source: Elements,
  result: Elements,
  shape: Shape,
  strides: readonly number[],
): Elements {
  let at = 0;
  const copy = (axis: number, from: number): void => {
    if (axis === shape.length) result[at++] = source[from];
    else for (let i = 0; i < shape[axis]; i++) copy(axis + 1, from + i * strides[axis]);
  };
  copy(0, 0);
  return result;
}
