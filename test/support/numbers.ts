/** Float32 numbers of every kind, and how far apart two are. */

import type { FloatDType } from '../../lib/index.js';
import { ulp32 } from '../../verify/oracle/elementwise.js';
import { type LowDType, round, ulp } from '../../verify/oracle/float16.js';
import { uniform } from '../../verify/oracle/random.js';

export const specials: readonly number[] = [
  ...[0, 1, 2, 0.5, 3, 2 ** -149, 2 ** -126, 2 ** -127, 2 ** 23, 2 ** 24 - 1, 2 ** 24, 2 ** 31, 88.5, 103, 17, 1.5],
  ...[3.4028234663852886e38, 1e-30, 1e30, Number.POSITIVE_INFINITY],
].flatMap((x) => [x, -x]);

/** Random bits, numbers of moderate size, and those near 1, in turn; with the special ones first. */
export function anyNumbers(count: number, seed: number): Float32Array {
  const next = uniform(seed);
  const values = new Float32Array(count);
  const bits = new Uint32Array(values.buffer);
  for (let at = 0; at < count; at++) {
    if (at % 4 === 0) bits[at] = Math.floor(next() * 2 ** 32);
    else if (at % 4 === 1) values[at] = (next() - 0.5) * 40;
    else if (at % 4 === 2) values[at] = (next() - 0.5) * 300;
    else values[at] = (next() < 0.5 ? -1 : 1) * 2 ** ((next() - 0.5) * 8);
  }
  values.set([Number.NaN, ...specials].slice(0, count));
  return values;
}

export const unit = (x: number, dtype: FloatDType): number =>
  dtype === 'float32' ? ulp32(x) : ulp(x, dtype as LowDType);

export const rounded = (x: number, dtype: FloatDType): number =>
  dtype === 'float32' ? Math.fround(x) : round(x, dtype);

/** Numbers of a dtype, uniform in [-1, 1). */
export function noise(count: number, seed: number, dtype: FloatDType = 'float32'): Float32Array {
  const next = uniform(seed);
  return Float32Array.from({ length: count }, () => rounded(2 * next() - 1, dtype));
}

/**
 * How many units in the last place of float32, and besides of half a unit of the dtype where that is a shorter one, `got`
 * is away from `wanted`: 0 where both are NaN or the same infinity or zero, Infinity where only one is.
 */
export function unitsApart(got: number, wanted: number, dtype: FloatDType): number {
  const nearest = rounded(wanted, dtype);
  if (Object.is(got, nearest) || got === wanted) return 0;
  if (Number.isNaN(got) || Number.isNaN(wanted)) return Number.isNaN(got) && Number.isNaN(wanted) ? 0 : Infinity;
  if (!Number.isFinite(got) || !Number.isFinite(nearest)) {
    // The largest number and infinity are neighbours.
    const edge = dtype === 'float16' ? 65504 : 3.38e38;
    return Math.abs(got) >= edge && Math.abs(nearest) >= edge && Math.sign(got) === Math.sign(nearest) ? 1 : Infinity;
  }
  const slack = dtype === 'float32' ? 0 : unit(wanted, dtype) / 2;
  return Math.max(0, Math.abs(got - wanted) - slack) / ulp32(wanted);
}

/** The worst of all elements, for a message. */
export function worstOf(
  got: ArrayLike<number>,
  wanted: (at: number) => number,
  dtype: FloatDType = 'float32',
): { readonly units: number; readonly at: number } {
  let worst = { units: 0, at: 0 };
  for (let at = 0; at < got.length; at++) {
    const units = unitsApart(got[at] as number, wanted(at), dtype);
    if (units > worst.units) worst = { units, at };
  }
  return worst;
}
