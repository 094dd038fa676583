// The package and its optional dependency, the CUDA addon for a platform, as a registry would serve them. The emulated
// addon stands in for the CUDA addon: where it is found and loaded there is a device cuda:0.
import { copyFileSync, existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { emulatedAddon, ensure, installTool, write } from './context.mjs';
import { startRegistry } from './registry.mjs';

const here = `${process.platform}-${process.arch}`;
const cudaName = 'flashattn-cuda-linux-x64';

const readManifest = (folder) => JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'));
const moduleOf = (folder, name) => join(folder, 'node_modules', name);
const hasCuda = (folder) => existsSync(moduleOf(folder, cudaName));

const canStandIn = here === 'linux-x64' && existsSync(emulatedAddon);

/** A CUDA package of this version around the emulated addon, where there is one. */
function packStandIn(context, version) {
  const folder = join(context.work, `stand-in-${version}`);
  const tarball = join(context.work, `${cudaName}-${version}.tgz`);
  const manifest = { name: cudaName, version, os: ['linux'], cpu: ['x64'], libc: ['glibc'] };
  if (!existsSync(tarball)) {
    const prebuilds = join(folder, 'prebuilds', 'linux-x64');
    mkdirSync(prebuilds, { recursive: true });
    write(join(folder, 'package.json'), JSON.stringify(manifest));
    if (canStandIn) copyFileSync(emulatedAddon, join(prebuilds, 'flashattn.glibc.node'));
    else write(join(prebuilds, 'flashattn.glibc.node'), 'no addon');
    context.npm(['pack', '--pack-destination', context.work], { cwd: folder });
  }
  return { manifest, tarball };
}

const packed = (context) => ({
  manifest: readManifest(moduleOf(context.installed, 'flashattn')),
  tarball: context.tarball,
});

/** What flashattn brings along, for package managers that fetch it all the same. */
function packLoader(context) {
  const folder = join(moduleOf(context.installed, 'flashattn'), 'node_modules', 'node-gyp-build');
  const manifest = readManifest(folder);
  const tarball = join(context.work, `node-gyp-build-${manifest.version}.tgz`);
  if (!existsSync(tarball)) context.npm(['pack', '--pack-destination', context.work], { cwd: folder });
  return { manifest, tarball };
}

/** Runs a check while a registry has flashattn and the CUDA packages of these versions. */
async function withRegistry(context, versions, check) {
  const main = packed(context);
  const cuda = (versions ?? [main.manifest.version]).map((version) => packStandIn(context, version));
  const { address, stop } = await startRegistry([main, ...cuda, packLoader(context)]);
  try {
    return await check(address);
  } finally {
    await stop();
  }
}

/** npm install flashattn, and what came of it. */
function fromRegistry(name, { flags = [], versions, expects }) {
  return {
    name: `from a registry, ${name}`,
    run: (context) =>
      withRegistry(context, versions, (address) => {
        const folder = context.folder(`registry ${name}`);
        const cache = join(folder, 'cache');
        const quiet = ['--no-audit', '--no-fund', '--registry', address, '--cache', cache];
        context.npm(['install', ...quiet, ...flags, 'flashattn'], { cwd: folder });
        expects(context, folder);
      }),
  };
}

function expectCuda(context, folder) {
  const { device, reasons } = context.tryIn(folder);
  if (canStandIn) ensure(device === 'cuda:0', `the device is ${device}: ${JSON.stringify(reasons)}`);
  else ensure(/does not load/.test(reasons[0]?.hint), `it is not found: ${JSON.stringify(reasons)}`);
}

/** Another device than CUDA, with this reason. */
function expectNone(says, options) {
  return (context, folder) => {
    const { device, reasons } = context.tryIn(folder, options);
    ensure(/^(cpu|wasm)$/.test(device), `the device is ${device}`);
    const reason = reasons.find((reason) => reason.device === 'cuda');
    ensure(reason?.code === 'NO_ADDON' && says.test(reason.hint), `the reason is ${JSON.stringify(reasons)}`);
  };
}

function expectNoPackage(says, options) {
  return (context, folder) => {
    ensure(!hasCuda(folder), `${cudaName} is installed`);
    expectNone(says, options)(context, folder);
  };
}

const notInstalled = /the package flashattn-cuda-linux-x64 is not installed: npm install --include=optional/;
const like = (platform, arch) => ({ env: { npm_config_platform: platform, npm_config_arch: arch } });

/** Offline it is two files. */
function twoFiles(context) {
  const { manifest } = packed(context);
  const { tarball } = packStandIn(context, manifest.version);
  const folder = context.folder('two files');
  const flags = ['--offline', '--cache', join(folder, 'empty-cache'), tarball];
  context.install(folder, { flags });
  expectCuda(context, folder);
}

/** One of another version beside it, which nothing but a hand could have put there. */
function otherVersion(context) {
  const { tarball } = packStandIn(context, '9.9.9');
  const folder = context.folder('other version');
  context.install(folder, { flags: ['--offline', '--cache', join(folder, 'empty-cache')] });
  context.npm(['install', '--no-save', '--offline', '--force', context.tarball, tarball], { cwd: folder });
  const { version } = packed(context).manifest;
  const says = new RegExp(`${cudaName} is of version 9.9.9 and flashattn of ${version}: npm install ${cudaName}@`);
  expectNone(says)(context, folder);
}

/** A package manager, at a version that is known to install without running scripts. */
function managed(name, version, args) {
  return {
    name: `${name} ${version}`,
    run: (context) => {
      const itself = installTool(context, name, version);
      const program = join(itself, readManifest(itself).bin[name]);
      return withRegistry(context, undefined, (address) => {
        const folder = context.folder(name);
        write(join(folder, 'package.json'), JSON.stringify({ private: true }));
        const env = { npm_config_registry: address, YARN_REGISTRY: address, HOME: folder, XDG_DATA_HOME: folder };
        context.run([program, ...args(folder), 'flashattn'], { cwd: folder, env });
        expectCuda(context, folder);
      });
    },
  };
}

export const packageChecks = [
  fromRegistry('with the CUDA package', { expects: expectCuda }),
  fromRegistry('--omit=optional', { flags: ['--omit=optional'], expects: expectNoPackage(notInstalled) }),
  fromRegistry('without the CUDA package', { versions: [], expects: expectNoPackage(notInstalled) }),
  fromRegistry('that has another version of it', { versions: ['9.9.9'], expects: expectNoPackage(notInstalled) }),
  fromRegistry('for musl', {
    flags: ['--libc=musl'],
    expects: expectNoPackage(/needs glibc and this system has musl/, { env: { LIBC: 'musl' } }),
  }),
  fromRegistry('for macOS', {
    flags: ['--os=darwin', '--cpu=arm64'],
    expects: expectNoPackage(/there is a CUDA addon for linux-x64, not for darwin-arm64/, like('darwin', 'arm64')),
  }),
  { name: 'two files, offline', run: twoFiles },
  { name: 'a CUDA package of another version', run: otherVersion },
  managed('pnpm', '10.33.0', (folder) => ['add', '--store-dir', join(folder, 'store'), '--reporter', 'append-only']),
  managed('yarn', '1.22.22', (folder) => ['add', '--cache-folder', join(folder, 'cache'), '--non-interactive']),
];
