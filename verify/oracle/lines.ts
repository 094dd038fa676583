/** Operations along one axis of a row-major array, in float64. */

/** Calls `f` with the places of each line along an axis; `to` places of the same lines with another length. */
function forLines(
  shape: readonly number[],
  axis: number,
  length: number,
  f: (from: (i: number) => number, to: (i: number) => number) => void,
): void {
  const own = shape[axis] as number;
  const inner = shape.slice(axis + 1).reduce((x, n) => x * n, 1);
  const rows = shape.slice(0, axis).reduce((x, n) => x * n, 1);
  for (let row = 0; row < rows; row++)
    for (let at = 0; at < inner; at++)
      f(
        (i) => (row * own + i) * inner + at,
        (i) => (row * length + i) * inner + at,
      );
}

/** Whether a comes before b, where NaN is larger than everything. */
const isLess = (a: number, b: number): boolean => (Number.isNaN(b) ? !Number.isNaN(a) : a < b);

/** The places along the axis of the first `count` elements in order. */
export function sortIndices(
  data: ArrayLike<number>,
  shape: readonly number[],
  axis: number,
  count: number,
  descending: boolean,
): number[] {
  const out: number[] = [];
  forLines(shape, axis, count, (from, to) => {
    const order = Array.from({ length: shape[axis] as number }, (_, i) => i);
    const value = (i: number) => data[from(i)] as number;
    const compare = (a: number, b: number) =>
      isLess(value(a), value(b)) ? -1 : isLess(value(b), value(a)) ? 1 : a - b;
    order.sort((a, b) => {
      const order = compare(a, b);
      const isTie = !isLess(value(a), value(b)) && !isLess(value(b), value(a));
      return isTie || !descending ? order : -order;
    });
    for (let i = 0; i < count; i++) out[to(i)] = order[i] as number;
  });
  return out;
}

/** data at `indices`, whose axis has length `count`; NaN where an index is no place. */
export function takeAlong(
  data: ArrayLike<number>,
  shape: readonly number[],
  axis: number,
  indices: ArrayLike<number>,
  count: number,
): number[] {
  const out: number[] = [];
  forLines(shape, axis, count, (from, to) => {
    for (let i = 0; i < count; i++) {
      const index = indices[to(i)] as number;
      out[to(i)] = index >= 0 && index < (shape[axis] as number) ? (data[from(index)] as number) : Number.NaN;
    }
  });
  return out;
}

/** The adjoint: values [..., count, ...] added up at their indices, to an array of `shape`. */
export function addAlong(
  values: ArrayLike<number>,
  shape: readonly number[],
  axis: number,
  indices: ArrayLike<number>,
  count: number,
): number[] {
  const out = new Array<number>(shape.reduce((x, n) => x * n, 1)).fill(0);
  forLines(shape, axis, count, (from, to) => {
    for (let i = 0; i < count; i++) {
      const index = indices[to(i)] as number;
      if (index >= 0 && index < (shape[axis] as number)) (out[from(index)] as number) += values[to(i)] as number;
    }
  });
  return out;
}

export function cumulativeSum(
  data: ArrayLike<number>,
  shape: readonly number[],
  axis: number,
  reverse: boolean,
): number[] {
  const out: number[] = [];
  const length = shape[axis] as number;
  forLines(shape, axis, length, (from) => {
    let sum = 0;
    for (let n = 0; n < length; n++) {
      const i = from(reverse ? length - 1 - n : n);
      sum += data[i] as number;
      out[i] = sum;
    }
  });
  return out;
}
