/** Computes golden files with the library and compares the results with those in the file. */
import { readdirSync } from 'node:fs';
import { basename, join } from 'node:path';
import type { DeviceName, FloatDType } from 'flashattn';
import { GRADIENT_TOLERANCE, magnitude, maxError, OUTPUT_TOLERANCE, SENSITIVITY_FACTOR } from '../oracle/compare.js';
import { messageOf } from '../usage.js';
import { type ComputedTensor, Workspace } from './adapter.js';
import { GoldenFile, isGradient } from './file.js';
import { adapters } from './systems/index.js';

export interface TensorReport {
  /** Largest absolute difference. */
  readonly error: number;
  readonly tolerance: number;
}

export interface Report {
  readonly file: string;
  readonly system: string;
  readonly device: string;
  readonly dtype: FloatDType;
  readonly status: 'pass' | 'fail' | 'unsupported';
  readonly errors: Readonly<Record<string, TensorReport>>;
  readonly reason?: string;
}

/** JSON has no Infinity. */
const MISMATCH = Number.MAX_VALUE;

function toleranceOf(file: GoldenFile, name: string): number {
  const gradient = isGradient(name, file);
  const sensitivity = gradient ? file.sensitivity.grad : file.sensitivity.out;
  if (sensitivity !== undefined) return Math.max(OUTPUT_TOLERANCE, SENSITIVITY_FACTOR * sensitivity);
  return gradient ? GRADIENT_TOLERANCE : OUTPUT_TOLERANCE;
}

interface Comparison extends TensorReport {
  /** Why the tensor is wrong beyond its error. */
  readonly complaint?: string;
}

function compareTensor(file: GoldenFile, name: string, { values, exact, reference }: ComputedTensor): Comparison {
  const expected = file.tensor(name).values;
  const tolerance = exact ? 0 : toleranceOf(file, name) * magnitude(expected);
  if (!reference) return { error: Math.min(maxError(values, expected), MISMATCH), tolerance };
  const { ok, max, maxLimit, mean, meanLimit } = reference.judge(values);
  const report = { error: Math.min(max, MISMATCH), tolerance: maxLimit };
  if (!(maxError(reference.unrounded, expected) <= tolerance))
    return { ...report, complaint: `the oracle does not compute ${name} of the file` };
  if (!ok && max <= maxLimit)
    return { ...report, complaint: `mean error of ${name} ${mean.toExponential(1)} > ${meanLimit.toExponential(1)}` };
  return report;
}

type Verdict = Pick<Report, 'status' | 'reason'>;

function verdict(file: GoldenFile, errors: Record<string, TensorReport>): Verdict {
  const missing = file.expected.filter((name) => !(name in errors));
  if (missing.length > 0) return { status: 'fail', reason: `not computed: ${missing.join(', ')}` };
  if (Object.keys(errors).length === 0) return { status: 'fail', reason: 'nothing was compared' };
  const wrong = Object.entries(errors).filter(([, { error, tolerance }]) => !(error <= tolerance));
  if (wrong.length === 0) return { status: 'pass' };
  return { status: 'fail', reason: `beyond tolerance: ${wrong.map(([name]) => name).join(', ')}` };
}

/** Why nothing can be said about 16-bit results: they are those of several attentions, or of something else. */
function unjudged(tensors: Readonly<Record<string, ComputedTensor>>, file: GoldenFile): string | undefined {
  const without = file.expected.filter((name) => !tensors[name]?.reference);
  if (without.length > 0) return without.join(', ');
  return file.expected.length === 0 ? 'any tensor' : undefined;
}

/** What to run files on. */
export interface Target {
  readonly device: DeviceName;
  /** Default 'float32'. */
  readonly dtype?: FloatDType | undefined;
  /** Files of other systems are left out. */
  readonly system?: string | undefined;
}

/** Computes one file; undefined when it is left out. */
export async function runFile(
  path: string,
  { device, dtype = 'float32', system }: Target,
): Promise<Report | undefined> {
  const report = { file: basename(path), system: 'unknown', device, dtype, errors: {} };
  let file: GoldenFile;
  try {
    file = new GoldenFile(path);
  } catch (error) {
    return { ...report, status: 'fail', reason: messageOf(error) };
  }
  if (system !== undefined && file.system !== system) return undefined;
  report.system = file.system;

  const adapter = adapters.get(file.system);
  if (!adapter) return { ...report, status: 'unsupported', reason: `no adapter for system ${file.system}` };
  const workspace = new Workspace(device, dtype);
  try {
    const outcome = await adapter.compute(file, workspace);
    if ('unsupported' in outcome) return { ...report, status: 'unsupported', reason: outcome.unsupported };
    const { tensors } = outcome;
    const without = dtype === 'float32' ? undefined : unjudged(tensors, file);
    if (without) return { ...report, status: 'unsupported', reason: `no ${dtype} reference for ${without}` };
    const errors: Record<string, TensorReport> = {};
    const complaints: string[] = [];
    for (const [name, computed] of Object.entries(tensors)) {
      if (!file.has(name)) continue;
      const { complaint, ...found } = compareTensor(file, name, computed);
      errors[name] = found;
      if (complaint) complaints.push(complaint);
    }
    const result = verdict(file, errors);
    if (complaints.length === 0) return { ...report, errors, ...result };
    const reason = [...(result.reason ? [result.reason] : []), ...complaints].join('; ');
    return { ...report, errors, status: 'fail', reason };
  } catch (error) {
    return { ...report, status: 'fail', reason: messageOf(error) };
  } finally {
    workspace.dispose();
  }
}

export function line({ status: result, file, errors, reason }: Report): string {
  const tensors = Object.entries(errors).map(
    ([name, { error, tolerance }]) => `${name} ${error.toExponential(1)}/${tolerance.toExponential(1)}`,
  );
  return [result.padEnd(11), file, ...tensors, ...(reason ? [`(${reason})`] : [])].join('  ').trimEnd();
}

/** The paths of the golden files in a folder. */
export function goldenFiles(folder: string): string[] {
  return readdirSync(folder)
    .filter((name) => name.endsWith('.safetensors'))
    .sort()
    .map((name) => join(folder, name));
}
