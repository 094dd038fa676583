import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, it } from 'vitest';
import { runProgram } from '../support/child.js';
import { compileProgram, missingCompiler } from './emulator/compile.js';

const source = fileURLToPath(new URL('./conformance/wrappers.cu', import.meta.url));
const wrappers = fileURLToPath(new URL('../../cuda/ptx.cuh', import.meta.url));

const compile = () => compileProgram({ sources: [source] });

/** What ptx.cuh has for kernels. */
const wrapperNames = () =>
  [...readFileSync(wrappers, 'utf8').matchAll(/^(?:FLASHATTN_DEVICE \w+|cudaError_t) (\w+)\(/gm)].map(
    ([, name]) => name,
  );

describe.skipIf(missingCompiler)(
  `the wrappers of ptx.cuh on the emulator${missingCompiler ? ` (skipped: ${missingCompiler})` : ''}`,
  () => {
    const folder = mkdtempSync(join(tmpdir(), 'flashattn-conformance-'));
    const file = join(folder, 'emulator.bin');
    afterAll(() => rmSync(folder, { recursive: true, force: true }));

    it('are all tried and do what plain C++ says', async () => {
      const { code, stdout } = await runProgram(await compile(), ['--write', file]);
      expect(stdout).not.toContain('FAIL');
      expect(code).toBe(0);
      const tried = new Set([...stdout.matchAll(/^pass {2}(\w+)/gm)].map(([, name]) => name));
      expect([...tried].sort()).toEqual([...new Set(wrapperNames())].sort());
    });

    it.each([
      ['1', 'rounded'],
      ['7', 'cut'],
    ])('do the same in schedule %s, with sums that are %s', async (schedule, sums) => {
      const env = {
        FLASHATTN_EMULATOR_SCHEDULE: schedule,
        FLASHATTN_EMULATOR_COPIES: 'eager',
        FLASHATTN_EMULATOR_SUMS: sums,
      };
      const { code, stdout } = await runProgram(await compile(), ['--compare', file], env);
      expect(stdout).toMatch(/, 0 failed\n$/);
      expect(code).toBe(0);
    });

    it('are found out when they do something else', async () => {
      const results = readFileSync(file);
      const section = results.indexOf(' multiply_high\n');
      results[section + 100] ^= 1;
      const changed = join(folder, 'changed.bin');
      writeFileSync(changed, results);
      const { code, stdout } = await runProgram(await compile(), ['--compare', changed]);
      expect(stdout.match(/^FAIL.*/gm)).toEqual([
        expect.stringMatching(/^FAIL {2}multiply_high: unlike the file: 1 of \d+ words differ, the first at 21: /),
      ]);
      expect(code).toBe(1);
    });

    it('reports bad arguments', async () => {
      expect(await runProgram(await compile(), ['--compare'])).toMatchObject({ code: 2 });
      const { code, stderr } = await runProgram(await compile(), ['--compare', join(folder, 'nothing')]);
      expect(stderr).toContain('cannot read');
      expect(code).toBe(1);
    });
  },
);
