import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { runProgram } from '../support/child.js';
import { compileProgram, missingCompiler, type Patch, type Program } from './emulator/compile.js';

const cuda = (name: string) => fileURLToPath(new URL(`../../cuda/${name}`, import.meta.url));

const programs = {
  rows: ['rows.cpp', cuda('backward_rows.cu'), cuda('backward_sink.cu'), cuda('launch_error.cu')],
  merge: ['merge.cpp', cuda('merge.cu'), cuda('launch_error.cu')],
  flat: ['flat.cpp', cuda('gather.cu'), cuda('copy.cu'), cuda('peak.cu'), cuda('launch_error.cu')],
} satisfies Record<string, string[]>;

type Name = keyof typeof programs;
const names = Object.keys(programs) as Name[];

const program = (name: Name, options: Partial<Program> = {}) =>
  compileProgram({ sources: programs[name], hooks: true, ...options });

describe.skipIf(missingCompiler)('small kernels on the emulator', () => {
  describe.each(names)('%s', (name) => {
    test.each(['0', '1', '2'])('agrees with plain loops in schedule %s', async (schedule) => {
      const result = await runProgram(await program(name), [], { FLASHATTN_EMULATOR_SCHEDULE: schedule });
      expect(result).toMatchObject({ code: 0, stdout: '0 failed\n' });
    });
  });

  const bugs: (Patch & { name: Name; bug: string; report: RegExp })[] = [
    {
      bug: 'rows read as if they were aligned',
      name: 'rows',
      file: 'rows.cuh',
      find: '(tensor.batch | tensor.seq | tensor.head) *',
      replace: '0 *',
      report: /global-misaligned/,
    },
    {
      bug: 'a sum without its barriers',
      name: 'rows',
      file: 'backward_sink.cu',
      find: 'ptx::sync_threads();',
      replace: '',
      report: /race/,
    },
    {
      bug: 'rows written to their end and beyond',
      name: 'merge',
      file: 'vector.cuh',
      find: 'if (i < count) ptx::store_global',
      replace: 'ptx::store_global',
      report: /out-of-bounds|written beyond/,
    },
    {
      bug: 'a part of no weight that counts',
      name: 'merge',
      file: 'merge.cu',
      find: 'if (weight == 0) continue;',
      replace: '',
      report: /out \[0, 1, 0, 0\]: -?nan/,
    },
    {
      bug: 'a plain load of device memory',
      name: 'flat',
      file: 'gather.cu',
      find: 'ptx::load_global(p.lists.indices + at)',
      replace: 'p.lists.indices[at]',
      report: /plain/,
    },
  ];

  test.each(bugs)('finds $bug', async ({ name, file, find, replace, report }) => {
    const result = await runProgram(await program(name, { patches: [{ file, find, replace }], flags: ['-O1'] }));
    expect(result.code).not.toBe(0);
    expect(result.stdout).toMatch(report);
  });
});
