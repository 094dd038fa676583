/** Largest difference between two arrays. Equal infinities and two NaNs agree; any other mismatch is infinite. */
export function maxError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (actual.length !== expected.length) return Infinity;
  let largest = 0;
  for (let n = 0; n < expected.length; n++) {
    const [a, e] = [actual[n] as number, expected[n] as number];
    if (Object.is(a, e) || a === e) continue;
    const difference = Math.abs(a - e);
    largest = Number.isFinite(difference) ? Math.max(largest, difference) : Infinity;
  }
  return largest;
}

/** Largest finite magnitude, at least `floor`. */
export function magnitude(values: ArrayLike<number>, floor = 1): number {
  let largest = floor;
  for (let n = 0; n < values.length; n++) {
    const size = Math.abs(values[n] as number);
    if (size > largest && Number.isFinite(size)) largest = size;
  }
  return largest;
}

/** float32 acceptance: relative to the largest value, absolute where all values are small. */
export const OUTPUT_TOLERANCE = 2e-5;
export const GRADIENT_TOLERANCE = 1e-4;
/** A float32 implementation loses 10 to 50 times what rounding its inputs changes. */
export const SENSITIVITY_FACTOR = 100;
