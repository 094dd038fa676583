import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, it } from 'vitest';
import { runNode } from '../support/child.js';
import { target as blockMask } from './targets/blockMask.js';
import { target as safetensors } from './targets/safetensors.js';

const targets = { blockMask, safetensors };
const program = fileURLToPath(new URL('../../build/fuzz/run.js', import.meta.url));
const corpus = fileURLToPath(new URL('./corpus', import.meta.url));
const fuzz = (...args: string[]) => runNode([program, ...args]);

describe.each(Object.entries(targets))('%s', (name, target) => {
  it.each(readdirSync(join(corpus, name)))('is right about %s', (file) => {
    target.run(new Uint8Array(readFileSync(join(corpus, name, file))));
  });
});

describe('the fuzzer', () => {
  const folder = mkdtempSync(join(tmpdir(), 'flashattn-fuzz-'));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  it('finds a bug behind four bytes, one after the other, and says how to see it again', async () => {
    const found = await fuzz('--target', 'planted', '--executions', '300000', '--seed', '5');
    expect(found.stdout).toMatch(/^planted: failed on \d+ bytes: TypeError: planted$/m);
    expect(found.code).toBe(1);
    const [, args] = /^again: npm run fuzz -- (.*)$/m.exec(found.stdout) ?? [];
    const again = await fuzz(...(args ?? '').split(' '));
    expect(again.stdout).toContain('TypeError: planted');
    expect(again.code).toBe(1);
  });

  it.each([
    ['hang', 'it ran for more than 2 s', '--hang-seconds', '2'],
    ['allocate', '8 bytes of input made it allocate'],
    ['exhaust', 'ERR_WORKER_OUT_OF_MEMORY'],
  ])('notices inputs that make a decoder %s', async (word, message, ...limit) => {
    const file = join(folder, word);
    writeFileSync(file, word);
    const { code, stdout } = await fuzz('--target', 'planted', '--replay', file, ...limit);
    expect(stdout).toContain(message);
    expect(code).toBe(1);
  });
});
