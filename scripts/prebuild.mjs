// Puts the CUDA addon for this platform into prebuilds/<platform>-<arch>/, where node-gyp-build looks for it in the
// package, stripped, and checks what it needs of the systems that it is for.
//
//   npm run prebuild [-- --release] [--addon <file>]
//
// --release   fail where the addon needs a newer glibc than releases may (see docs/install.md), instead of a warning
// --addon     take this addon, which has been built already, instead of building one
import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, rmSync, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { judgeNeeds, readNeeds, releaseFloor } from './addon-needs.mjs';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const windows = process.platform === 'win32';
const linux = process.platform === 'linux';
const folder = join(root, 'prebuilds', `${process.platform}-${process.arch}`);
// The tag keeps the addon from systems with musl, which could not load it.
const file = join(folder, linux ? 'flashattn.glibc.node' : 'flashattn.node');

function run(command, args, options = {}) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit', ...options });
  if (status !== 0) throw new Error(`${[command, ...args].join(' ')} failed${error ? `: ${error.message}` : ''}`);
}

function build() {
  const prebuildify = createRequire(join(root, 'package.json')).resolve('prebuildify/bin.js');
  const builder = join(root, 'scripts', 'build-addon.mjs');
  // prebuildify calls this in place of node-gyp; on Windows through a shell, which needs the quotes.
  const PREBUILD_NODE_GYP = windows ? `"${process.execPath}" "${builder}"` : builder;
  const args = ['--napi', '--strip', ...(linux ? ['--tag-libc', 'glibc'] : [])];
  run(process.execPath, [prebuildify, ...args], { env: { ...process.env, PREBUILD_NODE_GYP } });
}

function take(addon) {
  mkdirSync(folder, { recursive: true });
  copyFileSync(addon, file);
  if (linux) run('strip', ['--strip-all', file]);
}

/** Whether the addon may be packed. */
function check(release) {
  console.log(`${relative(root, file)}: ${(statSync(file).size / 1e6).toFixed(1)} MB`);
  if (!linux) return true;
  const needs = readNeeds(file);
  const { faults, newer, newest } = judgeNeeds(needs);
  console.log(`needs ${[...needs.libraries, `glibc ${newest}`].join(', ')}; releases may need glibc ${releaseFloor}`);
  for (const fault of faults) console.error(`error: ${fault}`);
  for (const fault of newer) console.error(`${release ? 'error' : 'warning'}: ${fault}`);
  if (newer.length > 0) console.error('Build it in a container with glibc 2.28: docs/install.md says how.');
  return faults.length === 0 && !(release && newer.length > 0);
}

const { values: flags } = parseArgs({ options: { release: { type: 'boolean' }, addon: { type: 'string' } } });
try {
  rmSync(folder, { recursive: true, force: true }); // one addon for each platform
  if (flags.addon === undefined) build();
  else take(flags.addon);
  if (!check(flags.release)) process.exitCode = 1;
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
