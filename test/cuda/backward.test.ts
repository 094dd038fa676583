/** The backward kernels in several schedules, and bugs sown into copies of them: the emulator has to find each. */
import { test } from 'vitest';
import { compileProgram, type Program } from './emulator/compile.js';
import { type Bug, cuda, describeOnEmulator, type Element, expectAgreement, expectFound } from './emulator/sown.js';

const sources = ['backward.cpp', cuda('backward_rows.cu'), cuda('launch_error.cu')];

interface Instance {
  readonly element: Element;
  readonly headDim: number;
}

const program = ({ element, headDim }: Instance, { flags = [], ...options }: Partial<Program> = {}) =>
  compileProgram({
    sources,
    flags: [`-DELEMENT=flashattn::${element}`, `-DHEAD_DIM=${headDim}`, ...flags],
    ...options,
  });

/** `problem`: of backward.cpp, what shows a bug. */
const bugs: readonly (Bug & { readonly problem: string })[] = [
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

describeOnEmulator('backward kernels', () => {
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
  ] as const)('$element, head dim $headDim: agrees with plain loops', async ({ hooks, problems, ...instance }) => {
    await expectAgreement(program(instance, { hooks }), instance, problems);
  });

  test.each(bugs)('finds $bug', async ({ problem, ...bug }) => {
    await expectFound((options) => program({ element: 'Float32', headDim: 32 }, options), bug, [problem]);
  });
});
