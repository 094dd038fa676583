// The same sources give the same WebAssembly, on every machine and in every folder: compiles them twice from copies
// elsewhere and compares the bytes with each other, with what the set-up made and with native/wasm-hashes.json.
// After a change of the kernels: npm run reproducible -- --write
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { builds } from './build-wasm.mjs';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const hashFile = join(root, 'native', 'wasm-hashes.json');
const outputs = 'lib/backends/cpu/wasm';
const files = builds.map(({ file }) => file);

const readJson = (path) => JSON.parse(readFileSync(path, 'utf8'));
const sha256 = (bytes) => createHash('sha256').update(bytes).digest('hex');

/** What a folder's builds are, by file name. */
const hashesIn = (folder) =>
  Object.fromEntries(files.map((file) => [file, sha256(readFileSync(join(folder, outputs, file)))]));

/** Compiles a copy of the sources below `parent`, which is removed again. */
function buildElsewhere(parent, env) {
  const folder = mkdtempSync(parent);
  try {
    for (const part of ['cpu', 'structs'])
      cpSync(join(root, 'native', part), join(folder, 'native', part), { recursive: true });
    cpSync(join(root, 'scripts', 'build-wasm.mjs'), join(folder, 'scripts', 'build-wasm.mjs'));
    symlinkSync(join(root, 'node_modules'), join(folder, 'node_modules'), 'junction');
    const script = join(folder, 'scripts', 'build-wasm.mjs');
    const { status, stderr } = spawnSync(process.execPath, [script], {
      cwd: folder,
      encoding: 'utf8',
      env: { ...process.env, ...env },
    });
    if (status !== 0) throw new Error(`the build in ${folder} failed:\n${stderr}`);
    return hashesIn(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function compare(what, got, wanted, problems) {
  for (const file of files)
    if (got[file] !== wanted[file]) problems.push(`${file}: ${what}: ${got[file]}, not ${wanted[file]}`);
}

const { version } = readJson(join(root, 'node_modules', '@yowasp', 'clang', 'package.json'));
const { version: locked } = readJson(join(root, 'package-lock.json')).packages['node_modules/@yowasp/clang'];
const compiler = `@yowasp/clang@${locked}`;

const problems = [];
if (version !== locked) problems.push(`@yowasp/clang ${version} is installed, package-lock.json names ${locked}`);

// Different lengths and depths of paths, time zones and languages.
const first = buildElsewhere(join(tmpdir(), 'a-'), { TZ: 'UTC', LC_ALL: 'C' });
const second = buildElsewhere(join(tmpdir(), 'another folder with a longer name '), {
  TZ: 'Pacific/Auckland',
  LC_ALL: 'de_DE.UTF-8',
});
compare('the second copy differs from the first', second, first, problems);
compare('what the set-up made is something else', hashesIn(root), first, problems);

const record = { compiler, sha256: first };
if (process.argv.includes('--write') && problems.length === 0) {
  writeFileSync(hashFile, `${JSON.stringify(record, null, 2)}\n`);
} else {
  const recorded = readJson(hashFile);
  if (recorded.compiler !== compiler) problems.push(`${hashFile} is of ${recorded.compiler}, not of ${compiler}`);
  compare('native/wasm-hashes.json is of other bytes', first, recorded.sha256, problems);
}

for (const file of files) console.log(`${first[file]}  ${file}`);
if (problems.length > 0) {
  for (const problem of problems) console.error(problem);
  console.error('After a change of native/cpu: npm run build:wasm && npm run reproducible -- --write');
  process.exitCode = 1;
}
