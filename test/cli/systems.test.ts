/** The catalogue of systems: nothing is missing, every name is there, every example runs. */
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { status } from 'flashattn';
import { beforeAll, describe, expect, it, vi } from 'vitest';
import { allNamesOf, exampleOf, type SystemEntry } from '../../lib/cli/systems/entry.js';
import { families } from '../../lib/cli/systems/index.js';
import { adapters } from '../../verify/golden/systems/index.js';
import { cliPath, runNode } from '../support/child.js';
import { diagnose, pathOf } from '../support/compile.js';
import { entries, runExample } from '../support/runExample.js';

// Before anything asks for a device.
vi.hoisted(() => {
  process.env.FLASHATTN_ADDON = '/nowhere.node';
  process.env.FLASHATTN_CPU_ADDON = '/nowhere.node';
});

const root = join(import.meta.dirname, '../..');
const all = families.flatMap(({ systems }) => systems);
const named = all.map((entry) => [entry.name, entry] as const);

/** How many files of each system a folder of golden files has. */
function filesIn(folder: string): Map<string, number> {
  const counts = new Map<string, number>();
  for (const name of readdirSync(folder)) {
    const [system, rest] = name.split('__');
    if (system && rest) counts.set(system, (counts.get(system) ?? 0) + 1);
  }
  return counts;
}

describe('the catalogue', () => {
  const claimed = new Map<string, number>();
  for (const { golden } of all)
    for (const [system, files] of Object.entries(golden)) claimed.set(system, (claimed.get(system) ?? 0) + files);

  it('has every system with golden files, and no other', () => {
    expect([...claimed.keys()].sort()).toEqual([...adapters.keys()].sort());
  });

  it('claims the golden files of the repository, and no more than there are', () => {
    const here = filesIn(join(root, 'verify/golden/vectors'));
    for (const [system, files] of here) expect(claimed.get(system), system).toBeGreaterThanOrEqual(files);
    const shared = join(root, '../shared/golden');
    if (!existsSync(shared)) return;
    const there = filesIn(shared);
    for (const [system, files] of claimed) expect({ [system]: files }).toEqual({ [system]: there.get(system) });
  });

  it('has each name once', () => {
    const names = all.map(({ name }) => name);
    expect(names.length).toBeGreaterThan(100);
    expect(new Set(names).size).toBe(names.length);
    for (const name of names) expect(name).toMatch(/^[a-z0-9][a-z0-9.-]*$/);
  });

  it.each(named)('%s is complete', (_, entry) => {
    if (entry.year === undefined) expect(entry.paper).toBe('no paper');
    for (const text of [entry.title, entry.paper, entry.cost, entry.formula]) expect(text).not.toBe('');
    expect(Object.keys(entry.options).length).toBeGreaterThan(0);
    expect(Object.keys(entry.options).length).toBeLessThanOrEqual(4);
    expect(allNamesOf(entry).length).toBeGreaterThan(0);
    // A composition says why.
    if (entry.runs.length === 0) expect(entry.because).toBeDefined();
    if (entry.picture) expect(existsSync(join(root, 'docs', entry.picture))).toBe(true);
  });

  it.each(named)('%s imports names that exist', (_, entry) => {
    for (const [point, names] of Object.entries(entry.imports))
      for (const name of names) expect(entries[point]).toHaveProperty(name, expect.any(Function));
  });
});

describe('the functions of flashattn/systems', () => {
  // Parts and tools of systems, which belong to more than one of them.
  const parts = new Set([
    'RecurrentLayer',
    'ShortConvolution',
    'SavedAttention',
    'SavedLongT5',
    'SavedLongnet',
    'longT5GlobalTokensBackward',
    'distanceSinusoids',
  ]);
  const features =
    /^(cosineReweighting|eluPlusOne|exponential|favor\w+|generalizedRelu|randomFourier|reluFeatures|softmax\w+|squaredRelu|taylorSecondOrder)$/;
  const known = new Set(all.flatMap((entry) => entry.imports['flashattn/systems'] ?? []));

  it.each(Object.keys(entries['flashattn/systems'] as object).filter((name) => !features.test(name)))(
    '%s belongs to a system',
    (name) => expect(known.has(name) || parts.has(name)).toBe(true),
  );
});

describe('the examples', () => {
  beforeAll(() => expect(status('auto')).toMatchObject({ device: 'wasm' }));

  it.each(named)('%s runs', (_, entry) => {
    const printed = runExample(exampleOf(entry));
    expect(printed).toHaveLength(1);
    expect(printed[0]).not.toEqual([]);
    for (const shape of printed[0] as unknown[]) expect(shape).toEqual(expect.arrayContaining([expect.any(Number)]));
  });

  it('compile, and use what they import', () => {
    const modules = all.map((entry) => [pathOf(entry.name), `${exampleOf(entry)}\nexport {};\n`] as const);
    expect(diagnose(new Map(modules))).toEqual([]);
  });
});

describe('flashattn systems', () => {
  const flashattn = (args: string) => runNode([cliPath, ...args.split(' ').filter(Boolean)]);

  it('prints the table', async () => {
    const { code, stdout } = await flashattn('systems');
    expect(code).toBe(0);
    for (const { title, systems } of families) {
      expect(stdout).toContain(`\n${title}\n`);
      for (const { name } of systems) expect(stdout).toMatch(new RegExp(`^${name} +([12]\\d{3}|-) `, 'm'));
    }
    const lines = stdout.split('\n').filter((line) => /^\S+ +[12]\d{3} /.test(line));
    expect(new Set(lines.map((line) => line.search(/ [12]\d{3} /))).size).toBe(1);
  });

  it.each(['performer', 'Performer', 'performerAttention', 'performer_favor'])('finds %s', async (name) => {
    const { code, stdout } = await flashattn(`systems ${name}`);
    expect(code).toBe(0);
    for (const part of ['arXiv:2009.14794', '4 of performer_favor', 'projection  ', 'orthogonalProjection({'])
      expect(stdout).toContain(part);
  });

  it('prints an example as it can be copied', async () => {
    const { stdout } = await flashattn('systems bigbird');
    const example = stdout.slice(stdout.indexOf('Example\n') + 8).replaceAll(/^ {2}/gm, '');
    expect(runExample(example)).toEqual([[[1, 256, 2, 16]]]);
  });

  it('--json has everything', async () => {
    const { stdout } = await flashattn('systems --json');
    const listed = JSON.parse(stdout) as { systems: SystemEntry[] }[];
    expect(listed.flatMap(({ systems }) => systems).map(({ name }) => name)).toEqual(all.map(({ name }) => name));
    const [first] = named[0] as (typeof named)[number];
    expect(JSON.parse((await flashattn(`systems ${first} --json`)).stdout)).toEqual(listed[0]?.systems[0]);
  });

  it.each([
    ['systems perfomer', "did you mean 'performer'"],
    ['systems longt5', "'longt5-local', 'longt5-tglobal'"],
    ['systems nothing-like-it', "there is no system 'nothing-like-it'; `flashattn systems` lists them"],
    ['systems gla retention', 'one name; it got 2'],
    ['systems --all', '--all'],
  ])('%s is refused', async (args, message) => {
    expect(await flashattn(args)).toMatchObject({ code: 64, stderr: expect.stringContaining(message) });
  });
});
