import { attentionBackward, attentionForward } from './attention.js';
import { magnitude, maxError } from './compare.js';
import type { Problem } from './problem.js';
import { uniform } from './random.js';

export type Named = Readonly<Record<string, Float64Array>>;

/** Outputs and gradients of a problem under one set of names. */
export function solve(p: Problem, dOut: Float64Array, dLse?: Float64Array): Named {
  return { ...attentionForward(p), ...attentionBackward(p, dOut, dLse) };
}

/** Half a unit in the last place of float32. */
const HALF_ULP = 6e-8;

function perturbProblem(p: Problem, perturb: (values: Float64Array) => Float64Array): Problem {
  return {
    ...p,
    query: perturb(p.query),
    key: perturb(p.key),
    value: perturb(p.value),
    ...(p.bias && { bias: { ...p.bias, values: perturb(p.bias.values) } }),
    ...(p.alibi && { alibi: perturb(p.alibi) }),
    ...(p.relative && { relative: { ...p.relative, table: perturb(p.relative.table) } }),
    ...(p.sink && { sink: perturb(p.sink) }),
  };
}

/**
 * How far every output and gradient moves, relative to max(1, its largest value), when every input moves by a random
 * relative half ulp of float32: no float32 implementation can be expected to be more exact than this.
 */
export function sensitivity(p: Problem, dOut: Float64Array, dLse?: Float64Array): Record<string, number> {
  const exact = solve(p, dOut, dLse);
  const result: Record<string, number> = {};
  for (const seed of [1, 2, 3]) {
    const next = uniform(seed);
    const perturb = (values: Float64Array): Float64Array =>
      values.map((value) => value * (1 + HALF_ULP * (2 * next() - 1)));
    const moved = solve(perturbProblem(p, perturb), perturb(dOut), dLse && perturb(dLse));
    for (const [name, values] of Object.entries(exact)) {
      const change = maxError(moved[name] ?? [], values) / magnitude(values);
      result[name] = Math.max(result[name] ?? 0, change);
    }
  }
  return result;
}
