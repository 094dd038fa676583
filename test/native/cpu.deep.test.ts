/** The kernels of native/cpu for wide vectors, under the sanitizers of the compiler. */
import { describe, expect, it } from 'vitest';
import { runProgram } from '../support/child.js';
import { instructionSets, onCpu } from '../support/cpu.js';
import { compileCases, missingSanitizers } from './compile.js';

/** As CMakeLists.txt has them. */
const flags: Readonly<Record<string, readonly string[]>> = {
  avx2: ['-mavx2', '-mfma', '-mf16c'],
  // GCC takes what its own header leaves undefined for a mistake of ours.
  avx512: ['-mavx512f', '-mavx512bw', '-mavx512dq', '-mavx512vl', '-mfma', '-mf16c', '-Wno-maybe-uninitialized'],
  avx512bf16: [
    ...['-mavx512f', '-mavx512bw', '-mavx512dq', '-mavx512vl', '-mavx512bf16', '-mfma', '-mf16c'],
    '-Wno-maybe-uninitialized',
  ],
  neon: [],
};

const skipped = missingSanitizers !== undefined || instructionSets.length === 0;

describe.skipIf(skipped)(onCpu('native/cpu under sanitizers'), () => {
  it.each(instructionSets)('passes every case with %s', async (instructionSet) => {
    const program = await compileCases([], flags[instructionSet]);
    const { code, stdout, stderr } = await runProgram(program, [], { ASAN_OPTIONS: 'detect_leaks=0' });
    expect(stderr).toBe('');
    expect(stdout).toContain('attention: 240 of 240 cases passed');
    expect(code).toBe(0);
  });
});
