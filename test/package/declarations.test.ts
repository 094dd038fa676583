/** What users see of the types: the public surface alone. */
import { readdirSync, readFileSync } from 'node:fs';
import ts from 'typescript';
import { describe, expect, it } from 'vitest';

const root = new URL('../../', import.meta.url);
/** Those of both entry points, and what the two share. */
const files = readdirSync(new URL('dist/', root)).filter((name) => name.endsWith('.d.ts'));
const texts = files.map((name) => readFileSync(new URL(`dist/${name}`, root), 'utf8'));

/** Names of members and of what a file declares, where its documentation says @internal. */
function internalNames(source: ts.SourceFile): string[] {
  const names: string[] = [];
  const visit = (node: ts.Node): void => {
    const isInternal = ts.getJSDocTags(node).some((tag) => tag.tagName.text === 'internal');
    const name = (node as ts.Node & { readonly name?: ts.Node }).name;
    if (isInternal && name && ts.isIdentifier(name)) {
      const owner = ts.isClassLike(node.parent) ? `${node.parent.name?.text}.` : '';
      names.push(`${owner}${name.text}`);
    }
    ts.forEachChild(node, visit);
  };
  visit(source);
  return names;
}

/** 'Tensor.slice' and 'Tensor': members of classes, and what stands at the top. */
function declaredNames(text: string): string[] {
  const names = new Set<string>();
  for (const statement of ts.createSourceFile('index.d.ts', text, ts.ScriptTarget.Latest, true).statements) {
    const { name } = statement as ts.Statement & { readonly name?: ts.Node };
    if (name && ts.isIdentifier(name)) names.add(name.text);
    if (!ts.isClassLike(statement)) continue;
    for (const member of statement.members)
      if (member.name && ts.isIdentifier(member.name)) names.add(`${statement.name?.text}.${member.name.text}`);
  }
  return [...names];
}

describe('the declarations of the package', () => {
  const declared = new Set(texts.flatMap(declaredNames));

  it('are there', () => {
    expect([...declared]).toEqual(
      expect.arrayContaining(['attention', 'Tensor', 'Tensor.slice', 'BlockMask', 'GPT', 'Module.parameters']),
    );
  });

  it('hold nothing that is internal', () => {
    const sources = readdirSync(new URL('lib/', root), { recursive: true, encoding: 'utf8' }).filter(
      (path) => path.endsWith('.ts') && !/(^|[\\/])(cli|backends)[\\/]/.test(path),
    );
    const internal = sources.flatMap((path) =>
      internalNames(
        ts.createSourceFile(path, readFileSync(new URL(`lib/${path}`, root), 'utf8'), ts.ScriptTarget.Latest, true),
      ),
    );
    expect(internal.length).toBeGreaterThan(10);
    expect(internal.filter((name) => declared.has(name))).toEqual([]);
    for (const text of texts) {
      expect(text).not.toContain('@internal');
      expect(text).not.toMatch(/\b(operand|flat)\(|\bbackend[:?]|\bclass \w*Backend\b/);
    }
  });

  it('need no types but those of Node and the language', () => {
    const imported = texts.flatMap((text) => ts.preProcessFile(text).importedFiles.map(({ fileName }) => fileName));
    const shared = files.map((name) => `./${name.replace('.d.ts', '.js')}`);
    expect(imported.filter((name) => !shared.includes(name))).toEqual([]);
  });
});
