/** The pool of native threads under ThreadSanitizer, and under AddressSanitizer with UBSan. Needs g++ and its sanitizers. */
import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, it } from 'vitest';
import { runProgram } from '../../../support/child.js';

const root = fileURLToPath(new URL('../../../../', import.meta.url));
const compiler = process.env.CXX ?? 'g++';
const sanitizers = { threads: ['-fsanitize=thread'], memory: ['-fsanitize=address,undefined'] } as const;

const links = Object.values(sanitizers).every(
  (flags) =>
    spawnSync(compiler, [...flags, '-x', 'c++', '-', '-o', '/dev/null'], { input: 'int main() {}' }).status === 0,
);

const folder = mkdtempSync(join(tmpdir(), 'flashattn-pool-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Compiles the pool, with `find` replaced once in one of its files where that is asked for. */
function compile(flags: readonly string[], patch?: { file: string; find: string; replace: string }): string {
  const copy = mkdtempSync(join(folder, 'build-'));
  for (const part of ['cpu', 'structs']) cpSync(join(root, 'native', part), join(copy, part), { recursive: true });
  if (patch) {
    const path = join(copy, patch.file);
    const parts = readFileSync(path, 'utf8').split(patch.find);
    expect(parts).toHaveLength(2);
    writeFileSync(path, parts.join(patch.replace));
  }
  const program = join(copy, 'program');
  const sources = [join(copy, 'cpu/host/threads/pool.cc'), join(root, 'test/backends/cpu/threads/pool.cpp')];
  const include = ['-iquote', join(copy, 'cpu'), '-iquote', copy, '-iquote', join(copy, 'cpu/host/threads')];
  const warnings = ['-Wall', '-Wextra', '-Werror'];
  execFileSync(compiler, ['-std=c++20', '-g1', '-O1', ...warnings, ...flags, ...include, ...sources, '-o', program]);
  return program;
}

const run = (program: string) => runProgram(program, [], { ASAN_OPTIONS: 'detect_leaks=0' });

describe.skipIf(!links)(
  links ? 'the pool of native threads' : `the pool of native threads (skipped: ${compiler} has no sanitizers here)`,
  () => {
    it.each(Object.entries(sanitizers))('has no fault that the sanitizer of %s sees', async (_, flags) => {
      expect(await run(compile(flags))).toEqual({ code: 0, stdout: 'ok\n', stderr: '' });
    });

    it('is seen to fail where a launch does not wait for the last item of the one before', async () => {
      const find = '__atomic_add_fetch(&slot.done, 1, __ATOMIC_SEQ_CST) == detail::read(slot.items)';
      const patch = { file: 'cpu/host/queue.h', find, replace: `${find} - 1` };
      const { code, stdout, stderr } = await run(compile(sanitizers.threads, patch));
      expect(code === 0 && stderr === '' && stdout === 'ok\n').toBe(false);
    });
  },
);
