/** Every example of the documentation compiles against the package. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { describe, expect, it } from 'vitest';
import { diagnose, pathOf } from '../support/compile.js';

const root = fileURLToPath(new URL('../../', import.meta.url));

interface Example {
  /** Such as 'README.md:23'. */
  readonly place: string;
  readonly code: string;
}

function examplesOf(document: string): Example[] {
  const text = readFileSync(join(root, document), 'utf8').replaceAll('\r\n', '\n');
  return [...text.matchAll(/^```ts\n(.*?)^```$/gms)].map((match) => ({
    place: `${document}:${text.slice(0, match.index).split('\n').length + 1}`,
    code: match[1] ?? '',
  }));
}

/** What the examples of a reference take for given, where they do not make it themselves. */
const given: Record<string, string> = {
  q: 'Tensor',
  k: 'Tensor',
  v: 'Tensor',
  dOut: 'Tensor',
  x: 'Tensor',
};

/** An example as a module of its own, with the names that it uses and that nothing in it declares. */
function moduleOf({ code }: Example): string {
  const source = ts.createSourceFile('example.ts', code, ts.ScriptTarget.Latest, true);
  const declared = new Set<string>();
  const used = new Set<string>();
  const visit = (node: ts.Node): void => {
    if (ts.isIdentifier(node)) {
      const { parent } = node;
      const declares =
        (ts.isVariableDeclaration(parent) ||
          ts.isBindingElement(parent) ||
          ts.isParameter(parent) ||
          ts.isFunctionDeclaration(parent) ||
          ts.isImportSpecifier(parent)) &&
        parent.name === node;
      (declares ? declared : used).add(node.text);
    }
    ts.forEachChild(node, visit);
  };
  visit(source);
  const missing = Object.keys(given).filter((name) => used.has(name) && !declared.has(name));
  const lines = missing.map((name) => `declare const ${name}: import('flashattn').${given[name]};`);
  return `${code}\n${lines.join('\n')}\nexport {};\n`;
}

// Examples show calls and not all of what they return.
const lenient = { noUnusedLocals: false, noUnusedParameters: false };

const documents = [
  'README.md',
  ...readdirSync(join(root, 'docs'))
    .filter((name) => name.endsWith('.md'))
    .map((name) => `docs/${name}`),
];

describe('the examples of the documentation', () => {
  const examples = documents.flatMap(examplesOf);

  it('are found', () => {
    expect(examples.filter(({ place }) => place.startsWith('README.md')).length).toBeGreaterThanOrEqual(2);
  });

  it('compile', () => {
    expect(diagnose(new Map(examples.map((example) => [pathOf(example.place), moduleOf(example)])), lenient)).toEqual(
      [],
    );
  });

  it('would not if they were wrong', () => {
    const wrong = { place: 'wrong.md:1', code: "import { attention } from 'flashattn';\nattention(q, k, 3);\n" };
    expect(diagnose(new Map([[pathOf(wrong.place), moduleOf(wrong)]]), lenient)).toEqual([
      expect.stringMatching(/^wrong\.md_1\.ts, line 2: .*not assignable to .*Tensor/),
    ]);
  });
});
