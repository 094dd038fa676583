/** The kernels of native/cpu for wide vectors, under the sanitizers of the compiler. */
import { describe, expect, it } from 'vitest';
import { runProgram } from '../support/child.js';
import { instructionSets, onCpu } from '../support/cpu.js';
import { compileCases, missingSanitizers } from './compile.js';

const avx512 = ['-mavx512f', '-mavx512bw', '-mavx512dq', '-mavx512vl', '-mfma', '-mf16c'];
// GCC takes what its own header leaves undefined for a mistake of ours.
const quiet = '-Wno-maybe-uninitialized';

/** As CMakeLists.txt has them. */
const flags: Readonly<Record<string, readonly string[]>> = {
  avx2: ['-mavx2', '-mfma', '-mf16c'],
  avx512: [...avx512, quiet],
  avx512bf16: [...avx512, '-mavx512bf16', quiet],
  amx: [...avx512, '-mavx512bf16', '-mamx-tile', '-mamx-bf16', quiet],
  neon: [],
  neonbf16: ['-march=armv8.2-a+bf16'],
  'avx512 and emulated tiles': [...avx512, '-DFLASHATTN_EMULATED_TILES', quiet],
};

const kinds = [...instructionSets, ...(instructionSets.includes('avx512') ? ['avx512 and emulated tiles'] : [])];
const skipped = missingSanitizers !== undefined || kinds.length === 0;

describe.skipIf(skipped)(onCpu('native/cpu under sanitizers'), () => {
  it.each(kinds)('passes every case with %s', async (kind) => {
    const program = await compileCases([], flags[kind]);
    const { code, stdout, stderr } = await runProgram(program, [], { ASAN_OPTIONS: 'detect_leaks=0' });
    expect(stderr).toBe('');
    expect(stdout).toContain('attention: 240 of 240 cases passed');
    expect(code).toBe(0);
  });
});
