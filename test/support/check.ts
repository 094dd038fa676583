/** Holds results of the library against the references, with the tolerances of every dtype. */
import type { DeviceName } from 'flashattn';
import { GRADIENT_TOLERANCE, magnitude, maxError, OUTPUT_TOLERANCE, SENSITIVITY_FACTOR } from '../oracle/compare.js';
import type { LowDType } from '../oracle/float16.js';
import { judge, type LowPrecisionVerdict, OTHER_GRIDS, unfused } from '../oracle/lowPrecision.js';
import { lseSize, type Problem } from '../oracle/problem.js';
import { type Named, sensitivity, solve } from '../oracle/sensitivity.js';
import { type Case, type CaseDType, type Instance, instantiate } from './case.js';
import { testDevice } from './device.js';
import { runLibrary } from './library.js';
import { compiledMask } from './maskCases.js';

export function isOutput(name: string): boolean {
  return name === 'out' || name === 'lse';
}

/** What is wrong with float32 results, one line a tensor; empty when nothing is. */
export function float32Failures(instance: Instance, actual: Named): string[] {
  const { problem, dOut, dLse } = instance;
  const expected = solve(problem, dOut, dLse);
  let sens: Record<string, number> | undefined;
  const failures: string[] = [];
  for (const [name, values] of Object.entries(expected)) {
    const found = actual[name];
    if (!found) {
      failures.push(`${name} is missing`);
      continue;
    }
    const error = maxError(found, values) / magnitude(values);
    let tolerance = isOutput(name) ? OUTPUT_TOLERANCE : GRADIENT_TOLERANCE;
    if (error > tolerance && Number.isFinite(error)) {
      // Computed only where it matters: it costs several runs of the oracle.
      sens ??= sensitivity(problem, dOut, dLse);
      tolerance = Math.max(tolerance, SENSITIVITY_FACTOR * (sens[name] ?? 0));
    }
    if (!(error <= tolerance))
      failures.push(`${name}: error ${error.toExponential(2)} > ${tolerance.toExponential(2)}`);
  }
  return failures;
}

/** How many neighbouring elements of a tensor share the errors of one query or key. */
function rowLength(p: Problem, name: string): number {
  if (name === 'dQuery' || name === 'dKey') return p.headDim;
  if (name === 'out' || name === 'dValue') return p.valueDim;
  return name === 'dBias' ? (p.bias?.shape[3] ?? 1) : 1;
}

/** The same for float16 and bfloat16. The log-sum-exp is float32 in every dtype. */
export function lowPrecisionFailures(instance: Instance, dtype: LowDType, actual: Named): string[] {
  const { problem, dOut, dLse } = instance;
  const expected = solve(problem, dOut, dLse);
  const references = [unfused(problem, dtype, dOut, dLse)];
  return Object.entries(expected).flatMap(([name, exact]) => {
    const found = actual[name];
    if (!found) return [`${name} is missing`];
    if (name === 'lse') {
      const error = maxError(found, exact) / magnitude(exact);
      return error <= OUTPUT_TOLERANCE ? [] : [`lse: error ${error.toExponential(2)} > ${OUTPUT_TOLERANCE}`];
    }
    const independent = Math.min(lseSize(problem), exact.length / rowLength(problem, name));
    const verdict = (): LowPrecisionVerdict =>
      judge(
        dtype,
        found,
        exact,
        references.map((reference) => reference[name] ?? new Float64Array(0)),
        independent,
      );
    if (verdict().ok) return [];
    // A small tensor may just have been lucky in the reference. Computed only where it matters: it costs time.
    if (references.length === 1) {
      references.push(...OTHER_GRIDS.map((grid) => unfused(problem, dtype, dOut, dLse, grid)));
    }
    const { ok, max, maxLimit, mean, meanLimit } = verdict();
    const show = (x: number): string => x.toExponential(2);
    return ok
      ? []
      : [`${name}: max error ${show(max)} (limit ${show(maxLimit)}), mean ${show(mean)} (limit ${show(meanLimit)})`];
  });
}

/** What is wrong with results of either kind of dtype. */
export function failuresIn(instance: Instance, dtype: CaseDType, actual: Named): string[] {
  return dtype === 'float32' ? float32Failures(instance, actual) : lowPrecisionFailures(instance, dtype, actual);
}

/** Runs a case through the library and the references. */
export function failuresOf(c: Case, device: DeviceName = testDevice): string[] {
  const instance = instantiate(c);
  const { blockMask, ...rest } = c;
  const actual = runLibrary(instance, { ...rest, device, mask: blockMask && compiledMask(c, blockMask) });
  return failuresIn(instance, c.dtype ?? 'float32', actual);
}

/** The same in one line, a thrown error included; undefined when nothing is wrong. */
export function failureOf(c: Case, device: DeviceName = testDevice): string | undefined {
  try {
    return failuresOf(c, device).join('; ') || undefined;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}
