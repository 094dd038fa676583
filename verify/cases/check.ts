/** Holds results of the library against the references, with the tolerances of every dtype. */
import type { DeviceName } from 'flashattn';
import { GRADIENT_TOLERANCE, magnitude, maxError, OUTPUT_TOLERANCE, SENSITIVITY_FACTOR } from '../oracle/compare.js';
import type { LowDType } from '../oracle/float16.js';
import { judge, type LowPrecisionVerdict, unfused, VARIANTS } from '../oracle/lowPrecision.js';
import { lseSize, type Problem } from '../oracle/problem.js';
import { type Named, sensitivity, solve } from '../oracle/sensitivity.js';
import { type Case, type Instance, instantiate } from './case.js';
import { testDevice } from './device.js';
import { type RunOptions, runLibrary } from './library.js';
import { compiledMask } from './maskCases.js';
import type { CaseDType } from './views.js';

function isOutput(name: string): boolean {
  return name === 'out' || name === 'lse';
}

/** Holds float32 results of one problem against the oracle, with what the oracle computes kept for the next results. */
class Float32Judge {
  readonly #expected: Named;
  #sensitivity: Record<string, number> | undefined;

  constructor(private readonly instance: Instance) {
    const { problem, dOut, dLse } = instance;
    this.#expected = solve(problem, dOut, dLse);
  }

  failures(actual: Named): string[] {
    return Object.entries(this.#expected).flatMap(([name, values]) => {
      const found = actual[name];
      if (!found) return [`${name} is missing`];
      const error = maxError(found, values) / magnitude(values);
      let tolerance = isOutput(name) ? OUTPUT_TOLERANCE : GRADIENT_TOLERANCE;
      if (error > tolerance && Number.isFinite(error))
        tolerance = Math.max(tolerance, SENSITIVITY_FACTOR * this.#sensitivityOf(name));
      return error <= tolerance ? [] : [`${name}: error ${error.toExponential(2)} > ${tolerance.toExponential(2)}`];
    });
  }

  /** Computed only where it matters: it costs several runs of the oracle. */
  #sensitivityOf(name: string): number {
    const { problem, dOut, dLse } = this.instance;
    this.#sensitivity ??= sensitivity(problem, dOut, dLse);
    return this.#sensitivity[name] ?? 0;
  }
}

/** What is wrong with float32 results, one line a tensor; empty when nothing is. */
export function float32Failures(instance: Instance, actual: Named): string[] {
  return new Float32Judge(instance).failures(actual);
}

/** How many neighbouring elements of a tensor share the errors of one query or key. */
function rowLength(p: Problem, name: string): number {
  if (name === 'dQuery' || name === 'dKey') return p.headDim;
  if (name === 'out' || name === 'dValue') return p.valueDim;
  return name === 'dBias' ? (p.bias?.shape[3] ?? 1) : 1;
}

/** Holds 16-bit results of one problem against the rule. The log-sum-exp is float32 in every dtype. */
export class LowPrecisionJudge {
  readonly #expected: Named;
  readonly #references: Named[];

  constructor(
    private readonly instance: Instance,
    private readonly dtype: LowDType,
  ) {
    const { problem, dOut, dLse } = instance;
    this.#expected = solve(problem, dOut, dLse);
    this.#references = [unfused(problem, dtype, dOut, dLse)];
  }

  judge(name: string, found: ArrayLike<number>): LowPrecisionVerdict {
    const { problem, dOut, dLse } = this.instance;
    const exact = this.#expected[name] ?? new Float64Array(0);
    if (name === 'lse') {
      const max = maxError(found, exact) / magnitude(exact);
      return { ok: max <= OUTPUT_TOLERANCE, max, maxLimit: OUTPUT_TOLERANCE, mean: 0, meanLimit: 0 };
    }
    const independent = Math.min(lseSize(problem), exact.length / rowLength(problem, name));
    const verdict = (): LowPrecisionVerdict => {
      const references = this.#references.map((reference) => reference[name] ?? new Float64Array(0));
      return judge(this.dtype, found, exact, references, independent);
    };
    const first = verdict();
    if (first.ok || this.#references.length > 1) return first;
    // A small tensor may just have been lucky in the reference. Computed only where it matters: it costs time.
    this.#references.push(...VARIANTS.map((variant) => unfused(problem, this.dtype, dOut, dLse, variant)));
    return verdict();
  }

  failures(actual: Named): string[] {
    const show = (x: number): string => x.toExponential(2);
    return Object.keys(this.#expected).flatMap((name) => {
      const found = actual[name];
      if (!found) return [`${name} is missing`];
      const { ok, max, maxLimit, mean, meanLimit } = this.judge(name, found);
      return ok
        ? []
        : [`${name}: max error ${show(max)} (limit ${show(maxLimit)}), mean ${show(mean)} (limit ${show(meanLimit)})`];
    });
  }
}

/** Holds results of either kind of dtype. What the references compute is kept for the next results. */
export class Judge {
  readonly #rule: Float32Judge | LowPrecisionJudge;

  constructor(instance: Instance, dtype: CaseDType = 'float32') {
    this.#rule = dtype === 'float32' ? new Float32Judge(instance) : new LowPrecisionJudge(instance, dtype);
  }

  failures(actual: Named): string[] {
    return this.#rule.failures(actual);
  }
}

/** What is wrong with results, one line a tensor. */
export function failuresIn(instance: Instance, dtype: CaseDType, actual: Named): string[] {
  return new Judge(instance, dtype).failures(actual);
}

/** How a case is given to the library. */
export function runOptionsOf(c: Case, device: DeviceName = testDevice): RunOptions {
  const { blockMask, ...options } = c;
  return { ...options, device, mask: blockMask && compiledMask(c, blockMask) };
}

/** Runs a case through the library and the references. */
export function failuresOf(c: Case, device: DeviceName = testDevice): string[] {
  const instance = instantiate(c);
  return failuresIn(instance, c.dtype ?? 'float32', runLibrary(instance, runOptionsOf(c, device)));
}

/** The same in one line, a thrown error included; undefined when nothing is wrong. */
export function failureOf(c: Case, device: DeviceName = testDevice): string | undefined {
  try {
    return failuresOf(c, device).join('; ') || undefined;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}
