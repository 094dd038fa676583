/** The tiles of large problems on small ones: FLASHATTN_MULTIPROCESSORS says how large a device a problem has to occupy. */
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { runNode } from '../../support/child.js';
import { hasEmulator, onEmulator } from '../../support/emulator.js';

const verify = fileURLToPath(new URL('../../../build/device/verify.js', import.meta.url));

/** The query tile of one small problem. */
const tileWith = async (multiprocessors: string) => {
  const script = `import { explain } from 'flashattn';
    const { tiles } = explain({ q: [1, 100, 1, 64], dtype: 'float16', device: 'emulator' });
    console.log(JSON.stringify(tiles));`;
  const { stdout } = await runNode(['--input-type=module', '--eval', script], {
    FLASHATTN_MULTIPROCESSORS: multiprocessors,
  });
  return JSON.parse(stdout) as { query: number; key: number };
};

describe.skipIf(!hasEmulator)(onEmulator('tiles'), () => {
  it('are chosen for as many multiprocessors as FLASHATTN_MULTIPROCESSORS names', async () => {
    expect(await tileWith('')).toEqual({ query: 64, key: 64 });
    expect(await tileWith('1')).toEqual({ query: 128, key: 128 });
    expect(await tileWith('132')).toEqual({ query: 64, key: 64 });
  });

  it.each(['1', '132'])('for %s multiprocessors pass the checks of every kernel', async (multiprocessors) => {
    const args = ['--device', 'emulator', '--quick', '--group', 'grid'];
    const { code, stdout } = await runNode([verify, ...args], { FLASHATTN_MULTIPROCESSORS: multiprocessors });
    expect(stdout).toMatch(/^pass {2}grid +114 passed, 0 failed/m);
    expect(code).toBe(0);
  });

  it.each(['properties', 'determinism', 'canaries'])('of large problems pass the %s', async (group) => {
    const args = ['--device', 'emulator', '--quick', '--group', group];
    const { code, stdout } = await runNode([verify, ...args], { FLASHATTN_MULTIPROCESSORS: '1' });
    expect(stdout).toMatch(new RegExp(`^pass {2}${group} +[1-9]\\d* passed, 0 failed`, 'm'));
    expect(code).toBe(0);
  });
});
