/** Programs that hold kernels against plain loops, in several schedules and with bugs sown into copies of the sources. */
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { runProgram } from '../../support/child.js';
import { compileProgram, missingCompiler, type Patch, type Program } from './compile.js';

/** A source of cuda/. */
export const cuda = (name: string) => fileURLToPath(new URL(`../../../cuda/${name}`, import.meta.url));

export type Element = 'Float16' | 'BFloat16' | 'Float32';

export interface Bug extends Patch {
  readonly bug: string;
  /** What a run has to say of it. */
  readonly report: RegExp;
}

/** In which order threads run, and when copies land. */
export interface Schedule {
  readonly schedule: string;
  /** Default late. */
  readonly copies?: 'late' | 'eager';
}

/** A suite that says why it is skipped. */
export const describeOnEmulator = (name: string, f: () => void): void => {
  describe.skipIf(missingCompiler)(`${name} on the emulator${missingCompiler ? ` (${missingCompiler})` : ''}`, f);
};

/** @param problems of the program's, default all */
export async function expectAgreement(
  program: Promise<string>,
  { schedule, copies }: Schedule,
  problems: readonly string[] = [],
): Promise<void> {
  const env = {
    FLASHATTN_EMULATOR_SCHEDULE: schedule,
    ...(copies !== undefined && { FLASHATTN_EMULATOR_COPIES: copies }),
  };
  expect(await runProgram(await program, problems, env)).toMatchObject({ code: 0, stdout: '0 failed\n' });
}

/** @param compile the program with a bug in it */
export async function expectFound(
  compile: (options: Partial<Program>) => Promise<string>,
  { file, find, replace, report }: Bug,
  problems: readonly string[] = [],
): Promise<void> {
  const program = await compile({ patches: [{ file, find, replace }], flags: ['-O1'] });
  const result = await runProgram(program, problems);
  expect(result.code).not.toBe(0);
  expect(result.stdout).toMatch(report);
}

/** The suite of a program that is compiled for one element type at a time. */
export function describeByElement(
  name: string,
  source: string,
  schedules: readonly (readonly [element: Element, schedule: string, copies: 'late' | 'eager'])[],
  /** Float16 unless it says otherwise. */
  bugs: readonly (Bug & { readonly element?: Element })[],
): void {
  const program = (element: Element, { flags = [], ...options }: Partial<Program> = {}) =>
    compileProgram({
      sources: [source, cuda('launch_error.cu')],
      hooks: true,
      flags: [`-DELEMENT=flashattn::${element}`, ...flags],
      ...options,
    });
  describeOnEmulator(name, () => {
    test.each(schedules)('%s agrees with plain loops in schedule %s, %s copies', async (element, schedule, copies) => {
      await expectAgreement(program(element), { schedule, copies });
    });

    test.each(bugs)('finds $bug', async ({ element = 'Float16', ...bug }) => {
      await expectFound((options) => program(element, options), bug);
    });
  });
}
