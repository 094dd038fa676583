// Builds the addon for native threads for every platform into addons/cpu/prebuilds, where node-gyp-build looks for it in
// the package, and checks each file: what it is, what it needs, and by running it where that is possible.
//
//   npm run prebuild:all [-- --only linux-x64-glibc,linux-arm64-glibc] [--twice]
//
// --only   these targets
// --twice  build each again, in another folder: the bytes have to be the same
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs, promisify } from 'node:util';
import prebuildify from 'prebuildify';
import { nodeBinary, nodeVersions } from '../node-binary.mjs';
import { findFaults } from './inspect.mjs';
import { fileOf, nameOf, root, targets } from './targets.mjs';
import { run } from './zig.mjs';

const work = join(root, 'build', 'release');
const armLibraries = '/usr/aarch64-linux-gnu';
const muslLoader = '/lib/ld-musl-x86_64.so.1';

/** @returns the file, in out/prebuilds */
async function build(target, out, folder) {
  rmSync(join(folder, 'build'), { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  rmSync(fileOf(target, out), { force: true });
  const { platform, arch, libc } = target;
  await promisify(prebuildify)({
    ...{ name: 'flashattn-cpu', napi: true, platform, arch, libc, tagLibc: libc, cwd: folder, out },
    nodeGyp: join(root, 'scripts', 'release', 'build.mjs'),
  });
  return fileOf(target, out);
}

/** Compares what it computes with results of original implementations. */
function compute(file, command, instructionSet) {
  const verify = [join(root, 'dist', 'cli.js'), 'verify', '--device', 'cpu', '--quick', '--group', 'golden'];
  const [program, ...args] = [...command, ...verify];
  const env = { ...process.env, FLASHATTN_CPU_ADDON: file, FLASHATTN_CPU: instructionSet };
  const { status, signal, error, stdout, stderr } = spawnSync(program, args, { env, encoding: 'utf8' });
  if (status !== 0)
    throw new Error(`${instructionSet} ended with ${signal ?? status}: ${error?.message ?? `${stdout}${stderr}`}`);
}

/** With every set of instructions that it has for the processor. @returns what became of it */
function computeAll(file, [program, ...args]) {
  const names = `require(${JSON.stringify(file)}).supported.join()`;
  const instructionSets = run(program, [...args, '--print', names])
    .trim()
    .split(',');
  for (const name of instructionSets) compute(file, [program, ...args], name);
  return `verified with ${instructionSets.join(' and ')}`;
}

/** The loader of musl knows all that the addon needs, but for the functions of the program that would load it. */
function loadWithMusl(file) {
  if (!existsSync(muslLoader)) return `not run: ${muslLoader} is missing (package musl)`;
  const { stderr } = spawnSync(muslLoader, ['--list', file], { encoding: 'utf8' });
  const missing = [...stderr.matchAll(/: (\w+): symbol not found/g)].map(([, symbol]) => symbol);
  const others = missing.filter((symbol) => !symbol.startsWith('napi_'));
  if (missing.length === 0 || others.length > 0)
    throw new Error(`musl does not load it: ${others.join(', ') || stderr}`);
  return 'musl resolves its symbols; not run: there is no Node for musl here';
}

const runs = {
  'linux-x64-glibc': (file) => computeAll(file, [process.execPath]),
  'linux-arm64-glibc'(file) {
    if (spawnSync('qemu-aarch64', ['--version']).status !== 0 || !existsSync(armLibraries))
      return `not run: it needs qemu-aarch64 and ${armLibraries}`;
    return computeAll(file, ['qemu-aarch64', '-L', armLibraries, nodeBinary(nodeVersions[1], 'arm64')]);
  },
  'linux-x64-musl': loadWithMusl,
};

async function make(target, twice) {
  const name = nameOf(target);
  const began = performance.now();
  const file = await build(target, join(root, 'addons', 'cpu'), join(work, name));
  const faults = findFaults(file, target);
  if (faults.length > 0) throw new Error(`${name}: ${faults.join('; ')}`);
  const ran = runs[name]?.(file) ?? `not run: this is no ${target.platform}`;
  let same = '';
  if (twice) {
    const again = await build(target, join(work, 'again'), join(work, 'again', name));
    if (!readFileSync(file).equals(readFileSync(again))) throw new Error(`${name}: a second build has other bytes`);
    same = ', the same bytes twice';
  }
  const size = `${(statSync(file).size / 1e6).toFixed(2)} MB`;
  console.log(`${name}: ${size}, ${ran}${same}  (${((performance.now() - began) / 1000).toFixed(0)} s)`);
}

process.env.FLASHATTN_RELEASE_OF = 'cpu';
const { values: flags } = parseArgs({ options: { only: { type: 'string' }, twice: { type: 'boolean' } } });
const wanted = flags.only?.split(',') ?? targets.map(nameOf);
try {
  const unknown = wanted.filter((name) => !targets.some((target) => nameOf(target) === name));
  if (unknown.length > 0)
    throw new Error(`unknown: ${unknown.join(', ')}; there are ${targets.map(nameOf).join(', ')}`);
  for (const target of targets.filter((target) => wanted.includes(nameOf(target)))) await make(target, flags.twice);
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
