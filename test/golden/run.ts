/**
 * Golden vectors: runs every file of a folder through the library and compares the results with those in the file.
 *
 *   npm run golden -- --dir <folder> [--device wasm|cuda|emulator] [--system <name>] [--json <file>]
 */
import { readdirSync, realpathSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { type DeviceName, status } from 'flashattn';
import { GRADIENT_TOLERANCE, magnitude, maxError, OUTPUT_TOLERANCE, SENSITIVITY_FACTOR } from '../oracle/compare.js';
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
  readonly status: 'pass' | 'fail' | 'unsupported';
  readonly errors: Readonly<Record<string, TensorReport>>;
  readonly reason?: string;
}

/** JSON has no Infinity. */
const MISMATCH = Number.MAX_VALUE;

const USAGE = 'usage: golden --dir <folder> [--device wasm|cuda|emulator] [--system <name>] [--json <file>]';

class UsageError extends Error {}

function message(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function toleranceOf(file: GoldenFile, name: string): number {
  const gradient = isGradient(name, file);
  const sensitivity = gradient ? file.sensitivity.grad : file.sensitivity.out;
  if (sensitivity !== undefined) return Math.max(OUTPUT_TOLERANCE, SENSITIVITY_FACTOR * sensitivity);
  return gradient ? GRADIENT_TOLERANCE : OUTPUT_TOLERANCE;
}

function compareTensor(file: GoldenFile, name: string, { values, exact }: ComputedTensor): TensorReport {
  const expected = file.tensor(name).values;
  return {
    error: Math.min(maxError(values, expected), MISMATCH),
    tolerance: exact ? 0 : toleranceOf(file, name) * magnitude(expected),
  };
}

function verdict(file: GoldenFile, errors: Record<string, TensorReport>): Pick<Report, 'status' | 'reason'> {
  const missing = file.expected.filter((name) => !(name in errors));
  if (missing.length > 0) return { status: 'fail', reason: `not computed: ${missing.join(', ')}` };
  if (Object.keys(errors).length === 0) return { status: 'fail', reason: 'nothing was compared' };
  const wrong = Object.entries(errors).filter(([, { error, tolerance }]) => !(error <= tolerance));
  if (wrong.length === 0) return { status: 'pass' };
  return { status: 'fail', reason: `beyond tolerance: ${wrong.map(([name]) => name).join(', ')}` };
}

/** Computes one file. `system` restricts the run: a file of another system gives undefined. */
export async function runFile(path: string, device: DeviceName, system?: string): Promise<Report | undefined> {
  const report = { file: basename(path), system: 'unknown', device, errors: {} };
  let file: GoldenFile;
  try {
    file = new GoldenFile(path);
  } catch (error) {
    return { ...report, status: 'fail', reason: message(error) };
  }
  if (system !== undefined && file.system !== system) return undefined;
  report.system = file.system;

  const adapter = adapters.get(file.system);
  if (!adapter) return { ...report, status: 'unsupported', reason: `no adapter for system ${file.system}` };
  const workspace = new Workspace(device);
  try {
    const outcome = await adapter.compute(file, workspace);
    if ('unsupported' in outcome) return { ...report, status: 'unsupported', reason: outcome.unsupported };
    const errors: Record<string, TensorReport> = {};
    for (const [name, computed] of Object.entries(outcome.tensors)) {
      if (file.has(name)) errors[name] = compareTensor(file, name, computed);
    }
    return { ...report, errors, ...verdict(file, errors) };
  } catch (error) {
    return { ...report, status: 'fail', reason: message(error) };
  } finally {
    workspace.dispose();
  }
}

function line({ status: result, file, errors, reason }: Report): string {
  const tensors = Object.entries(errors).map(
    ([name, { error, tolerance }]) => `${name} ${error.toExponential(1)}/${tolerance.toExponential(1)}`,
  );
  return [result.padEnd(11), file, ...tensors, ...(reason ? [`(${reason})`] : [])].join('  ').trimEnd();
}

const DEVICES = /^(wasm|emulator|cuda(:\d+)?)$/;

/** The device, once it is known to work; falling back to another one would prove nothing. */
function usableDevice(name: string): DeviceName {
  if (!DEVICES.test(name)) throw new UsageError(`unknown device ${name}: wasm, cuda, cuda:<index> or emulator`);
  try {
    // The emulator is a device of tests alone, so the type of device names leaves it out.
    return status(name as DeviceName).requested;
  } catch (error) {
    throw new UsageError(`device ${name} cannot be used: ${message(error)}`);
  }
}

function goldenFiles(folder: string): string[] {
  try {
    return readdirSync(folder)
      .filter((name) => name.endsWith('.safetensors'))
      .sort()
      .map((name) => join(folder, name));
  } catch (error) {
    throw new UsageError(`cannot read --dir ${folder}: ${message(error)}`);
  }
}

interface Arguments {
  readonly files: readonly string[];
  readonly device: DeviceName;
  readonly system?: string | undefined;
  readonly json?: string | undefined;
}

function parseArguments(argv: readonly string[]): Arguments {
  const options = {
    dir: { type: 'string' },
    device: { type: 'string', default: 'wasm' },
    system: { type: 'string' },
    json: { type: 'string' },
  } as const;
  let values: { dir?: string; device: string; system?: string; json?: string };
  try {
    values = parseArgs({ args: [...argv], options }).values;
  } catch (error) {
    throw new UsageError(`${message(error)}\n${USAGE}`);
  }
  if (!values.dir) throw new UsageError(`--dir is missing\n${USAGE}`);
  const files = goldenFiles(values.dir);
  if (files.length === 0) throw new UsageError(`no .safetensors files in ${values.dir}`);
  return { files, device: usableDevice(values.device), system: values.system, json: values.json };
}

/** Exit status: 0 when nothing failed, 1 when a file failed, 2 when nothing could be run. */
export async function main(argv: readonly string[] = process.argv.slice(2)): Promise<number> {
  try {
    const { files, device, system, json } = parseArguments(argv);
    const reports: Report[] = [];
    for (const path of files) {
      const report = await runFile(path, device, system);
      if (!report) continue;
      reports.push(report);
      console.log(line(report));
    }
    if (reports.length === 0) throw new UsageError(`no file of system ${system}`);
    const count = (wanted: Report['status']): number => reports.filter((report) => report.status === wanted).length;
    console.log(`${count('pass')} passed, ${count('fail')} failed, ${count('unsupported')} unsupported`);
    if (json) writeFileSync(json, `${JSON.stringify(reports, null, 2)}\n`);
    return count('fail') > 0 ? 1 : 0;
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    console.error(`golden: ${error.message}`);
    return 2;
  }
}

const entry = process.argv[1];
if (entry && realpathSync(entry) === fileURLToPath(import.meta.url)) process.exitCode = await main();
