// Ways to install.
import { chmodSync, existsSync, readdirSync, readFileSync, statSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { nodeVersions } from '../../../scripts/node-binary.mjs';
import { ensure, otherNode, Skipped } from './context.mjs';

const packageOf = (folder) => join(folder, 'node_modules', 'flashattn');

const readManifest = ({ installed }) => JSON.parse(readFileSync(join(packageOf(installed), 'package.json'), 'utf8'));

function checkContents(context) {
  const folder = packageOf(context.installed);
  const manifest = readManifest(context);
  for (const hook of ['preinstall', 'install', 'postinstall'])
    ensure(manifest.scripts?.[hook] === undefined, `package.json has the script ${hook}`);
  // npm runs node-gyp for one.
  ensure(!existsSync(join(folder, 'binding.gyp')), 'binding.gyp is in the package');
  for (const file of ['flashattn.relaxed.wasm', 'flashattn.simd.wasm', 'index.d.ts', 'verify.js'])
    ensure(existsSync(join(folder, 'dist', file)), `dist/${file} is not in the package`);
}

/** A tarball that brings what it depends on needs no registry. */
function tryAirGapped(context) {
  const { bundleDependencies = [], dependencies = {} } = readManifest(context);
  const missing = Object.keys(dependencies).filter((name) => !bundleDependencies.includes(name));
  if (missing.length > 0) throw new Skipped(`the tarball does not bring ${missing.join(', ')}`);
  const folder = context.folder('air-gapped');
  context.install(folder, { flags: ['--offline', '--cache', join(folder, 'empty-cache')] });
  context.tryIn(folder);
}

function* allPaths(folder) {
  yield folder;
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) yield* allPaths(path);
    else if (entry.isFile()) yield path;
  }
}

/** Nobody but root may write where it is not allowed: there it runs as another user. */
function asOtherUser() {
  return process.getuid?.() === 0 ? { uid: 65534, gid: 65534 } : {};
}

function tryReadOnly(context) {
  const folder = context.copyInstalled('read-only');
  const paths = [...allPaths(join(folder, 'node_modules'))];
  for (const path of paths) chmodSync(path, statSync(path).mode & ~0o222);
  try {
    context.tryIn(folder, { ...asOtherUser(), env: { HOME: '/nonexistent' } });
    context.tryIn(folder, { ...asOtherUser(), program: 'consumer.cjs', env: { HOME: '/nonexistent' } });
  } finally {
    for (const path of paths) chmodSync(path, statSync(path).mode | 0o200);
  }
}

function tryWithoutCompiler(context) {
  if (process.platform === 'win32') throw new Skipped('compilers are not found through PATH on Windows');
  const bin = context.folder('bin');
  symlinkSync(process.execPath, join(bin, 'node'));
  const folder = context.folder('no compiler');
  context.install(folder, { env: { PATH: bin, CC: '/nonexistent', CXX: '/nonexistent' } });
  context.tryIn(folder, { env: { PATH: bin } });
}

function tryInstall(name, flags) {
  return {
    name,
    run(context) {
      const folder = context.folder(name);
      context.install(folder, { flags });
      context.tryIn(folder);
    },
  };
}

const tryNode = (version) => ({
  name: `node ${version}`,
  run(context) {
    const node = otherNode(version);
    const folder = context.folder(`node ${version}`);
    context.install(folder, { node });
    for (const program of ['consumer.mjs', 'consumer.cjs']) context.tryIn(folder, { program, node });
    context.run([join(packageOf(folder), 'dist', 'cli.js'), 'doctor', '--device', 'wasm'], { cwd: folder, node });
  },
});

export const npmChecks = [
  tryInstall('npm install', []),
  { name: 'what the package contains', run: checkContents },
  tryInstall('npm install --ignore-scripts', ['--ignore-scripts']),
  tryInstall('npm install --omit=optional', ['--omit=optional']),
  tryInstall('npm install --offline, from the cache', ['--offline']),
  { name: 'npm install --offline, with an empty cache', run: tryAirGapped },
  tryInstall('npm install --omit=dev --install-strategy=linked', ['--omit=dev', '--install-strategy=linked']),
  { name: 'node_modules that nobody may write', run: tryReadOnly },
  { name: 'no compiler on the PATH', run: tryWithoutCompiler },
  ...nodeVersions.map(tryNode),
];
