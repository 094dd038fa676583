/** What importing an entry point loads: its own code and what it shares, and nothing of the others. */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { describe, expect, it } from 'vitest';

const root = new URL('../../', import.meta.url);
const { exports } = JSON.parse(readFileSync(new URL('package.json', root), 'utf8')) as {
  exports: Record<string, { readonly types: string; readonly default: string } | string>;
};
const conditions = Object.values(exports).flatMap((entry) => (typeof entry === 'string' ? [] : [entry]));
const entries = conditions.map((entry) => entry.default);

/** The files that a file of dist loads, itself included. */
function loaded(path: string, found = new Set<string>()): Set<string> {
  if (found.has(path)) return found;
  found.add(path);
  const text = readFileSync(new URL(path, root), 'utf8');
  for (const { fileName } of ts.preProcessFile(text).importedFiles)
    if (fileName.startsWith('.')) loaded(`./dist/${fileName.slice(2)}`, found);
  return found;
}

describe('the entry points of the package', () => {
  it('are all of them', () => {
    expect(entries).toEqual(['./dist/index.js', './dist/nn.js', './dist/systems.js', './dist/inference.js']);
  });

  it.each(entries)('%s loads no other', (entry) => {
    expect([...loaded(entry)].filter((path) => entries.includes(path))).toEqual([entry]);
  });

  it('declare what they export', async () => {
    const paths = conditions.map(({ types }) => fileURLToPath(new URL(types, root)));
    const program = ts.createProgram(paths, { module: ts.ModuleKind.Node16, noLib: true, types: [] });
    const checker = program.getTypeChecker();
    for (const [i, entry] of entries.entries()) {
      const file = checker.getSymbolAtLocation(program.getSourceFile(paths[i] as string) as ts.SourceFile);
      const declared = checker.getExportsOfModule(file as ts.Symbol).map(({ name }) => name);
      const module = (await import(new URL(entry, root).href)) as Record<string, unknown>;
      expect(declared, entry).toEqual(expect.arrayContaining(Object.keys(module)));
    }
  });

  it('give systems their own code', () => {
    const files = [...loaded('./dist/index.js'), ...loaded('./dist/nn.js')];
    for (const path of files)
      expect(readFileSync(new URL(path, root), 'utf8'), path).not.toMatch(/\bfunction (linearAttention|aftFull)\b/);
  });
});
