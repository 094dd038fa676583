/** The kernels of native/cpu as native code: no access out of bounds, no undefined behaviour, right results. */
import { describe, expect, it } from 'vitest';

import { runProgram } from '../support/child.js';

import { compileCases, missingSanitizers, type Patch } from './compile.js';

// Leaks would be the test program's own, and finding them needs rights that containers lack.
const env = {
  ASAN_OPTIONS: 'detect_leaks=0',
};

/** One for each way to be noticed, each in what a different kind of cases runs. */
const bugs: readonly Patch[] = [
  { file: 'ops/gather.h', find: 'p.dtype, length);\n      for', replace: 'p.dtype, length + 1);\n      for' },
  { file: 'attention/block_mask.h', find: '(count == 32 ? ~0u : (1u << count) - 1)', replace: '((1u << count) - 1)' },
  { file: 'ops/matmul.h', find: 'min(kWidth, factor.count - begin)', replace: 'kWidth' },
  {
    file: 'ops/elementwise.h',
    find: 'operand.strides[kInner] == 1 && n % kLanes == 0',
    replace: 'operand.strides[kInner] == 1',
  },
  { file: 'ops/reduce.h', find: 'lane < n - i; ++lane) tail', replace: 'lane < n - i - 1; ++lane) tail' },
  {
    file: 'attention/selected.h',
    find: 'positions.begin + tile.at[n] + 1, keys.begin)',
    replace: 'positions.begin + tile.at[n] + 2, keys.begin)',
  },
  {
    file: 'attention/merge.h',
    find: 'weight * (sum_lanes(dot) + d_lse)',
    replace: 'weight * (sum_lanes(dot) - d_lse)',
  },
];

describe.skipIf(missingSanitizers)(
  `native/cpu under sanitizers${missingSanitizers ? ` (skipped: ${missingSanitizers})` : ''}`,
  () => {
    it('passes every case', async () => {
      const { code, stdout, stderr } = await runProgram(await compileCases(), [], env);
      expect(stderr).toBe('');
      expect(stdout.trim().split('\n')).toEqual([
        'attention: 240 of 240 cases passed',
        'selected: 120 of 120 cases passed',
        'merge: 60 of 60 cases passed',
        'gather: 60 of 60 cases passed',
        'matmul: 80 of 80 cases passed',
        'quantise: 80 of 80 cases passed',
        'code_matmul: 80 of 80 cases passed',
        'rows_by_index: 60 of 60 cases passed',
        'cross_entropy: 80 of 80 cases passed',
        'lines: 60 of 60 cases passed',
        'copy: 40 of 40 cases passed',
        'softmax: 80 of 80 cases passed',
        'norm: 80 of 80 cases passed',
        'svd: 60 of 60 cases passed',
        'activation: 80 of 80 cases passed',
        'elementwise: 60 of 60 cases passed',
        'reduce: 60 of 60 cases passed',
        'recurrence: 60 of 60 cases passed',
        'linear_scan: 60 of 60 cases passed',
        'selective_scan: 60 of 60 cases passed',
        'diagonal_scan: 60 of 60 cases passed',
        'wkv: 60 of 60 cases passed',
        'head_mixing: 60 of 60 cases passed',
      ]);
      expect(code).toBe(0);
    });

    it.each([
      ['a row that is read past its end', 'gather', /AddressSanitizer: heap-buffer-overflow/],
      ['a panel that is filled past its factor', 'matmul', /AddressSanitizer: heap-buffer-overflow/],
      ['a shift by all bits', 'attention', /runtime error: shift exponent 32 is too large/],
      ['a vector that is read past its row', 'elementwise', /AddressSanitizer: heap-buffer-overflow/],
      ['an element that is left out', 'reduce', /^reduce \d+: a sum is \S+, not \S+$/m],
      ['a key that is seen too early', 'selected', /^selected \d+: lse is \S+, not \S+$/m],
      ['a wrong gradient', 'merge', /^merge \d+: d_lse is \S+, not \S+$/m],
    ])('notices %s', async (_, kind, report) => {
      const { code, stdout, stderr } = await runProgram(await compileCases(bugs), [kind], env);
      expect(code).not.toBe(0);
      expect(stdout + stderr).toMatch(report);
    });
  },
);
