// Brings a clone to the state that `npm start` and `npm test` need: dependencies, WebAssembly, dist/, build/ and, where
// there is a C++ compiler, the emulator that tests run the CUDA kernels on.
// Each step remembers a hash of what it was made from and runs again only when that changes (or with --force).
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { missingTools } from './build-addon.mjs';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const force = process.argv.includes('--force');
const wasm = ['relaxed', 'simd'].map((name) => `lib/backends/wasm/flashattn.${name}.wasm`);

const steps = [
  {
    name: 'install',
    title: 'Installing dependencies',
    // Inside node_modules, so that deleting the folder forgets it.
    stamp: 'node_modules/.flashattn-setup',
    from: ['package-lock.json'],
    makes: ['node_modules/@yowasp/clang/package.json'],
    run: () => npm(['ci', '--no-audit', '--no-fund', '--prefer-offline']),
  },
  {
    name: 'wasm',
    title: 'Compiling the WebAssembly kernels',
    stamp: 'build/setup/wasm',
    from: ['native/cpu', 'scripts/build-wasm.mjs', 'package-lock.json'],
    makes: wasm,
    run: () => node(['scripts/build-wasm.mjs']),
  },
  {
    name: 'library',
    title: 'Building dist/',
    stamp: 'build/setup/library',
    from: [...['lib', 'verify'], ...['tsdown.config.ts', 'tsconfig.json', 'package.json', 'package-lock.json']],
    makes: ['dist/index.js', 'dist/verify.js'],
    run: () => node([tsdown, '--config', 'tsdown.config.ts']),
  },
  {
    name: 'tools',
    title: 'Building the example, the benchmarks and the test programs',
    stamp: 'build/setup/tools',
    from: [
      ...['examples', 'bench', 'verify', 'test/fuzz', 'test/soak'],
      ...['tsdown.tools.config.ts', 'package-lock.json'],
    ],
    makes: ['examples/charlm', 'bench/attention', 'golden/run', 'device/verify', 'fuzz/run', 'soak/soak'].map(
      (name) => `build/${name}.js`,
    ),
    run: () => node([tsdown, '--config', 'tsdown.tools.config.ts']),
  },
  {
    name: 'emulator',
    title: 'Building the CUDA kernels for the emulator',
    stamp: 'build/setup/emulator',
    from: ['cuda', 'native/addon', 'CMakeLists.txt', 'scripts/build-addon.mjs', 'package-lock.json'],
    makes: ['build/emulator/Release/flashattn_emulator.node'],
    missing: () => missingTools({ emulator: true }),
    run: () => node(['scripts/build-addon.mjs', '--emulator']),
  },
];

const tsdown = 'node_modules/tsdown/dist/run.mjs';

function hashTree(hash, path) {
  const full = join(root, path);
  const entries = readdirSync(full, { withFileTypes: true }).sort((a, b) => (a.name < b.name ? -1 : 1));
  for (const entry of entries) hashPath(hash, `${path}/${entry.name}`, entry.isDirectory());
}

function hashPath(hash, path, isDirectory) {
  if (isDirectory) return hashTree(hash, path);
  if (path.endsWith('.safetensors')) return;
  hash
    .update(path)
    .update('\0')
    .update(readFileSync(join(root, path)))
    .update('\0');
}

function fingerprint(paths) {
  const hash = createHash('sha256');
  for (const path of paths) hashPath(hash, path, !path.includes('.'));
  return hash.digest('hex');
}

function run(command, args, options = {}) {
  const { status, error, stdout, stderr } = spawnSync(command, args, { cwd: root, encoding: 'utf8', ...options });
  if (status === 0) return;
  process.stderr.write(`${stdout ?? ''}${stderr ?? ''}${error ? `${error.message}\n` : ''}`);
  console.error(`setup failed: ${[command, ...args].join(' ')}`);
  process.exit(1);
}

const node = (args) => run(process.execPath, args);
// npm is a script next to node on every platform when npm started us; a shell finds it otherwise.
const npm = (args) =>
  process.env.npm_execpath
    ? run(process.execPath, [process.env.npm_execpath, ...args])
    : run('npm', args, { shell: true });

for (const { title, stamp, from, makes, missing = () => [], run: build } of steps) {
  const wanted = fingerprint(from);
  const stampPath = join(root, stamp);
  const current =
    makes.every((path) => existsSync(join(root, path))) &&
    existsSync(stampPath) &&
    readFileSync(stampPath, 'utf8') === wanted;
  if (current && !(force && title !== 'Installing dependencies')) continue;
  const needed = missing();
  if (needed.length > 0) {
    console.log(`${title} ... skipped, its tests too: install ${needed.join(' and ')}`);
    continue;
  }
  const start = performance.now();
  process.stdout.write(`${title} ... `);
  build();
  mkdirSync(dirname(stampPath), { recursive: true });
  writeFileSync(stampPath, wanted);
  console.log(`${((performance.now() - start) / 1000).toFixed(1)} s`);
}
