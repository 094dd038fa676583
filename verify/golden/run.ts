/**
 * Golden vectors: runs every file of a folder through the library and compares the results with those in the file.
 *
 *   npm run golden -- --dir <folder> [--device wasm|cpu|cuda|emulator] [--dtype float32|float16|bfloat16] [--system <name>]
 *                     [--json <file>]
 *
 * In 16 bits the reference is the oracle on rounded inputs, under the rule for 16-bit results, for every system that is
 * one attention of its inputs.
 */
import { realpathSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { type DeviceName, type FloatDType, status } from 'flashattn';
import { messageOf, UsageError } from '../usage.js';
import { goldenFiles, line, type Report, runFile, type Target } from './compute.js';

const USAGE =
  'usage: golden --dir <folder> [--device wasm|cpu|cuda|emulator] [--dtype float32|float16|bfloat16] [--system <name>] [--json <file>]';

const DEVICES = /^(wasm|cpu|emulator|cuda(:\d+)?)$/;

/** The device, once it is known to work; falling back to another one would prove nothing. */
function usableDevice(name: string): DeviceName {
  if (!DEVICES.test(name)) throw new UsageError(`unknown device ${name}: wasm, cpu, cuda, cuda:<index> or emulator`);
  try {
    return status(name as DeviceName).requested;
  } catch (error) {
    throw new UsageError(`device ${name} cannot be used: ${messageOf(error)}`);
  }
}

function filesIn(folder: string): string[] {
  try {
    return goldenFiles(folder);
  } catch (error) {
    throw new UsageError(`cannot read --dir ${folder}: ${messageOf(error)}`);
  }
}

const isDType = (name: string): name is FloatDType => ['float32', 'float16', 'bfloat16'].includes(name);

interface Arguments {
  readonly files: readonly string[];
  readonly target: Target;
  readonly json?: string | undefined;
}

function parseArguments(argv: readonly string[]): Arguments {
  const options = {
    dir: { type: 'string' },
    device: { type: 'string', default: 'wasm' },
    dtype: { type: 'string', default: 'float32' },
    system: { type: 'string' },
    json: { type: 'string' },
  } as const;
  let values: { dir?: string; device: string; dtype: string; system?: string; json?: string };
  try {
    values = parseArgs({ args: [...argv], options }).values;
  } catch (error) {
    throw new UsageError(`${messageOf(error)}\n${USAGE}`);
  }
  if (!values.dir) throw new UsageError(`--dir is missing\n${USAGE}`);
  const files = filesIn(values.dir);
  if (files.length === 0) throw new UsageError(`no .safetensors files in ${values.dir}`);
  const { dtype, system, json } = values;
  if (!isDType(dtype)) throw new UsageError(`unknown dtype ${dtype}: float32, float16 or bfloat16`);
  return { files, target: { device: usableDevice(values.device), dtype, system }, json };
}

/** Exit status: 0 when nothing failed, 1 when a file failed, 2 when nothing could be run. */
export async function main(argv: readonly string[] = process.argv.slice(2)): Promise<number> {
  try {
    const { files, target, json } = parseArguments(argv);
    const reports: Report[] = [];
    for (const path of files) {
      const report = await runFile(path, target);
      if (!report) continue;
      reports.push(report);
      console.log(line(report));
    }
    if (reports.length === 0) throw new UsageError(`no file of system ${target.system}`);
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
