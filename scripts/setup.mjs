// Brings a clone to the state that a command needs:
//
//   node scripts/setup.mjs start|bench|package|test|all [--force]
//
// Each step remembers a hash of what it was made from and runs again only when that changes (or with --force). Steps
// that do not need each other run side by side. Two set-ups at once are safe: the second waits. A step that is cut off
// leaves nothing half-written, and runs again.
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { missingTools } from './build-addon.mjs';
import { withLock } from './lock.mjs';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');

/** Every Node that the package supports runs relaxed SIMD, unless it is told not to. */
const ownVariant = process.env.FLASHATTN_RELAXED_SIMD === '0' ? 'simd' : 'relaxed';
const otherVariant = ownVariant === 'simd' ? 'relaxed' : 'simd';

const wasmStep = (variant, commands) => ({
  name: `wasm-${variant}`,
  title: `Compiling the WebAssembly kernels (${variant})`,
  for: commands,
  after: ['install'],
  from: ['native/cpu', 'native/structs', 'scripts/build-wasm.mjs', 'package-lock.json'],
  into: ['lib/backends/cpu/wasm', 'dist'],
  run: (folder) => ['scripts/build-wasm.mjs', '--out', folder, variant],
});

const bundleStep = ({ config = 'tsdown.config.ts', from, ...step }) => ({
  ...step,
  after: ['install'],
  from: [...from, config, 'tsconfig.json', 'package.json', 'package-lock.json'],
  run: (folder) => [
    ...['node_modules/tsdown/dist/run.mjs', '--config', config, '--filter', step.name],
    ...['--out-dir', folder],
  ],
});

const cpuStep = ({ flags, ...step }) => ({
  ...step,
  title: 'Building the addon for native threads',
  after: ['install'],
  from: [
    'native/addon/cpu',
    'native/addon/exports.map',
    'native/cpu',
    'native/structs',
    'CMakeLists.txt',
    'scripts/build-addon.mjs',
    'package-lock.json',
  ],
  makes: ['addons/cpu/build/Release/flashattn-cpu.node'],
  torn: `build/${step.name}`,
  missing: () => missingTools({ cpu: true }),
  run: () => ['scripts/build-addon.mjs', '--cpu', ...flags],
});

/**
 * for: the commands that need the step; after: the steps that it needs; from: the files and folders that it reads;
 * into: where what it makes belongs (it gets a folder to write to, and its files go there when it is done); makes: what
 * else has to be there; run: the program of Node and its arguments; missing: the tools that this machine lacks for it;
 * torn: what to remove where the step was cut off before it could end its compilers; instead: the step that makes the
 * same and more.
 */
const steps = [
  {
    name: 'install',
    title: 'Installing dependencies',
    for: ['start', 'bench', 'package', 'test'],
    // Inside node_modules, so that deleting the folder forgets it.
    stamp: 'node_modules/.flashattn-setup',
    from: ['package-lock.json'],
    makes: ['node_modules/@yowasp/clang/package.json'],
    run: () => npm(['ci', '--no-audit', '--no-fund', '--prefer-offline']),
  },
  wasmStep(ownVariant, ['start', 'bench', 'package', 'test']),
  bundleStep({
    name: 'library',
    title: 'Building the library',
    for: ['start', 'bench', 'package', 'test'],
    from: ['lib'],
    into: ['dist'],
  }),
  bundleStep({
    name: 'example',
    title: 'Building the example',
    for: ['start', 'test'],
    from: ['examples'],
    config: 'tsdown.tools.config.ts',
    into: ['build'],
  }),
  // A quarter of the work, which is what it takes to begin.
  cpuStep({ name: 'cpu-here', for: ['start'], instead: 'cpu', flags: ['--here'] }),
  cpuStep({ name: 'cpu', for: ['bench', 'test'], flags: [] }),
  wasmStep(otherVariant, ['package', 'test']),
  bundleStep({
    name: 'declarations',
    title: 'Building the declarations',
    for: ['package', 'test'],
    from: ['lib'],
    into: ['dist'],
  }),
  bundleStep({
    name: 'verify',
    title: 'Building the checks of a device',
    for: ['package', 'test'],
    from: ['lib', 'verify'],
    into: ['dist'],
  }),
  bundleStep({
    name: 'programs',
    title: 'Building the benchmarks and the test programs',
    for: ['bench', 'test'],
    from: ['bench', 'lib', 'test/fuzz', 'test/soak', 'verify'],
    config: 'tsdown.tools.config.ts',
    into: ['build'],
  }),
  {
    name: 'emulator',
    title: 'Building the CUDA kernels for the emulator',
    for: ['test'],
    after: ['install'],
    from: [
      'cuda',
      'native/addon/cuda',
      'native/addon/exports.map',
      'native/structs',
      'CMakeLists.txt',
      'scripts/build-addon.mjs',
      'package-lock.json',
    ],
    makes: ['build/emulator/Release/flashattn_emulator.node'],
    // Make would take an object that a power cut left half-written for a finished one.
    torn: 'build/emulator',
    missing: () => missingTools({ emulator: true }),
    run: () => ['scripts/build-addon.mjs', '--emulator'],
  },
];

const commands = [...new Set(steps.flatMap((step) => step.for)), 'all'];

/** npm is a script of Node when it started us; a shell finds it otherwise. */
const npm = (args) => (process.env.npm_execpath ? [process.env.npm_execpath, ...args] : { shell: ['npm', ...args] });

const stampOf = ({ stamp, name }) => join(root, stamp ?? `build/setup/${name}.json`);

/** Golden vectors are large and never compiled in; the WebAssembly is made by a step of its own. */
const isData = (path) => /\.(safetensors|wasm)$/.test(path);

function hashPath(hash, path) {
  const full = join(root, path);
  const found = statSync(full, { throwIfNoEntry: false });
  if (found?.isDirectory()) {
    for (const name of readdirSync(full).sort()) if (!isData(name)) hashPath(hash, `${path}/${name}`);
  } else {
    const content = found ? readFileSync(full) : '';
    hash.update(`${path}\0${content.length}\0`).update(content);
  }
}

/** What a step makes is left out of what it is made from. */
function fingerprint({ from }) {
  const hash = createHash('sha256');
  for (const path of from) hashPath(hash, path);
  return hash.digest('hex');
}

function readStamp(step) {
  try {
    return JSON.parse(readFileSync(stampOf(step), 'utf8'));
  } catch {
    return { files: [] };
  }
}

function isCurrent(step) {
  const whole = steps.find(({ name }) => name === step.instead);
  if (whole && isCurrent(whole)) return true;
  const { hash, files } = readStamp(step);
  return [...(step.makes ?? []), ...files].every((path) => existsSync(join(root, path))) && hash === fingerprint(step);
}

/** All at once, also for one who reads it meanwhile. */
function writeWhole(path, content) {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(`${path}.new`, content);
  renameSync(`${path}.new`, path);
}

/** Moves what a step made to where it belongs and removes what it made before and does no longer. */
function publish({ into }, folder, before) {
  const made = readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(folder.length + 1));
  const files = into.flatMap((target) => made.map((file) => `${target}/${file}`.replaceAll('\\', '/')));
  for (const target of into)
    for (const file of made) writeWhole(join(root, target, file), readFileSync(join(folder, file)));
  for (const file of before) if (!files.includes(file)) rmSync(join(root, file), { force: true });
  return files;
}

const windows = process.platform === 'win32';
const children = new Set();

/** Runs Node. @throws with what it printed, when it fails */
function run(program) {
  const [command, args] = program.shell ? [program.shell[0], program.shell.slice(1)] : [process.execPath, program];
  return new Promise((resolve, reject) => {
    // In a group of its own, which `stop` ends as a whole: the compilers that it starts too.
    const child = spawn(command, args, { cwd: root, shell: Boolean(program.shell), detached: !windows });
    children.add(child);
    let output = '';
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding('utf8').on('data', (text) => (output += text));
    child.on('error', reject).on('close', (status) => {
      children.delete(child);
      if (status === 0) resolve();
      else reject(new Error(`${output}setup failed: ${[command, ...args].join(' ')}`));
    });
  });
}

async function build(step) {
  const start = performance.now();
  const hash = fingerprint(step);
  const { files: before } = readStamp(step);
  let files = [];
  // Without it the step is not current, whatever becomes of this process.
  rmSync(stampOf(step), { force: true });
  for (const other of steps)
    if (other.name === step.instead || other.instead === step.name) rmSync(stampOf(other), { force: true });
  // A folder of the root, as the targets are: source maps name the sources by their relative paths.
  const folder = join(root, `.setup-${step.name}`);
  if (step.torn && existsSync(folder)) rmSync(join(root, step.torn), { recursive: true, force: true });
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder);
  try {
    await run(step.run(folder));
    if (step.into) files = publish(step, folder, before);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  writeWhole(stampOf(step), JSON.stringify({ hash, files }));
  console.log(`${step.title} ... ${((performance.now() - start) / 1000).toFixed(1)} s`);
}

/** The steps that have to run, in the order of the table. */
function outdated(command, force) {
  const wanted = steps.filter((step) => (command === 'all' ? !step.instead : step.for.includes(command)));
  return wanted.filter((step) => (force && step.name !== 'install') || !isCurrent(step));
}

/** Runs steps as soon as what they need is there, as many at once as there are cores. */
async function runAll(todo) {
  const waiting = [...todo];
  const running = new Map();
  const next = () =>
    waiting.find(({ after = [] }) => !after.some((name) => running.has(name) || waiting.some((s) => s.name === name)));
  while (waiting.length > 0 || running.size > 0) {
    const step = running.size < Math.max(2, availableParallelism()) ? next() : undefined;
    if (!step) {
      await Promise.race(running.values());
      continue;
    }
    waiting.splice(waiting.indexOf(step), 1);
    const needed = step.missing?.() ?? [];
    if (needed.length > 0) {
      console.log(`${step.title} ... skipped, and its tests: install ${needed.join(' and ')}`);
      continue;
    }
    running.set(
      step.name,
      build(step).finally(() => running.delete(step.name)),
    );
  }
}

async function main() {
  const [command, ...flags] = process.argv.slice(2);
  if (!commands.includes(command) || flags.some((flag) => flag !== '--force')) {
    console.error(`usage: node scripts/setup.mjs ${commands.join('|')} [--force]`);
    return 64;
  }
  const force = flags.includes('--force');
  if (outdated(command, force).length === 0) return 0;
  const wait = (pid) => console.log(`Waiting for the set-up of process ${pid}`);
  // What another process has done meanwhile is not done again.
  await withLock(join(root, 'build', 'setup', 'lock'), () => runAll(outdated(command, force)), wait);
  return 0;
}

/** Ends all that still runs, and then this process: the lock is held until nothing writes any more. */
async function stop() {
  const ended = [...children].map((child) => once(child, 'close'));
  for (const child of children)
    if (windows) child.kill();
    else process.kill(-child.pid, 'SIGTERM');
  await Promise.all(ended);
  process.exit(1);
}

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.once(signal, stop);
try {
  process.exitCode = await main();
} catch (error) {
  console.error(error.message);
  await stop();
}
