/** Numbers for tests of operations, and how far from exact ones results may be. */
import type { FloatDType, Tensor } from '../../lib/index.js';

/** From [-2, 2), in steps of 1/32 that every dtype holds. */
export function numbers(count: number, seed: number): Float32Array {
  let random = Math.imul(seed + 1, 2654435761);
  return Float32Array.from({ length: count }, () => {
    random = (Math.imul(random, 1664525) + 1013904223) >>> 0;
    return Math.floor((random / 2 ** 32) * 128 - 64) / 32;
  });
}

export const size = (shape: readonly number[]): number => shape.reduce((product, n) => product * n, 1);

/** Half a unit in the last place, relative. */
export const rounding: Readonly<Record<FloatDType, number>> = {
  float32: 2 ** -24,
  float16: 2 ** -11,
  bfloat16: 2 ** -8,
};

/** @param scales by element what its error is measured by, such as the sum of what is added up without signs */
export function expectNear(
  what: string,
  got: Tensor | undefined,
  wanted: ArrayLike<number>,
  scales: ArrayLike<number>,
  units = 1,
): void {
  if (!got) throw new Error(`${what} is missing`);
  const data = got.toFloat32Sync();
  if (data.length !== wanted.length) throw new Error(`${what} has ${data.length} elements, not ${wanted.length}`);
  const unit = rounding[got.dtype];
  for (let at = 0; at < wanted.length; at++) {
    const exact = wanted[at] as number;
    if (data[at] === exact) continue;
    const error = Math.abs((data[at] as number) - exact);
    // Subnormal numbers of float16 are 2^-24 apart.
    const allowed = units * unit * Math.max(Math.abs(exact), Math.abs(scales[at] as number)) + 2 ** -25;
    if (Number.isNaN(exact) ? !Number.isNaN(data[at]) : !(error <= allowed))
      throw new Error(`${what} is ${data[at]} at ${at}, not ${exact} +- ${allowed}`);
  }
}
