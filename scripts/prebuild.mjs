// Puts the CUDA addon for this platform into addons/cuda/prebuilds/<platform>-<arch>/, where scripts/pack.mjs takes it
// from, stripped, and checks what it needs of the systems that it is for. On linux-x64 Zig links it for the oldest glibc
// that releases run on; elsewhere it is as portable as the system that builds it.
//
//   npm run prebuild [-- --release] [--addon <file>]
//
// --release   fail where the addon needs a newer glibc than releases may (see docs/install.md), instead of a warning
// --addon     take this addon, which has been built already, instead of building one
import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, rmSync, statSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs, promisify } from 'node:util';
import prebuildify from 'prebuildify';
import { judgeNeeds, readNeeds, releaseFloor } from './addon-needs.mjs';
import { build as buildHere } from './build-addon.mjs';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const linux = process.platform === 'linux';
const out = join(root, 'addons', 'cuda');
const folder = join(out, 'prebuilds', `${process.platform}-${process.arch}`);
// The tag keeps the addon from systems with musl, which could not load it.
const file = join(folder, linux ? 'flashattn.glibc.node' : 'flashattn.node');
const mostBytes = 60_000_000; // a package of 30 MB

async function buildWithZig() {
  const cwd = join(root, 'build', 'release', 'cuda');
  mkdirSync(cwd, { recursive: true });
  process.env.FLASHATTN_RELEASE_OF = 'cuda';
  const names = { name: 'flashattn', napi: true, libc: 'glibc', tagLibc: 'glibc' };
  await promisify(prebuildify)({ ...names, cwd, out, nodeGyp: join(root, 'scripts', 'release', 'build.mjs') });
}

function take(addon) {
  mkdirSync(folder, { recursive: true });
  copyFileSync(addon, file);
  if (linux && spawnSync('strip', ['--strip-all', file]).status !== 0) throw new Error(`${file} cannot be stripped`);
}

/** Whether the addon may be packed. */
function check(release) {
  const { size } = statSync(file);
  console.log(`${relative(root, file)}: ${(size / 1e6).toFixed(1)} MB`);
  if (!linux) return true;
  const needs = readNeeds(file);
  const { faults, newer, newest } = judgeNeeds(needs);
  console.log(`needs ${[...needs.libraries, `glibc ${newest}`].join(', ')}; releases may need glibc ${releaseFloor}`);
  if (size > mostBytes) faults.push(`it has more than ${mostBytes / 1e6} MB`);
  for (const fault of faults) console.error(`error: ${fault}`);
  for (const fault of newer) console.error(`${release ? 'error' : 'warning'}: ${fault}`);
  return faults.length === 0 && !(release && newer.length > 0);
}

const { values: flags } = parseArgs({ options: { release: { type: 'boolean' }, addon: { type: 'string' } } });
try {
  rmSync(folder, { recursive: true, force: true }); // one addon for each platform
  if (flags.addon !== undefined) take(flags.addon);
  else if (linux && process.arch === 'x64') await buildWithZig();
  else take(buildHere({ emulator: false }));
  if (!check(flags.release)) process.exitCode = 1;
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
