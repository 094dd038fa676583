#!/usr/bin/env node
// Builds the CUDA addon into build/addon, with --emulator the emulated one into build/emulator, or with --cpu the one for
// native threads into build/cpu, and puts it where node-gyp-build looks for it. CMake does the work; cmake-js tells it
// where the headers of Node-API are.
import { spawnSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { delimiter, dirname, join, relative } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const leastCMake = [3, 24];

/** The file of a program; undefined where it is not on the PATH. */
export function findOnPath(program) {
  const names = process.platform === 'win32' ? [`${program}.exe`, `${program}.cmd`] : [program];
  const folders = (process.env.PATH ?? '').split(delimiter);
  return folders.flatMap((folder) => names.map((name) => join(folder, name))).find(existsSync);
}

const onPath = (program) => findOnPath(program) !== undefined;

/** The C++ compiler that CMake will find; on Windows it looks for Visual Studio by itself. */
const hasCompiler = () =>
  process.platform === 'win32' || Boolean(process.env.CXX) || ['g++', 'c++', 'clang++'].some(onPath);

function cmakeVersion() {
  const { status, stdout } = spawnSync('cmake', ['--version'], { encoding: 'utf8' });
  const [, major, minor] = (status === 0 && /version (\d+)\.(\d+)/.exec(stdout)) || [];
  return major === undefined ? undefined : [Number(major), Number(minor)];
}

/** What has to be installed before the addon can be built, in words; empty when nothing is missing. */
export function missingTools({ emulator, cpu }) {
  const missing = [];
  if (!hasCompiler()) missing.push('a C++20 compiler (g++ 12 or later)');
  const [major, minor] = cmakeVersion() ?? [0, 0];
  if (major < leastCMake[0] || (major === leastCMake[0] && minor < leastCMake[1]))
    missing.push(`cmake ${leastCMake.join('.')} or later`);
  if (!emulator && !cpu && !process.env.CUDACXX && !onPath('nvcc'))
    missing.push('nvcc of CUDA 13 or later on the PATH');
  return missing;
}

/** The instruction set that the addon would choose here, where that is known; undefined: all are built. */
function instructionSetHere() {
  if (process.platform !== 'linux') return undefined;
  if (process.arch === 'arm64') return 'neon';
  if (process.arch !== 'x64') return undefined;
  const [, flags = ''] = /^flags\s*:(.*)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8')) ?? [];
  const has = (...names) => names.every((name) => flags.split(' ').includes(name));
  if (has('avx512f', 'avx512bw', 'avx512dq', 'avx512vl')) return 'avx512';
  return has('avx2', 'fma', 'f16c') ? 'avx2' : undefined;
}

const folders = { cuda: 'addon', emulator: 'emulator', cpu: 'cpu' };
const files = { cuda: 'flashattn.node', emulator: 'flashattn_emulator.node', cpu: 'flashattn-cpu.node' };

/**
 * `steps`: those of cmake-js; 'build' alone would not configure again after a failure. With `architectures` it is an
 * addon for those alone, in a folder of its own (`output`), which node-gyp-build does not find. `here`: the processor's
 * addon for this machine's instruction set alone. Returns the addon, or the folder where it was only configured.
 */
export function build({ emulator, cpu, here, steps = ['configure', 'build'], architectures, output: wanted }) {
  const missing = missingTools({ emulator, cpu });
  const kind = cpu ? 'cpu' : emulator ? 'emulator' : 'cuda';
  if (missing.length > 0) throw new Error(`the addon cannot be built; missing: ${missing.join(', ')}`);
  const only = here ? instructionSetHere() : undefined;
  const output = wanted ?? join(root, 'build', here ? `${folders[kind]}-here` : folders[kind]);
  const cmakeJs = createRequire(join(root, 'package.json')).resolve('cmake-js/bin/cmake-js');
  const args = ['--log-level', 'warn', '--directory', root, '--out', output];
  args.push('--parallel', String(availableParallelism()));
  args.push(`--CDFLASHATTN_${kind.toUpperCase()}=ON`);
  if (only) args.push(`--CDFLASHATTN_INSTRUCTION_SETS=${only}`);
  if (architectures) args.push(`--CDFLASHATTN_ARCHITECTURES=${architectures}`);
  args.push('--CDCMAKE_EXPORT_COMPILE_COMMANDS=ON'); // what scripts/kernel-units.mjs reads
  for (const step of steps) {
    const { status, error } = spawnSync(process.execPath, [cmakeJs, step, ...args], { cwd: root, stdio: 'inherit' });
    if (status !== 0) throw new Error(`cmake-js ${step} failed${error ? `: ${error.message}` : ''}`);
  }
  if (!steps.includes('build')) return output;
  const made = join(output, 'Release', files[kind]);
  if (kind === 'emulator' || wanted) return made;
  // A folder for each addon: node-gyp-build takes the first that it finds.
  const found = join(root, 'addons', kind, 'build', 'Release', files[kind]);
  mkdirSync(dirname(found), { recursive: true });
  // A process that has loaded the old one keeps it.
  rmSync(found, { force: true });
  copyFileSync(made, found);
  return found;
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  try {
    const has = (flag) => process.argv.includes(flag);
    console.log(relative(root, build({ emulator: has('--emulator'), cpu: has('--cpu'), here: has('--here') })));
  } catch (error) {
    console.error(error.message);
    process.exitCode = 1;
  }
}
