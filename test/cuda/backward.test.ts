/** The backward kernels in several schedules, and bugs sown into copies of them: the emulator has to find each. */
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { runProgram } from '../support/child.js';
import { compileProgram, missingCompiler, type Patch, type Program } from './emulator/compile.js';

const cuda = (name: string) => fileURLToPath(new URL(`../../cuda/${name}`, import.meta.url));
const sources = ['backward.cpp', cuda('backward_rows.cu'), cuda('launch_error.cu')];

interface Instance {
  readonly element: 'Float16' | 'BFloat16' | 'Float32';
  readonly headDim: number;
}

const program = ({ element, headDim }: Instance, { flags = [], ...options }: Partial<Program> = {}) =>
  compileProgram({
    sources,
    flags: [`-DELEMENT=flashattn::${element}`, `-DHEAD_DIM=${headDim}`, ...flags],
    ...options,
  });

interface Bug extends Patch {
  readonly bug: string;
  /** Of backward.cpp, what shows it. */
  readonly problem: string;
  readonly report: RegExp;
}

const bugs: readonly Bug[] = [
  {
    bug: 'dS read before everybody has written it',
    problem: 'dense',
    file: 'sm80/backward.cuh',
    find: '      }\n      ptx::sync_threads();\n    }\n  }\n',
    replace: '      }\n    }\n  }\n',
    report: /\.cuh:\d+: race/,
  },
  {
    bug: 'a turn that is passed to the wrong block',
    problem: 'window',
    file: 'sm80/turns.cuh',
    find: 'max_of(0, first_query + head.band.low) / KeyTile',
    replace: '0',
    report: /deadlock/,
  },
  {
    bug: 'a turn that nobody waits for',
    problem: 'dense',
    file: 'sm80/backward.cuh',
    find: 'if (thread_ == 0) ptx::wait_for(turn.count, turn.before);',
    replace: '',
    report: /dense: additions in no fixed order/,
  },
  {
    bug: 'a turn that one warp alone waits for',
    problem: 'dense',
    file: 'sm80/backward.cuh',
    find: 'ptx::wait_for(turn.count, turn.before);\n      ptx::sync_threads();',
    replace: 'ptx::wait_for(turn.count, turn.before);',
    report: /dense: additions in no fixed order/,
  },
  {
    bug: 'a turn that is passed on while other warps still add',
    problem: 'dense',
    file: 'sm80/backward.cuh',
    find: 'ptx::sync_threads();\n      if (thread_ == 0) ptx::signal(',
    replace: 'if (thread_ == 0) ptx::signal(',
    report: /dense: additions in no fixed order/,
  },
  {
    bug: 'a turn of another query tile that is passed on',
    problem: 'dense',
    file: 'sm80/backward.cuh',
    find: 'ptx::signal(turn.count, turn.before + 1)',
    replace: 'ptx::signal(turn.count - (visit.begin > 0), turn.before + 1)',
    report: /deadlock/,
  },
  {
    bug: 'a ticket that two blocks may draw',
    problem: 'dense',
    file: 'sm80/backward.cuh',
    find: 'ptx::fetch_add(p_.turns, 1)',
    replace: '(ptx::store_global(p_.turns, ptx::load_global(p_.turns) + 1), ptx::load_global(p_.turns) - 1)',
    report: /backward\.cuh:\d+: global-race/,
  },
  {
    bug: 'a carried sum that is not brought back',
    problem: 'more queries than a sum takes',
    file: 'carry.cuh',
    find: 'sum += ptx::load_global(data + column) * factor;',
    replace: 'sum += 0.0f * factor;',
    report: /d_(key|value) \[0, \d+, 0, \d+\]/,
  },
  {
    bug: 'a carried sum that the next one replaces',
    problem: 'more queries than a sum takes',
    file: 'carry.cuh',
    find: 'first ? sum :',
    replace: 'first || factor == 1.0f ? sum :',
    report: /d_(key|value) \[0, \d+, 0, \d+\]/,
  },
  {
    bug: 'a hidden NaN that is not repaired',
    problem: 'a NaN that few see',
    file: 'sm80/backward.cuh',
    find: 'if (nan && hides())',
    replace: 'if (nan && !hides())',
    report: /d_key \[0, \d+, 0, 0\]: -?nan/,
  },
];

describe.skipIf(missingCompiler)(
  `backward kernels on the emulator${missingCompiler ? ` (${missingCompiler})` : ''}`,
  () => {
    test.each([
      { element: 'Float16', headDim: 64, hooks: true, schedule: '0', copies: 'late', problems: [] },
      { element: 'BFloat16', headDim: 128, hooks: false, schedule: '1', copies: 'late', problems: [] },
      { element: 'Float32', headDim: 256, hooks: false, schedule: '2', copies: 'eager', problems: [] },
      {
        element: 'Float16',
        headDim: 256,
        hooks: false,
        schedule: '4',
        copies: 'late',
        problems: ['one query', 'causal', 'other dims', 'blocks of 64', 'a NaN in a window'],
      },
    ] as const)('$element, head dim $headDim: agrees with plain loops', async (instance) => {
      const { hooks, schedule, copies, problems } = instance;
      const env = { FLASHATTN_EMULATOR_SCHEDULE: schedule, FLASHATTN_EMULATOR_COPIES: copies };
      const result = await runProgram(await program(instance, { hooks }), problems, env);
      expect(result).toMatchObject({ code: 0, stdout: '0 failed\n' });
    });

    test.each(bugs)('finds $bug', async ({ problem, file, find, replace, report }) => {
      const options = { patches: [{ file, find, replace }], flags: ['-O1'] };
      const patched = await program({ element: 'Float32', headDim: 32 }, options);
      const result = await runProgram(patched, [problem]);
      expect(result.code).not.toBe(0);
      expect(result.stdout).toMatch(report);
    });
  },
);
