/**
 * Runs all checks of a device, and golden vectors, without a test runner.
 *
 *   node build/device/verify.js [--device cuda|emulator|wasm] [--quick] [--cases <n>] [--repeats <n>] [--group <name>]
 *                               [--golden <folder>] [--json <file>] [--case <json>] [--from <n>] [--verbose]
 *
 * One line a group, and under it what failed and how to run that alone. --verbose: also a line before each check, so
 * that one that never ends is known. A check that loses the device ends the run with 'lost: --from <n>', with which
 * another process goes on behind it. Exit code: 0 everything passed, 1 something failed, 2 nothing could be run, 3 the
 * device is lost.
 */
import { realpathSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { basename, dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { type DeviceName, type Status, status, tensor } from 'flashattn';
import type { Addon, EmulatorControls } from '../../lib/backends/cuda/addon.js';
import type { Case } from '../cases/case.js';
import { failureOf } from '../cases/check.js';
import { goldenFiles, line, type Report, runFile } from '../golden/compute.js';
import { messageOf, UsageError } from '../usage.js';
import { type Check, CheckFailure, type Group, runCheck, type Settings, Unsupported } from './check.js';
import { DTYPES } from './grid.js';
import { suite } from './suite.js';

const USAGE = `usage: verify [--device cuda|emulator|wasm] [--quick] [--cases <n>] [--repeats <n>] [--group <name>]
              [--golden <folder>] [--json <file>] [--case <json>] [--from <n>] [--verbose]`;

interface Failure {
  readonly check: string;
  readonly message: string;
  /** The case, where one shows the failure alone. */
  readonly replay?: Case | undefined;
}

interface GroupReport {
  readonly name: string;
  readonly passed: number;
  readonly failed: number;
  /** Checks that say nothing about this device. */
  readonly unsupported: number;
  readonly seconds: number;
  readonly failures: readonly Failure[];
}

interface Arguments {
  readonly device: DeviceName;
  readonly status: Status;
  readonly quick: boolean;
  readonly settings: Settings;
  readonly group: string | undefined;
  readonly golden: string | undefined;
  readonly json: string | undefined;
  readonly replay: Case | undefined;
  /** The number of the first check to run, over all groups. */
  readonly from: number;
  readonly verbose: boolean;
}

/** Quick runs take every sixth check of a large group: of the grid, other kinds for every bucket and dtype. */
const QUICK_STEP = 6;
const LARGE_GROUP = 25;

/** Cases of each random kind and repeats. A GPU has the time for what it alone can show. */
function extentOf(found: Status, quick: boolean): Pick<Settings, 'cases' | 'repeats' | 'large'> {
  const isGpu = found.device.startsWith('cuda');
  if (quick) return { cases: isGpu ? 20 : 5, repeats: isGpu ? 20 : 2, large: isGpu };
  return isGpu ? { cases: 100, repeats: 1000, large: true } : { cases: 20, repeats: 3, large: false };
}

/** The emulator's switches and findings: those of the addon that the library has loaded. */
function emulatorOf(found: Status): EmulatorControls | undefined {
  if (found.device !== 'emulator') return undefined;
  const require = createRequire(import.meta.url);
  const root = dirname(dirname(require.resolve('flashattn')));
  const built = join(root, 'build', 'emulator', 'Release', 'flashattn_emulator.node');
  const addon = require(resolve(process.env.FLASHATTN_EMULATOR_ADDON ?? built)) as Addon;
  return addon.emulator;
}

function countOf(name: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const count = Number(text);
  if (!Number.isInteger(count) || count < 0) throw new UsageError(`--${name} is ${text}; it must be a whole number`);
  return count;
}

function parse(argv: readonly string[]) {
  const text = { type: 'string' } as const;
  try {
    return parseArgs({
      args: [...argv],
      options: {
        device: { ...text, default: 'cuda' },
        quick: { type: 'boolean', default: false },
        cases: text,
        repeats: text,
        group: text,
        golden: text,
        json: text,
        case: text,
        from: text,
        verbose: { type: 'boolean', default: false },
      },
    }).values;
  } catch (error) {
    throw new UsageError(`${messageOf(error)}\n${USAGE}`);
  }
}

function parseCase(json: string | undefined): Case | undefined {
  try {
    return json === undefined ? undefined : (JSON.parse(json) as Case);
  } catch (error) {
    throw new UsageError(`--case is not JSON: ${messageOf(error)}`);
  }
}

/** The device has to work; falling back to another one would prove nothing. */
function statusOf(device: DeviceName): Status {
  try {
    if (device === 'auto') throw new Error('name the device');
    return status(device);
  } catch (error) {
    throw new UsageError(`device ${device} cannot be used: ${messageOf(error)}`);
  }
}

function parseArguments(argv: readonly string[]): Arguments {
  const { device: name, quick, cases, repeats, group, golden, json, case: replay, from, verbose } = parse(argv);
  const device = name as DeviceName;
  const found = statusOf(device);
  const extent = extentOf(found, quick);
  const settings: Settings = {
    ...extent,
    cases: countOf('cases', cases) ?? extent.cases,
    repeats: countOf('repeats', repeats) ?? extent.repeats,
    emulator: emulatorOf(found),
  };
  const first = countOf('from', from) ?? 0;
  return {
    ...{ device, status: found, quick, settings, group, golden, json, replay: parseCase(replay) },
    ...{ from: first, verbose },
  };
}

/** Golden vectors in float32 and, under the rule for 16-bit results, in both 16-bit dtypes. */
function goldenGroup(folder: string): Group {
  let files: string[];
  try {
    files = goldenFiles(folder);
  } catch (error) {
    throw new UsageError(`cannot read --golden ${folder}: ${messageOf(error)}`);
  }
  if (files.length === 0) throw new UsageError(`no .safetensors files in ${folder}`);
  const check = (path: string, dtype: (typeof DTYPES)[number]): Check => ({
    name: `${basename(path)}, ${dtype}`,
    async run(device) {
      const report = (await runFile(path, { device, dtype })) as Report;
      if (report.status === 'fail') throw new CheckFailure(line(report));
      if (report.status === 'unsupported') throw new Unsupported(report.reason);
    },
  });
  return { name: 'golden', checks: DTYPES.flatMap((dtype) => files.map((path) => check(path, dtype))) };
}

function groupsOf({ settings, quick, group: only, golden }: Arguments): Group[] {
  const groups = [...suite(settings), ...(golden === undefined ? [] : [goldenGroup(golden)])];
  const chosen = only === undefined ? groups : groups.filter(({ name }) => name === only);
  if (chosen.length === 0)
    throw new UsageError(`no group ${only}: the groups are ${groups.map(({ name }) => name).join(', ')}`);
  if (!quick) return chosen;
  const keep = (checks: Group['checks']) => (_: unknown, n: number) =>
    checks.length < LARGE_GROUP || n % QUICK_STEP === 0;
  return chosen.map(({ name, checks }) => ({ name, checks: checks.filter(keep(checks)) }));
}

/** Whether the device still computes: some errors take it away from the process. */
function isLost(device: DeviceName): boolean {
  try {
    using one = tensor([1], [1], { device });
    return one.dataSync()[0] !== 1;
  } catch {
    return true;
  }
}

async function runGroup({ name, checks }: Group, { device, settings, verbose }: Arguments) {
  const start = performance.now();
  const failures: Failure[] = [];
  let passed = 0;
  let unsupported = 0;
  let lostAt: number | undefined;
  for (const [at, check] of checks.entries()) {
    if (verbose) console.log(`${name}: ${check.name}`);
    const { problems, unsupported: skipped } = await runCheck(check, device, settings);
    if (problems.length > 0) {
      const replay = problems.flatMap((problem) => (problem instanceof CheckFailure ? (problem.replay ?? []) : []))[0];
      failures.push({ check: check.name, message: problems.map(messageOf).join('\n'), replay });
      if (isLost(device)) {
        lostAt = at;
        break;
      }
    } else if (skipped) unsupported++;
    else passed++;
  }
  const seconds = (performance.now() - start) / 1000;
  const report: GroupReport = { name, passed, failed: failures.length, unsupported, seconds, failures };
  return { report, lostAt };
}

/** The checks of `groups` without the first `count`. */
function without(groups: readonly Group[], count: number): Group[] {
  let left = count;
  return groups.flatMap(({ name, checks }) => {
    const rest = checks.slice(left);
    left = Math.max(0, left - checks.length);
    return rest.length > 0 ? [{ name, checks: rest }] : [];
  });
}

function print({ name, passed, failed, unsupported, seconds, failures }: GroupReport, alone: string): void {
  const rest = unsupported > 0 ? `, ${unsupported} unsupported` : '';
  console.log(
    `${failed > 0 ? 'FAIL' : 'pass'}  ${name.padEnd(12)} ${passed} passed, ${failed} failed${rest}  ${seconds.toFixed(1)} s`,
  );
  for (const { check, message, replay } of failures) {
    console.log(`  ${check}\n    ${message.replaceAll('\n', '\n    ')}`);
    if (replay) console.log(`    alone: ${alone} --case '${JSON.stringify(replay)}'`);
  }
}

/** `command` is what a user typed before `argv`. Returns the exit code. */
export async function main(argv: readonly string[], command: string): Promise<number> {
  try {
    const options = parseArguments(argv);
    const { device, settings, replay, json } = options;
    if (replay) {
      const failure = failureOf(replay, device);
      console.log(failure ? `FAIL  ${failure}` : 'pass');
      return failure ? 1 : 0;
    }
    const groups = without(groupsOf(options), options.from);
    const name = 'name' in options.status ? `: ${options.status.name}` : '';
    const kernels = 'instructionSet' in options.status ? `, ${options.status.instructionSet}` : '';
    console.log(
      `${options.status.device}${name}${kernels}; ${settings.cases} random cases a kind, ${settings.repeats} repeats`,
    );
    const reports: GroupReport[] = [];
    let next = options.from;
    let lost = false;
    for (const group of groups) {
      const { report, lostAt } = await runGroup(group, options);
      print(report, `${command} --device ${device}`);
      reports.push(report);
      lost = lostAt !== undefined;
      next += lostAt === undefined ? group.checks.length : lostAt + 1;
      if (lost) break;
    }
    const sum = (count: (report: GroupReport) => number) => reports.reduce((total, report) => total + count(report), 0);
    const [passed, failed, unsupported] = [sum((r) => r.passed), sum((r) => r.failed), sum((r) => r.unsupported)];
    console.log(
      `${passed} passed, ${failed} failed, ${unsupported} unsupported  ${sum((r) => r.seconds).toFixed(1)} s`,
    );
    const { cases, repeats } = settings;
    const summary = { device: options.status, cases, repeats, passed, failed, unsupported, groups: reports };
    if (json) writeFileSync(json, `${JSON.stringify(summary, null, 2)}\n`);
    if (lost) console.log(`lost: --from ${next}`);
    return lost ? 3 : failed > 0 ? 1 : 0;
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    console.error(`verify: ${error.message}`);
    return 2;
  }
}

const entry = process.argv[1];
if (entry && realpathSync(entry) === fileURLToPath(import.meta.url)) {
  process.exitCode = await main(process.argv.slice(2), 'node build/device/verify.js');
}
