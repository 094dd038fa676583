// Packs the package into build/package and checks the tarball: its metadata (publint), its types as every kind of
// importer resolves them (attw; all supported Node versions can require ES modules) and its sizes (size-limit).
import { spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const folder = join('build', 'package');
const windows = process.platform === 'win32';

/** Runs a program and says whether it was content. */
function run(command, args, stdio = 'inherit') {
  const { status, stderr } = spawnSync(command, args, { cwd: root, stdio, shell: windows, encoding: 'utf8' });
  if (status !== 0 && stderr) console.error(stderr);
  return status === 0;
}

const tool = (name) => join('node_modules', '.bin', windows ? `${name}.cmd` : name);

rmSync(join(root, folder), { recursive: true, force: true });
mkdirSync(join(root, folder), { recursive: true });
if (!run('npm', ['pack', '--pack-destination', folder], 'pipe')) process.exit(1);
const tarball = join(folder, readdirSync(join(root, folder))[0]);

const results = [
  run(tool('publint'), ['--strict', tarball]),
  run(tool('attw'), ['--format', 'ascii', tarball]),
  run(tool('size-limit'), []),
];
process.exitCode = results.every(Boolean) ? 0 : 1;
