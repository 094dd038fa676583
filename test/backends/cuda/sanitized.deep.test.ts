/** The addon and the emulator under AddressSanitizer and UBSan, through all that the addon's own tests do with them. */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { isAbsolute } from 'node:path';
import { fileURLToPath } from 'node:url';
import { beforeAll, describe, expect, it } from 'vitest';
import { missingSanitizers } from '../../native/compile.js';
import { runNode, runProgram } from '../../support/child.js';
import { hasEmulator } from '../../support/emulator.js';

const root = fileURLToPath(new URL('../../..', import.meta.url));
const build = `${root}build/emulator`;
const addon = `${build}/sanitized/flashattn_sanitized.node`;

/** A library of the compiler by its path. */
function libraryOf(name: string): string | undefined {
  const { stdout } = spawnSync(process.env.CXX ?? 'g++', [`-print-file-name=${name}`], { encoding: 'utf8' });
  const path = stdout?.trim() ?? ''; // null without a compiler
  return isAbsolute(path) ? path : undefined;
}

// Node comes without them, and they have to be there before anything else is; the sanitizer looks for C++ exceptions.
const preloaded = [libraryOf('libasan.so'), libraryOf('libstdc++.so.6')];

const missing =
  missingSanitizers ??
  (hasEmulator ? undefined : 'no emulator') ??
  (existsSync(`${build}/CMakeCache.txt`) ? undefined : 'the emulator was not built here') ??
  (preloaded.includes(undefined) ? 'no libasan.so that node can be run with' : undefined);

const sanitized = {
  FLASHATTN_EMULATOR_ADDON: addon,
  LD_PRELOAD: preloaded.join(' '),
  // Leaks would be node's own, and finding them needs rights that containers lack.
  ASAN_OPTIONS: 'detect_leaks=0',
};

describe.skipIf(missing)(`the addon under sanitizers${missing ? ` (skipped: ${missing})` : ''}`, () => {
  beforeAll(async () => {
    const target = ['--target', 'flashattn_sanitized', '--parallel', '2'];
    expect(await runProgram('cmake', ['--build', build, '--config', 'Release', ...target])).toMatchObject({ code: 0 });
  });

  it('is what runs', async () => {
    const { code, stderr } = await runNode(['--eval', `require(${JSON.stringify(addon)})`], { LD_PRELOAD: '' });
    expect(stderr).toMatch(/ASan runtime does not come first/);
    expect(code).not.toBe(0);
  });

  it.each(['addon', 'cublaslt'])('passes the tests of %s', async (name) => {
    const file = `test/backends/cuda/${name}.test.ts`;
    const args = [`${root}node_modules/vitest/vitest.mjs`, 'run', '--root', root, file];
    const { code, stdout, stderr } = await runNode(args, sanitized);
    expect(stderr).toBe('');
    expect(stdout).toMatch(/^[1-9]\d* passed, 0 failed, 0 skipped$/m);
    expect(code).toBe(0);
  });

  it('survives mixed operations, their tensors disposed or collected', async () => {
    const soak = [`${root}build/soak/soak.js`, '--device', 'emulator', '--operations', '200'];
    const { code, stdout, stderr } = await runNode(soak, sanitized);
    expect(stderr).toBe('');
    expect(stdout).toContain('no memory has leaked on emulator in 200 operations');
    expect(code).toBe(0);
  });
});
