// Zig's clang: a program from the npm registry that compiles and links for other platforms, with their C libraries and a
// C++ library that is linked in.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join, resolve } from 'node:path';
import addonApi from 'node-addon-api';
import { def_paths as definitions, include_dir as headers } from 'node-api-headers';
import { findOnPath } from '../build-addon.mjs';
import { root } from './targets.mjs';

const folder = join(root, 'scripts', 'release');
const program = join(folder, 'node_modules', '@ryoppippi', 'zig-linux-x64', 'zig');
// Compiling libc++ takes most of the time of a target's first build.
const cache = join(root, 'build', 'zig-cache');
const environment = { ...process.env, ZIG_GLOBAL_CACHE_DIR: cache, ZIG_LOCAL_CACHE_DIR: cache };

/** @throws with what it printed, when it fails */
export function run(command, args, options = {}) {
  const { status, error, stdout, stderr } = spawnSync(command, args, {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 2 ** 26,
    ...options,
  });
  if (status === 0) return stdout;
  throw new Error(`${[command, ...args].join(' ')} failed: ${error?.message ?? `${stdout}${stderr}`}`);
}

/** The path of the program; installs what scripts/release/package-lock.json names, if need be. */
export function zig() {
  if (process.platform !== 'linux' || process.arch !== 'x64') throw new Error('releases are built on linux-x64');
  if (!existsSync(program)) run('npm', ['ci', '--ignore-scripts'], { cwd: folder });
  return program;
}

/** What an addon for Windows is linked with: the functions of Node-API are in the program that loads it. */
function importLibrary(tree) {
  const words = Object.values(definitions).flatMap((path) => readFileSync(path, 'utf8').split(/\s+/));
  const names = new Set(words.filter((word) => /^(napi|node_api)_/.test(word)));
  const [definition, library] = [join(tree, 'node.def'), join(tree, 'libnode.a')];
  writeFileSync(definition, `NAME NODE.EXE\nEXPORTS\n${[...names].sort().join('\n')}\n`);
  run(zig(), ['dlltool', '-m', 'i386:x86-64', '-d', definition, '-l', library], { env: environment });
  return library;
}

/** The linker writes the time into a DLL; Zig passes no flag on that would keep it from doing so. */
function removeTime(path) {
  const bytes = readFileSync(path);
  bytes.writeUInt32LE(0, bytes.readUInt32LE(60) + 8);
  writeFileSync(path, bytes);
}

/** nvcc compiles kernels with g++; nothing of its C++ library is in them, so that Zig can link them with its own. */
function cudaCompiler() {
  const nvcc = process.env.CUDACXX ?? findOnPath('nvcc');
  if (nvcc === undefined) throw new Error('nvcc of CUDA 13 or later is needed on the PATH, or CUDACXX set to it');
  return nvcc;
}

/** Builds an addon of CMakeLists.txt ('cpu' or 'cuda') for a target, in the folder `tree`, into the folder `into`. */
export function build({ zig: target, platform }, { kind, tree, into }) {
  mkdirSync(tree, { recursive: true });
  const all = {
    CMAKE_BUILD_TYPE: 'Release',
    CMAKE_TOOLCHAIN_FILE: join(folder, 'toolchain.cmake'),
    CMAKE_LIBRARY_OUTPUT_DIRECTORY: into,
    CMAKE_RUNTIME_OUTPUT_DIRECTORY: into, // of a DLL
    CMAKE_JS_INC: `${resolve(addonApi.include_dir)};${headers}`,
    ...(platform === 'win32' && { CMAKE_JS_LIB: importLibrary(tree) }),
    FLASHATTN_ZIG: zig(),
    FLASHATTN_TARGET: target,
    [`FLASHATTN_${kind.toUpperCase()}`]: 'ON',
    ...(kind === 'cuda' && { CMAKE_CUDA_COMPILER: cudaCompiler() }),
  };
  const options = { env: environment };
  run('cmake', ['-S', root, '-B', tree, ...Object.entries(all).map(([key, value]) => `-D${key}=${value}`)], options);
  run('cmake', ['--build', tree, '--parallel', String(availableParallelism())], options);
  if (platform === 'win32')
    for (const file of readdirSync(into)) if (file.endsWith('.node')) removeTime(join(into, file));
}
