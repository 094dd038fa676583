/** The set-up of a clone: one at a time, and what each command asks for. */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, it } from 'vitest';
import { runNode } from '../support/child.js';

const root = new URL('../../', import.meta.url);
const folder = mkdtempSync(join(tmpdir(), 'flashattn-setup-'));
afterAll(() => rmSync(folder, { recursive: true }));

/** Under the lock adds one line when it comes and one when it goes. */
const program = (lock: string, log: string) => `
  import { appendFileSync } from 'node:fs';
  import { setTimeout as sleep } from 'node:timers/promises';
  import { withLock } from '${new URL('scripts/lock.mjs', root).href}';
  await withLock(${JSON.stringify(lock)}, async () => {
    appendFileSync(${JSON.stringify(log)}, 'in ' + process.pid + '\\n');
    await sleep(100);
    appendFileSync(${JSON.stringify(log)}, 'out ' + process.pid + '\\n');
  });`;

async function race(name: string, before: (lock: string) => void = () => {}) {
  const [lock, log] = [join(folder, name), join(folder, `${name}.log`)];
  before(lock);
  const args = ['--input-type=module', '--eval', program(lock, log)];
  const results = await Promise.all(Array.from({ length: 4 }, () => runNode(args)));
  expect(results.map(({ code, stderr }) => [code, stderr])).toEqual(Array(4).fill([0, '']));
  expect(existsSync(lock)).toBe(false);
  return readFileSync(log, 'utf8').trim().split('\n');
}

/** Each leaves before the next comes. */
function expectTurns(lines: readonly string[]) {
  expect(lines).toHaveLength(8);
  for (let i = 0; i < lines.length; i += 2) expect(lines[i + 1]).toBe(lines[i]?.replace('in', 'out'));
}

describe('the lock of the set-up', () => {
  it('lets one process in at a time', async () => {
    expectTurns(await race('free'));
  });

  it('is taken over from a process that died', async () => {
    const { stdout } = await runNode(['--print', 'process.pid']);
    expectTurns(await race('left', (lock) => writeFileSync(lock, stdout.trim())));
  });
});

describe('scripts/setup.mjs', () => {
  it.each([[[]], [['begin']], [['start', '--fast']]])('refuses %j', async (args) => {
    const { code, stderr } = await runNode([fileURLToPath(new URL('scripts/setup.mjs', root)), ...args]);
    expect(stderr).toBe('usage: node scripts/setup.mjs start|bench|package|test|all [--force]\n');
    expect(code).toBe(64);
  });
});
