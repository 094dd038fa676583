/** The CUDA emulator: every kind of report from a kernel that deserves it, silence for those that do not. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { beforeAll, describe, expect, it } from 'vitest';
import { runProgram } from '../support/child.js';
import { compileProgram, missingCompiler, type Program } from './emulator/compile.js';

const checks = fileURLToPath(new URL('./emulator/checks', import.meta.url));

interface Run {
  readonly name: string;
  /** Schedule and kind of copies. */
  readonly setting: string;
  readonly reports: string[];
}

/** What a program of cases printed, a run for each case and setting. */
function parseRuns(stdout: string): Run[] {
  const runs = new Map<string, Run>();
  for (const line of stdout.trim().split('\n')) {
    const [, name, setting, report] = /^(\w+) (\d+ \w+): (.*)$/.exec(line) ?? [];
    if (!name || !setting || !report) throw new Error(`not a line of a case: ${line}`);
    const run = runs.get(`${name} ${setting}`) ?? { name, setting, reports: [] };
    if (report !== 'none') run.reports.push(report);
    runs.set(`${name} ${setting}`, run);
  }
  return [...runs.values()];
}

/** The reports that the comments of a source allow, by case: "checks/shared.cpp:12: race". */
function allowedReports(file: string): Map<string, Set<string>> {
  const allowed = new Map<string, Set<string>>();
  const lines = readFileSync(join(checks, file), 'utf8').split('\n');
  for (const [index, line] of lines.entries()) {
    const [, kinds, name] = /\/\/ reported: (.+) in (\w+)$/.exec(line) ?? [];
    if (!kinds || !name) continue;
    const places = kinds.split(', ').map((kind) => `checks/${file}:${index + 1}: ${kind}`);
    allowed.set(name, new Set([...(allowed.get(name) ?? []), ...places]));
  }
  return allowed;
}

/** "file:line: kind" of a report. */
function placeAndKind(report: string): string {
  return report.split(': ', 2).join(': ');
}

async function runCases(file: string, options: Partial<Program> = {}): Promise<Run[]> {
  const { code, stdout, stderr } = await runProgram(await compileProgram({ sources: [`checks/${file}`], ...options }));
  expect(code, stderr).toBe(0);
  return parseRuns(stdout);
}

async function expectSuccess(file: string, env: Record<string, string> = {}): Promise<string> {
  const { code, stdout, stderr } = await runProgram(await compileProgram({ sources: [`checks/${file}`] }), [], env);
  expect(code, stdout + stderr).toBe(0);
  return stdout;
}

describe.skipIf(missingCompiler)(`emulator${missingCompiler ? ` (skipped: ${missingCompiler})` : ''}`, () => {
  describe.each([
    ['shared.cpp', {}],
    ['global.cpp', {}],
    ['collectives.cpp', {}],
    ['plain.cpp', { hooks: true }],
  ])('%s', (file, options) => {
    let runs: Run[];
    beforeAll(async () => {
      runs = await runCases(file, options);
    });

    it('runs every case under six schedules, with late and eager copies', () => {
      const names = new Set(runs.map((run) => run.name));
      expect(runs).toHaveLength(names.size * 12);
      for (const name of allowedReports(file).keys()) expect(names).toContain(name);
    });

    it('reports what the marked lines do, and nothing else', () => {
      const allowed = allowedReports(file);
      const wrong: string[] = [];
      for (const { name, setting, reports } of runs) {
        const expected = allowed.get(name);
        if (expected && reports.length === 0) wrong.push(`${name} (${setting}): no report`);
        for (const report of reports)
          if (!expected?.has(placeAndKind(report))) wrong.push(`${name} (${setting}): ${report}`);
      }
      expect(wrong).toEqual([]);
    });

    it('reports every marked line in some schedule', () => {
      for (const [name, expected] of allowedReports(file)) {
        const found = runs.filter((run) => run.name === name).flatMap((run) => run.reports.map(placeAndKind));
        expect(new Set(found), name).toEqual(expected);
      }
    });
  });

  describe('messages', () => {
    const reportsOf = (runs: Run[], name: string) => runs.find((run) => run.name === name)?.reports ?? [];

    it('a race names both lines and both threads', async () => {
      const [report] = reportsOf(await runCases('shared.cpp'), 'two_writers');
      expect(report).toMatch(
        /^checks\/shared\.cpp:(\d+): race: store_shared is not ordered after the write by thread 0 at checks\/shared\.cpp:\1 \[two_writers, block \(0, 0, 0\), thread 1\]$/,
      );
    });

    it('a deadlock says who waits where, for what, and who has finished', async () => {
      const runs = await runCases('collectives.cpp');
      expect(reportsOf(runs, 'missing_at_barrier')[0]).toMatch(
        /deadlock: threads 0-39 wait in sync_threads at \S+:\d+, which needs all 64 threads; threads 40-63 finished/,
      );
      expect(reportsOf(runs, 'missing_lane')[0]).toMatch(
        /threads 0-4, 6-31 wait in ballot at \S+, which needs all 32 lanes of the warp; threads 5, 32-63 wait in sync_threads/,
      );
      expect(reportsOf(runs, 'never_signalled')[0]).toContain('for byte 4 of "flag" of 8 bytes to be 3, which is 2');
    });

    it('an address is told by its allocation', async () => {
      const runs = await runCases('global.cpp');
      expect(reportsOf(runs, 'beyond').join('\n')).toContain('0 bytes past the end of "data" of 512 bytes');
      expect(reportsOf(runs, 'after_free')[0]).toContain('byte 0 of freed "data" of 64 bytes');
      expect(reportsOf(runs, 'of_the_host')[0]).toContain('in host memory');
    });
  });

  it('computes fragments and numbers as tensor cores do', () => expectSuccess('fragments.cpp'));

  it('runs threads, copies and schedules as documented', () => expectSuccess('behaviour.cpp'));

  it('counts bank conflicts, by line', async () => {
    const stdout = await expectSuccess('banks.cpp');
    const lines = readFileSync(join(checks, 'banks.cpp'), 'utf8').split('\n');
    const line = 1 + lines.findIndex((text) => text.includes('// the line of `matrices`'));
    expect(stdout).toContain(`checks/banks.cpp:${line}\n`);
  });

  it('has the CUDA runtime API', () =>
    expectSuccess('runtime.cpp', { FLASHATTN_EMULATOR_ARCH: '8.6', FLASHATTN_EMULATOR_MEMORY: String(1 << 20) }));

  it.each([
    ['none', 'cudaSuccess 1 13000'],
    ['no-driver', 'cudaErrorInsufficientDriver -1 0'],
    ['old-driver', 'cudaErrorInsufficientDriver -1 12040'],
    ['no-device', 'cudaErrorNoDevice -1 13000'],
  ])('pretends to have %s as its fault', async (fault, expected) => {
    const program = await compileProgram({ sources: ['checks/runtime.cpp'] });
    const { stdout } = await runProgram(program, ['device'], { FLASHATTN_EMULATOR_FAULT: fault });
    expect(stdout.trim()).toBe(expected);
  });

  it('takes its configuration from the environment', async () => {
    const program = await compileProgram({ sources: ['checks/configuration.cpp'] });
    const env = {
      FLASHATTN_EMULATOR_SCHEDULE: '7',
      FLASHATTN_EMULATOR_COPIES: 'eager',
      FLASHATTN_EMULATOR_SUMS: 'cut',
      FLASHATTN_EMULATOR_RACES: '0',
    };
    expect((await runProgram(program)).stdout.trim()).toBe('schedule 0, late copies, rounded sums, races 1');
    expect((await runProgram(program, [], env)).stdout.trim()).toBe('schedule 7, eager copies, cut sums, races 0');
    const wrong = await runProgram(program, [], { FLASHATTN_EMULATOR_COPIES: 'soon' });
    expect(wrong.stderr).toContain('FLASHATTN_EMULATOR_COPIES is "soon", not eager or late');
  });

  it('finds a bug that is patched into a header', async () => {
    const patch = { file: 'number.h', find: '0xfff + (magnitude', replace: '0x1000 + (magnitude' };
    const program = await compileProgram({
      sources: ['checks/fragments.cpp'],
      patches: [{ ...patch, file: 'emulator/number.h' }],
    });
    expect((await runProgram(program)).code).toBe(1);
    await expect(compileProgram({ sources: [], patches: [{ ...patch, file: 'ptx.cuh' }] })).rejects.toThrow(
      'occurs 0 times in ptx.cuh',
    );
  });
});
