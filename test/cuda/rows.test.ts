import { describe, test } from 'vitest';
import { compileProgram, type Program } from './emulator/compile.js';
import { type Bug, cuda, describeOnEmulator, expectAgreement, expectFound } from './emulator/sown.js';

const programs = {
  rows: ['rows.cpp', cuda('backward_rows.cu'), cuda('backward_sink.cu'), cuda('launch_error.cu')],
  merge: ['merge.cpp', cuda('merge.cu'), cuda('launch_error.cu')],
  walk: ['row_walk.cpp', cuda('softmax_rows.cu'), cuda('norm.cu'), cuda('launch_error.cu')],
  flat: ['flat.cpp', cuda('gather.cu'), cuda('copy.cu'), cuda('peak.cu'), cuda('launch_error.cu')],
  lines: ['lines.cpp', cuda('sort.cu'), cuda('along_axis.cu'), cuda('launch_error.cu')],
  indices: ['indices.cpp', cuda('rows_by_index.cu'), cuda('cross_entropy.cu'), cuda('launch_error.cu')],
} satisfies Record<string, string[]>;

type Name = keyof typeof programs;
const names = Object.keys(programs) as Name[];

const program = (name: Name, options: Partial<Program> = {}) =>
  compileProgram({ sources: programs[name], hooks: true, ...options });

describeOnEmulator('small kernels', () => {
  describe.each(names)('%s', (name) => {
    test.each(['0', '1', '2'])('agrees with plain loops in schedule %s', async (schedule) => {
      await expectAgreement(program(name), { schedule });
    });
  });

  const bugs: (Bug & { name: Name })[] = [
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
      file: 'block_sum.cuh',
      find: 'ptx::sync_threads();',
      replace: '',
      report: /race/,
    },
    {
      bug: 'rows written to their end and beyond',
      name: 'merge',
      file: 'vector.cuh',
      find: 'if (i < count) ptx::store_global(to',
      replace: 'ptx::store_global(to',
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
      bug: 'a row that is taken whatever its id',
      name: 'indices',
      file: 'rows_by_index.cu',
      find: 'if (static_cast<uint32_t>(id) < static_cast<uint32_t>(p.rows))',
      replace: '',
      report: /out-of-bounds/,
    },
    {
      bug: 'an exchange that nobody waits for',
      name: 'indices',
      file: 'row_group.cuh',
      find: 'ptx::sync_threads();\n      x =',
      replace: 'x =',
      report: /race|uninitialised/,
    },
    {
      bug: 'pairs that nobody waits for',
      name: 'lines',
      file: 'sort.cu',
      find: '    store(b, x);\n  }\n  ptx::sync_threads();',
      replace: '    store(b, x);\n  }',
      report: /race/,
    },
    {
      bug: 'threads that exchange sums without a barrier',
      name: 'walk',
      file: 'row_walk.cuh',
      find: 'ptx::sync_threads();',
      replace: '',
      report: /race/,
    },
    {
      bug: 'elements beyond a row that count as zeros',
      name: 'walk',
      file: 'softmax_rows.cu',
      find: 'p.x_strides[3], walk, base, true, -INFINITY)',
      replace: 'p.x_strides[3], walk, base, true, 0.0f)',
      report: /softmax of float32/,
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

  test.each(bugs)('finds $bug', async ({ name, ...bug }) => {
    await expectFound((options) => program(name, options), bug);
  });
});
