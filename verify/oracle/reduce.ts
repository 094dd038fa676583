/** Reductions over axes in float64. */
import type { OracleArray } from './matmul.js';

const product = (sizes: readonly number[]) => sizes.reduce((x, n) => x * n, 1);

/** For each element of the result the elements that it is made of, in row-major order. */
export function groups(array: OracleArray, axes: readonly number[] | undefined): number[][] {
  const { shape } = array;
  const gone = shape.map((_, axis) => axes === undefined || axes.some((a) => (a < 0 ? a + shape.length : a) === axis));
  const kept = shape.map((n, axis) => (gone[axis] ? 1 : n));
  const result: number[][] = Array.from({ length: product(kept) }, () => []);
  for (let at = 0; at < product(shape); at++) {
    let rest = at;
    let place = 0;
    let stride = 1;
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      const n = shape[axis] as number;
      if (!gone[axis]) {
        place += (rest % n) * stride;
        stride *= n;
      }
      rest = Math.floor(rest / n);
    }
    (result[place] as number[]).push(Number(array.data[at]));
  }
  return result;
}

export function reducedShape(
  shape: readonly number[],
  axes: readonly number[] | undefined,
  keepDims = false,
): number[] {
  const gone = shape.map((_, axis) => axes === undefined || axes.some((a) => (a < 0 ? a + shape.length : a) === axis));
  return keepDims ? shape.map((n, axis) => (gone[axis] ? 1 : n)) : shape.filter((_, axis) => !gone[axis]);
}

const total = (values: readonly number[]) => values.reduce((sum, x) => sum + x, 0);

function logSumExp(values: readonly number[]): number {
  const most = values.reduce((x, y) => (x > y || Number.isNaN(x) ? x : y), -Infinity);
  if (!Number.isFinite(most)) return values.some(Number.isNaN) ? Number.NaN : most;
  return most + Math.log(total(values.map((x) => Math.exp(x - most))));
}

export const reductions = {
  sum: total,
  mean: (values: readonly number[]) => total(values) / values.length,
  max: (values: readonly number[]) => values.reduce((x, y) => (x > y || Number.isNaN(x) ? x : y)),
  min: (values: readonly number[]) => values.reduce((x, y) => (x < y || Number.isNaN(x) ? x : y)),
  logSumExp,
} as const;

export type ReductionName = keyof typeof reductions;

export const variance = (values: readonly number[], correction = 1): number => {
  const mean = total(values) / values.length;
  return total(values.map((x) => (x - mean) ** 2)) / Math.max(0, values.length - correction);
};
