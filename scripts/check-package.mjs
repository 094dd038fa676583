// Packs what is published into build/package and checks the tarballs: flashattn's metadata (publint), its types as every
// kind of importer resolves them (attw; all supported Node versions can require ES modules) and its sizes (size-limit), and
// the metadata and size of the CUDA packages that have been built.
//
//   npm run check:package [-- --release]
//
// --release   fail where an addon is missing
import { spawnSync } from 'node:child_process';
import { rmSync, statSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { packAll } from './pack.mjs';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const folder = join(root, 'build', 'package');
const mostCudaBytes = 30_000_000;
const windows = process.platform === 'win32';

/** Runs a development tool and says whether it was content. */
function run(name, args) {
  const tool = join('node_modules', '.bin', windows ? `${name}.cmd` : name);
  return spawnSync(tool, args, { cwd: root, stdio: 'inherit', shell: windows }).status === 0;
}

function checkCuda(tarball) {
  const { size } = statSync(tarball);
  const fits = size <= mostCudaBytes;
  const line = `${relative(root, tarball)}: ${(size / 1e6).toFixed(1)} MB of at most ${mostCudaBytes / 1e6} MB`;
  console[fits ? 'log' : 'error'](line);
  return [fits, run('publint', ['--strict', tarball])];
}

const { values: flags } = parseArgs({ options: { release: { type: 'boolean' } } });
rmSync(folder, { recursive: true, force: true });
const { tarballs, missing } = packAll(folder);
const [main, ...cuda] = tarballs;
for (const name of missing) console[flags.release ? 'error' : 'log'](`not built: ${name}`);
const results = [
  run('publint', ['--strict', main]),
  run('attw', ['--format', 'ascii', main]),
  run('size-limit', []),
  ...cuda.flatMap(checkCuda),
];
process.exitCode = results.every(Boolean) && !(flags.release && missing.length > 0) ? 0 : 1;
