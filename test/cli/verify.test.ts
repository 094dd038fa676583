/** The program that proves a device. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
import { main } from '../../verify/device/verify.js';

const VECTORS = join(import.meta.dirname, '../../verify/golden/vectors');

describe('verify', () => {
  let folder: string;
  const printed: string[] = [];
  const run = async (...argv: string[]): Promise<number> => main(['--device', 'wasm', ...argv], 'verify');

  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'verify-'));
    vi.spyOn(console, 'log').mockImplementation((text: string) => void printed.push(text));
    vi.spyOn(console, 'error').mockImplementation((text: string) => void printed.push(text));
  });
  afterEach(() => printed.splice(0));
  afterAll(() => {
    vi.restoreAllMocks();
    rmSync(folder, { recursive: true });
  });

  it.each(['nothing', 'masks', 'operations', 'products', 'determinism', 'properties'])(
    '%s pass on wasm',
    async (group) => {
      expect(await run('--quick', '--cases', '1', '--group', group)).toBe(0);
      expect(printed[1]).toMatch(new RegExp(`^pass  ${group} +\\d+ passed, 0 failed  `));
      expect(printed.at(-1)).toMatch(/^[1-9]\d* passed, 0 failed, 0 unsupported/);
    },
  );

  it('writes JSON, golden vectors included', async () => {
    const json = join(folder, 'report.json');
    expect(await run('--quick', '--group', 'golden', '--golden', VECTORS, '--json', json)).toBe(0);
    const report = JSON.parse(readFileSync(json, 'utf8')) as object;
    expect(report).toMatchObject({ device: { device: 'wasm' }, failed: 0, groups: [{ name: 'golden', failures: [] }] });
  });

  it('goes on from a check, and names each before it runs', async () => {
    expect(await run('--group', 'nothing', '--verbose')).toBe(0);
    const names = printed.filter((line) => line.startsWith('nothing: '));
    const all = names.length;
    expect(all).toBeGreaterThan(3);
    printed.splice(0);
    expect(await run('--group', 'nothing', '--verbose', '--from', '2')).toBe(0);
    expect(printed.filter((line) => line.startsWith('nothing: '))).toEqual(names.slice(2));
    expect(printed.at(-1)).toMatch(new RegExp(`^${all - 2} passed, 0 failed`));
    expect(await run('--group', 'nothing', '--from', '-1')).toBe(2);
  });

  it('runs one case alone', async () => {
    const c = { seed: 1, layout: 'bshd', queryLength: 3, keyLength: 4, headDim: 5, dtype: 'float16' };
    expect(await run('--case', JSON.stringify(c))).toBe(0);
    expect(printed).toEqual(['pass']);
    // What the library refuses is a failure.
    expect(await run('--case', JSON.stringify({ ...c, headDim: 257 }))).toBe(1);
    expect(printed.at(-1)).toMatch(/^FAIL {2}.*257/);
  });

  it.each([
    [['--device', 'cuda:99'], /device cuda:99 cannot be used/],
    [['--device', 'auto'], /device auto cannot be used: name the device/],
    [['--group', 'nothing at all'], /no group nothing at all: the groups are grid, /],
    [['--golden', '/nowhere'], /cannot read --golden/],
    [['--cases', 'many'], /--cases is many; it must be a whole number/],
    [['--case', '{'], /--case is not JSON/],
    [['--fast'], /usage:/],
  ])('refuses %j', async (argv, reason) => {
    expect(await run(...argv)).toBe(2);
    expect(printed.at(-1)).toMatch(reason);
  });
});
