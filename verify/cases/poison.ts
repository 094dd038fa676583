/** Inputs with numbers that must not reach what does not see them. */
import { magnitude, maxError } from '../oracle/compare.js';
import type { Problem } from '../oracle/problem.js';
import { type Named, solve } from '../oracle/sensitivity.js';
import type { Instance } from './case.js';
import { type Side, shapeOf } from './library.js';

/** A copy of `values` with `poison` in the rows [begin, end) along seq, for one batch entry or packed as a whole. */
export function poisoned(
  p: Problem,
  side: Side,
  values: Float64Array,
  b: number,
  range: readonly [number, number],
  poison: number,
): Float64Array {
  const shape = shapeOf(p, side);
  const dim = shape.at(-1) ?? 1;
  const seqAxis = p.layout === 'varlen' ? 0 : p.layout === 'bshd' ? 1 : 2;
  const stride = shape.slice(seqAxis + 1).reduce((a, n) => a * n, 1);
  const length = shape[seqAxis] ?? 1;
  const perBatch = p.layout === 'varlen' ? values.length : shape.slice(1).reduce((a, n) => a * n, 1);
  return values.map((x, n) => {
    const position = Math.floor(n / stride) % length;
    const hit = position >= range[0] && position < range[1] && Math.floor(n / perBatch) === b;
    // Not every element: one bad number in a row is enough.
    return hit && n % dim === dim - 1 ? poison : x;
  });
}

/** Where results are not finite where the oracle is or the other way around, or finite and far from it. */
export function patternFailures({ problem, dOut, dLse }: Instance, actual: Named, tolerance = 1e-4): string[] {
  return Object.entries(solve(problem, dOut, dLse)).flatMap(([name, expected]) => {
    const found = actual[name] ?? new Float64Array(0);
    const isGood = (x: number): boolean => Number.isFinite(x) || (name === 'lse' && x === -Infinity);
    const wrong = expected.findIndex((x, n) => isGood(x) !== isGood(found[n] ?? NaN));
    if (wrong >= 0) return [`${name}[${wrong}] is ${found[wrong]}, the oracle has ${expected[wrong]}`];
    const clean = (values: Float64Array): Float64Array => values.filter((_, n) => isGood(expected[n] ?? NaN));
    const error = maxError(clean(found), clean(expected)) / magnitude(clean(expected));
    return error < tolerance ? [] : [`${name}: error ${error.toExponential(2)} beside what is not finite`];
  });
}
