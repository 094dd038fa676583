/** What a release promises: pinned actions, no tokens, scripts that exist, and an SBOM that says what is needed. */
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';

const root = new URL('../../', import.meta.url);
const read = (path: string) => readFileSync(new URL(path, root), 'utf8');
const { scripts, dependencies, version } = JSON.parse(read('package.json')) as {
  scripts: Record<string, string>;
  dependencies: Record<string, string>;
  version: string;
};

const workflows = readdirSync(new URL('.github/workflows', root)).map((name) => `.github/workflows/${name}`);
const matches = (text: string, pattern: RegExp) => [...text.matchAll(pattern)].map((match) => match.slice(1));

describe.each([...workflows, 'docs/gpu-ci.md'])('%s', (path) => {
  const text = read(path);

  it('pins every action to a commit and says which version that is', () => {
    for (const [used] of matches(text, /\buses: (.+)/g))
      expect(used).toMatch(/^\.\/\.github\/workflows\/\w+\.yml$|^[\w-]+\/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$/);
  });

  it('runs scripts that exist', () => {
    for (const [name] of matches(text, /\bnpm run ([\w:-]+)/g)) expect(scripts).toHaveProperty([name]);
  });

  it('has no secrets and may write nothing by default', () => {
    expect(text).not.toContain('secrets.');
    expect(text).toMatch(/^permissions:\n {2}contents: read$/m);
  });
});

it('one commit stands for one version of an action everywhere', () => {
  const used = [...workflows, 'docs/gpu-ci.md'].flatMap((path) => matches(read(path), /uses: (.+)@(\w{40}) # (.+)/g));
  const versions = new Map(used.map(([action, commit, version]) => [`${action} ${version}`, commit]));
  expect(used.filter(([action, commit, version]) => versions.get(`${action} ${version}`) !== commit)).toEqual([]);
  expect(versions.size).toBe(new Set(used.map(([action]) => action)).size);
});

it('only the job that publishes may say who it is', () => {
  const asking = workflows.filter((path) => read(path).includes('id-token: write'));
  expect(asking).toEqual(['.github/workflows/release.yml']);
});

it('the SBOM lists the package and what it needs at run time', () => {
  execFileSync(process.execPath, [fileURLToPath(new URL('scripts/sbom.mjs', root))]);
  const { metadata, components } = JSON.parse(read('build/sbom.json')) as {
    metadata: { component: { name: string; version: string } };
    components: { name: string; version: string }[];
  };
  expect(metadata.component).toMatchObject({ name: 'flashattn', version });
  expect(Object.fromEntries(components.map((component) => [component.name, component.version]))).toEqual(dependencies);
});

it('the recorded WebAssembly was made by the compiler that is installed', () => {
  const { compiler } = JSON.parse(read('native/wasm-hashes.json')) as { compiler: string };
  const lock = JSON.parse(read('package-lock.json')) as { packages: Record<string, { version: string }> };
  expect(compiler).toBe(`@yowasp/clang@${lock.packages['node_modules/@yowasp/clang'].version}`);
});
