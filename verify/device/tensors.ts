/** What checks do with tensors of their own. */
import type { Tensor } from 'flashattn';
import { widen } from '../cases/library.js';
import { magnitude, maxError } from '../oracle/compare.js';
import { ensure } from './check.js';

/** Runs with a function that takes hold of tensors, and disposes of them. */
export function owning<T>(run: (own: <U extends Tensor>(t: U) => U) => T): T {
  const owned: Tensor[] = [];
  try {
    return run((t) => {
      owned.push(t);
      return t;
    });
  } finally {
    for (const t of owned) t.dispose();
  }
}

/** Within `tolerance` of the largest value, or of 1. */
export function ensureClose(name: string, t: Tensor, exact: Float64Array, tolerance: number): void {
  const error = maxError(widen(t), exact) / magnitude(exact);
  ensure(error <= tolerance, `${name}: error ${error.toExponential(2)} > ${tolerance.toExponential(2)}`);
}
