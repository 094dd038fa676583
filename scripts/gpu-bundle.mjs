// Makes build/gpu-bundle: everything that shows on a GPU what no other machine can, in one folder that runs where there
// is a driver and nothing else (see bench/gpu/README.md).
//
//   npm run gpu:bundle [-- --architectures '80;90-real']
//
// The addon in it is for compute capability 9.0 alone unless it is told otherwise: a few minutes less to compile, and a
// quarter of the size.
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  cpSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { build, missingTools } from './build-addon.mjs';
import { nodeBinary } from './node-binary.mjs';

const nodeVersion = '24.21.0'; // long-term support
const mebibyte = 2 ** 20;
const mostBytes = 60 * mebibyte;

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const bundle = join(root, 'build', 'gpu-bundle');
const payload = join(root, 'build', 'gpu-payload'); // what the bundle holds, not yet packed

function run(command, args, options = {}) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit', ...options });
  if (status !== 0) throw new Error(`${[command, ...args].join(' ')} failed${error ? `: ${error.message}` : ''}`);
}

function output(command, args) {
  const { status, stdout, error } = spawnSync(command, args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`${[command, ...args].join(' ')} failed${error ? `: ${error.message}` : ''}`);
  return stdout;
}

/** The addon, and the conformance test as a program for the GPU and with what it gives on the emulator. */
function buildNative(architectures) {
  const trees = { gpu: join(root, 'build', 'gpu-addon'), emulator: join(root, 'build', 'emulator') };
  copyFileSync(build({ emulator: false, architectures, output: trees.gpu }), join(payload, 'flashattn.node'));
  build({ emulator: true });
  for (const tree of Object.values(trees))
    run('cmake', ['--build', tree, '--config', 'Release', '--target', 'conformance']);
  run(join(trees.emulator, 'conformance'), ['--write', join(payload, 'emulator.bin')], { stdio: 'pipe' });
  copyFileSync(join(trees.gpu, 'conformance'), join(payload, 'conformance'));
}

/** The built package and the programs that import it, at the places that they have in a checkout. */
function copyPrograms() {
  const { name, version, type, exports } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  writeFileSync(join(payload, 'package.json'), JSON.stringify({ name, version, type, exports }));
  cpSync(join(root, 'dist'), join(payload, 'dist'), {
    recursive: true,
    filter: (path) => !/\.(map|d\.ts)$/.test(path),
  });
  const programs = join(payload, 'build');
  for (const folder of ['bench', 'device'])
    cpSync(join(root, 'build', folder), join(programs, folder), { recursive: true });
  // What the programs share.
  for (const file of readdirSync(join(root, 'build')).filter((file) => file.endsWith('.js')))
    copyFileSync(join(root, 'build', file), join(programs, file));
  cpSync(join(root, 'verify', 'golden', 'vectors'), join(payload, 'vectors'), { recursive: true });
  copyFileSync(join(root, 'bench', 'gpu', 'torch_baseline.py'), join(payload, 'torch_baseline.py'));
}

function copyNode() {
  const target = join(payload, 'bin', 'node');
  mkdirSync(dirname(target), { recursive: true });
  copyFileSync(nodeBinary(nodeVersion), target);
  chmodSync(target, 0o755);
  // Without the names of its functions it is a tenth smaller; without strip it is as it was.
  spawnSync('strip', ['--strip-all', target]);
}

/** What unpacks the bundle where there is no xz: this machine's, with the library that it needs. */
function copyUnpacker() {
  const folder = join(bundle, 'xz');
  mkdirSync(folder);
  const program = output('sh', ['-c', 'command -v xz']).trim();
  const [, library] = /liblzma\S* => (\S+)/.exec(output('ldd', [program])) ?? [];
  for (const file of [program, library]) if (file) copyFileSync(file, join(folder, basename(file)));
}

/** The same bytes for the same files. */
function pack() {
  const archive = join(bundle, 'payload.tar.xz');
  const same = ['--sort=name', '--mtime=@0', '--owner=0', '--group=0', '--numeric-owner'];
  const compress = '--use-compress-program=xz -6 --threads=0';
  run('tar', ['--create', '--file', archive, compress, ...same, '--directory', payload, '.']);
  copyUnpacker();
  for (const file of ['run.sh', 'README.md']) copyFileSync(join(root, 'bench', 'gpu', file), join(bundle, file));
  chmodSync(join(bundle, 'run.sh'), 0o755);
}

function measure() {
  const files = readdirSync(bundle, { recursive: true }).map((file) => statSync(join(bundle, file)));
  const bytes = files.reduce((sum, { size }) => sum + size, 0);
  const size = `${(bytes / mebibyte).toFixed(1)} MiB`;
  if (bytes > mostBytes)
    throw new Error(`${relative(root, bundle)} has ${size}, more than ${mostBytes / mebibyte} MiB`);
  console.log(`${relative(root, bundle)}: ${size}; run.sh in it runs on a machine with a GPU`);
}

function main() {
  const { values } = parseArgs({ options: { architectures: { type: 'string', default: '90-real' } } });
  if (process.platform !== 'linux') throw new Error('the GPU bundle is for Linux and is made there');
  const missing = new Set([...missingTools({ emulator: false }), ...missingTools({ emulator: true })]);
  if (spawnSync('xz', ['--version']).status !== 0) missing.add('xz');
  if (missing.size > 0) throw new Error(`the GPU bundle cannot be made; missing: ${[...missing].join(', ')}`);
  for (const folder of [bundle, payload]) {
    rmSync(folder, { recursive: true, force: true });
    mkdirSync(folder, { recursive: true });
  }
  buildNative(values.architectures);
  copyPrograms();
  copyNode();
  pack();
  rmSync(payload, { recursive: true });
  measure();
}

try {
  main();
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
