/** docs/linear.md: its code runs, its names are exported, its pictures are there. */
import { existsSync, readFileSync } from 'node:fs';
import * as flashattn from 'flashattn';
import * as systems from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import { runExample } from '../support/runExample.js';

const docs = new URL('../../docs/', import.meta.url);
const page = readFileSync(new URL('linear.md', docs), 'utf8').replaceAll('\r\n', '\n');

/** The rows of tables of a section, each as its cells. */
function rowsOf(section: string): string[][] {
  const text = page.split(/^## /m).find((part) => part.startsWith(`${section}\n`)) ?? '';
  return [...text.matchAll(/^\| (.*) \|$/gm)].map(([, row]) => (row as string).split(' | '));
}

const namesIn = (text: string): string[] => [...text.matchAll(/`(\w+)`/g)].map(([, name]) => name as string);

describe('the examples', () => {
  const examples = [...page.matchAll(/^```ts\n(.*?)^```$/gms)].map(([, code]) => code as string);

  it('are found', () => expect(examples.length).toBeGreaterThan(3));

  it.each(examples)('run: %#', (code) => {
    const printed = runExample(code).flat();
    expect(printed.length).toBeGreaterThan(0);
    for (const shape of printed) expect(shape).toEqual(expect.arrayContaining([expect.any(Number)]));
  });
});

describe('the families', () => {
  const named = rowsOf('Families').flatMap(([, names = '']) => namesIn(names));
  const scans = rowsOf('Families').flatMap(([, , scan = '']) => namesIn(scan));

  it('are found', () => expect(named.length).toBeGreaterThan(30));

  it.each(named)('%s is one of flashattn/systems', (name) =>
    expect(systems).toHaveProperty(name, expect.any(Function)),
  );

  it.each(scans)('%s is a function of flashattn', (name) =>
    expect(flashattn).toHaveProperty(name, expect.any(Function)),
  );
});

it('has its pictures', () => {
  const pictures = [...page.matchAll(/!\[[^\]]+\]\(([^)]+)\)/g)].map(([, path]) => path as string);
  expect(pictures.length).toBe(3);
  for (const path of pictures) expect(existsSync(new URL(path, docs))).toBe(true);
});
