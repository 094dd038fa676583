// Platforms that this machine is not, by the environment variables that node-gyp-build takes for them, and packages that
// lack something.
import { spawnSync } from 'node:child_process';
import { chmodSync, copyFileSync, existsSync, mkdirSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { nodeVersions } from '../../../scripts/node-binary.mjs';
import { emulatedAddon, ensure, otherNode, Skipped, write } from './context.mjs';

const here = `${process.platform}-${process.arch}`;
const prebuildsOf = (folder) => join(folder, 'node_modules', 'flashattn', 'prebuilds');

/** An installed package that has an addon for linux-x64, the real one or a stand-in. */
function withAddon(context, name) {
  const folder = context.copyInstalled(name);
  const prebuilds = join(prebuildsOf(folder), 'linux-x64');
  if (!existsSync(prebuilds)) write(join(prebuilds, 'flashattn.glibc.node'), 'stands in for an addon');
  return folder;
}

/** WebAssembly computes, and the reason says why there is no CUDA. */
function fallsBack(name, env, says) {
  return {
    name,
    run(context) {
      const { device, reasons } = context.tryIn(withAddon(context, name), { env });
      ensure(device === 'wasm', `the device is ${device}`);
      const hint = reasons[0]?.hint ?? '';
      ensure(reasons[0]?.code === 'NO_ADDON' && says.test(hint), `the reason is ${JSON.stringify(reasons)}`);
    },
  };
}

const like = (platform, arch) => ({ npm_config_platform: platform, npm_config_arch: arch });

/** The addon of this platform is found by its name and loaded. */
function findsAddon(context) {
  if (here !== 'linux-x64' || !existsSync(emulatedAddon))
    throw new Skipped('there is no emulated addon: npm run setup');
  const folder = context.copyInstalled('emulated');
  const prebuilds = join(prebuildsOf(folder), here);
  rmSync(prebuilds, { recursive: true, force: true });
  mkdirSync(prebuilds, { recursive: true });
  copyFileSync(emulatedAddon, join(prebuilds, 'flashattn.glibc.node'));
  const { device } = context.tryIn(folder);
  ensure(device === 'cuda:0', `the device is ${device}`);
  context.tryIn(folder, { program: 'consumer.cjs', env: { PREBUILDS_ONLY: '1' } });
  const musl = context.tryIn(folder, { env: { LIBC: 'musl' } });
  ensure(musl.device === 'wasm', `with musl the device is ${musl.device}`);
}

/** The addon that the package brings loads, whether there is a GPU or not. */
function loadsAddon(context) {
  const prebuilds = join(prebuildsOf(context.installed), here);
  if (!existsSync(prebuilds)) throw new Skipped(`the tarball has no addon for ${here}: npm run prebuild`);
  const files = readdirSync(prebuilds);
  ensure(files.length === 1, `${prebuilds} has ${files.join(', ')}`);
  const { reasons } = context.tryIn(context.installed);
  ensure(!reasons.some(({ code }) => code === 'NO_ADDON'), `it does not load: ${JSON.stringify(reasons)}`);
}

/** Node for 64-bit Arm, under QEMU with Debian's libraries for it (qemu-user, libc6-arm64-cross, libstdc++6-arm64-cross). */
function runsOnArm(context) {
  const libraries = '/usr/aarch64-linux-gnu';
  if (here !== 'linux-x64' || spawnSync('qemu-aarch64', ['--version']).status !== 0 || !existsSync(libraries))
    throw new Skipped(`it needs qemu-aarch64 and ${libraries}, on linux-x64`);
  const folder = context.copyInstalled('arm64');
  const node = join(folder, 'node');
  const binary = otherNode(nodeVersions[1], 'arm64');
  write(node, `#!/bin/sh\nexec qemu-aarch64 -L ${libraries} '${binary}' "$@"\n`);
  chmodSync(node, 0o755);
  for (const program of ['consumer.mjs', 'consumer.cjs']) {
    const { device } = context.tryIn(folder, { program, node });
    ensure(device === 'wasm', `the device is ${device}`);
  }
  const cli = join(folder, 'node_modules', 'flashattn', 'dist', 'cli.js');
  for (const command of [['doctor'], ['verify', '--quick', '--group', 'golden']])
    context.run([cli, ...command, '--device', 'wasm'], { cwd: folder, node });
}

function survivesDamage(context) {
  if (process.platform !== 'linux') throw new Skipped('it would need an addon for this platform');
  const folder = context.copyInstalled('damaged');
  const prebuilds = join(prebuildsOf(folder), here);
  rmSync(prebuilds, { recursive: true, force: true });
  write(join(prebuilds, 'flashattn.glibc.node'), 'not an addon');
  const { device, reasons } = context.tryIn(folder);
  ensure(device === 'wasm' && /damaged/.test(reasons[0]?.hint), `the reason is ${JSON.stringify(reasons)}`);
}

function survivesWithoutLoader(context) {
  const folder = context.copyInstalled('no loader');
  const modules = join(folder, 'node_modules');
  for (const parent of [modules, join(modules, 'flashattn', 'node_modules')])
    rmSync(join(parent, 'node-gyp-build'), { recursive: true, force: true });
  const { device, reasons } = context.tryIn(folder);
  ensure(device === 'wasm' && /node-gyp-build/.test(reasons[0]?.hint), `the reason is ${JSON.stringify(reasons)}`);
}

export const platformChecks = [
  { name: 'the addon of the package loads', run: loadsAddon },
  { name: 'an addon in prebuilds is found', run: findsAddon },
  fallsBack('like musl', { ...like('linux', 'x64'), LIBC: 'musl' }, /needs glibc and this system has musl/),
  fallsBack('like macOS', like('darwin', 'arm64'), /linux-x64.*, not for darwin-arm64/),
  fallsBack('like Windows', like('win32', 'x64'), /linux-x64.*, not for win32-x64|damaged or for another platform/),
  fallsBack('like FreeBSD', like('freebsd', 'x64'), /linux-x64.*, not for freebsd-x64/),
  { name: 'linux-arm64, under QEMU', run: runsOnArm },
  { name: 'a damaged addon', run: survivesDamage },
  { name: 'without node-gyp-build', run: survivesWithoutLoader },
];
