// Whether several elements of a view lie at one place of memory, as in what is expanded or cut into windows that overlap.
import { shapeError, show } from '../base/errors.js';
import { elementCount, type Shape } from './shape.js';

/** Elements of the views whose places are compared one by one. */
const mostCompared = 2 ** 20;

function divisor(a: number, b: number): number {
  while (b > 0) [a, b] = [b, a % b];
  return a;
}

interface Axis {
  readonly size: number;
  readonly stride: number;
}

/** Whether a step along one axis leads where several along the other do. */
function meet(a: Axis, b: Axis): boolean {
  const common = divisor(a.stride, b.stride);
  return b.stride / common < a.size && a.stride / common < b.size;
}

/** Goes through all places, to the first that comes twice. */
function comesTwice(axes: readonly Axis[]): boolean {
  const seen = new Set<number>();
  const visit = (axis: number, place: number): boolean => {
    if (axis === axes.length) return seen.size === seen.add(place).size;
    const { size, stride } = axes[axis];
    for (let i = 0; i < size; i++) if (visit(axis + 1, place + i * stride)) return true;
    return false;
  };
  return visit(0, 0);
}

/**
 * Whether some place belongs to several elements. Exact but for views of more than 2^20 elements whose axes interlock in
 * threes, which no method of tensors makes of a row-major tensor but windows of windows: those count as repeated.
 */
export function repeats(shape: Shape, strides: readonly number[]): boolean {
  const axes: Axis[] = [];
  let reach = 0;
  let isNested = true;
  for (let axis = 0; axis < shape.length; axis++) if (shape[axis] === 0) return false;
  for (let axis = 0; axis < shape.length; axis++) {
    if (shape[axis] === 1) continue;
    if (strides[axis] === 0) return true;
    axes.push({ size: shape[axis], stride: strides[axis] });
  }
  axes.sort((a, b) => a.stride - b.stride);
  // Steps along each axis that lead beyond all that the shorter ones reach never meet.
  for (const { size, stride } of axes) {
    if (stride <= reach) isNested = false;
    reach += (size - 1) * stride;
  }
  if (isNested) return false;
  for (let i = 0; i < axes.length; i++) for (let j = 0; j < i; j++) if (meet(axes[i], axes[j])) return true;
  return elementCount(shape) > mostCompared || comesTwice(axes);
}

/** @throws ERR_SHAPE for a view that cannot be written to */
export function checkWritable(
  { shape, strides }: { readonly shape: Shape; readonly strides: readonly number[] },
  argument: string,
): void {
  if (repeats(shape, strides))
    throw shapeError(
      `${argument} has shape ${show(shape)} and strides ${show(strides)}: several elements lie at one place`,
    );
}
