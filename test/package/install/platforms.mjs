// The addon for native threads on the platforms that can be tried here, and as on platforms that this machine is not, by
// the environment variables that node-gyp-build takes for them; and packages that lack something.
import { spawnSync } from 'node:child_process';
import { chmodSync, existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { nodeVersions } from '../../../scripts/node-binary.mjs';
import { ensure, otherNode, Skipped, write } from './context.mjs';

const here = `${process.platform}-${process.arch}`;
const prebuildsOf = (folder) => join(folder, 'node_modules', 'flashattn', 'addons', 'cpu', 'prebuilds');
const cli = (folder) => join(folder, 'node_modules', 'flashattn', 'dist', 'cli.js');

/** The addon that the tarball brings for a platform. */
function needAddon(context, platform) {
  if (!existsSync(join(prebuildsOf(context.installed), platform)))
    throw new Skipped(`the tarball has no addon for ${platform}: npm run prebuild:all`);
}

const reasonOf = ({ reasons }, device) => reasons.find((reason) => reason.device === device) ?? {};

function ensureReason(report, device, code, says) {
  const reason = reasonOf(report, device);
  ensure(reason.code === code && says.test(reason.hint), `the reasons are ${JSON.stringify(report.reasons)}`);
}

/** No compiler, no CUDA: native threads, in every instruction set that this processor has. */
function computes(context) {
  needAddon(context, here);
  const folder = context.copyInstalled('threads');
  for (const program of ['consumer.mjs', 'consumer.cjs']) {
    const { device } = context.tryIn(folder, { program, env: { PREBUILDS_ONLY: '1' } });
    ensure(device === 'cpu', `the device is ${device}`);
  }
  const { stdout } = context.run([cli(folder), 'doctor', '--device', 'cpu', '--json'], { cwd: folder });
  const { supported } = JSON.parse(stdout).cpuAddon;
  for (const name of supported) {
    const env = { FLASHATTN_CPU: name };
    const report = context.tryIn(folder, { env });
    ensure(report.instructionSet === name, `with FLASHATTN_CPU=${name} it is ${report.instructionSet}`);
    context.run([cli(folder), 'verify', '--device', 'cpu', '--quick', '--group', 'golden'], { cwd: folder, env });
  }
}

/** Whether the tarball has the addon for a platform, and for one of its C libraries where that matters. */
function brings(context, platform, libc) {
  const folder = join(prebuildsOf(context.installed), platform);
  return existsSync(folder) && readdirSync(folder).some((file) => libc === undefined || file.includes(`.${libc}.`));
}

/**
 * As on another platform: WebAssembly computes, and the reason says why there are no native threads. The addon of that
 * platform does not load here (`says` why), or the tarball has none.
 */
function fallsBack(name, { platform, arch, libc }, says) {
  return {
    name,
    run(context) {
      needAddon(context, here);
      const env = { npm_config_platform: platform, npm_config_arch: arch, ...(libc && { LIBC: libc }) };
      const report = context.tryIn(context.installed, { env });
      ensure(report.device === 'wasm', `the device is ${report.device}`);
      const place = `${platform}-${arch}`;
      if (brings(context, place, libc)) ensureReason(report, 'cpu', 'LOAD_FAILED', says);
      else ensureReason(report, 'cpu', 'NO_ADDON', new RegExp(`linux-x64.*, not for ${place}.*: use wasm`));
    },
  };
}

/** A program that starts Node under QEMU. */
function emulatedNode(context, name, qemu, node) {
  if (here !== 'linux-x64' || spawnSync(qemu[0], ['--version']).status !== 0)
    throw new Skipped(`it needs ${qemu[0]}, on linux-x64`);
  const program = join(context.folder(name), 'node');
  write(program, `#!/bin/sh\nexec ${qemu.join(' ')} '${node}' "$@"\n`);
  chmodSync(program, 0o755);
  return program;
}

/** 64-bit Arm with Debian's libraries for it (qemu-user, libc6-arm64-cross, libstdc++6-arm64-cross). */
function runsOnArm(context) {
  const libraries = '/usr/aarch64-linux-gnu';
  if (!existsSync(libraries)) throw new Skipped(`it needs ${libraries}`);
  const node = emulatedNode(context, 'arm64', ['qemu-aarch64', '-L', libraries], otherNode(nodeVersions[1], 'arm64'));
  const folder = context.installed;
  const hasAddon = existsSync(join(prebuildsOf(folder), 'linux-arm64'));
  for (const program of ['consumer.mjs', 'consumer.cjs']) {
    const { device, instructionSet } = context.tryIn(folder, { program, node });
    ensure(hasAddon ? /^neon/.test(instructionSet) : device === 'wasm', `the device is ${device} ${instructionSet}`);
  }
  for (const device of hasAddon ? ['cpu', 'wasm'] : ['wasm'])
    context.run([cli(folder), 'verify', '--quick', '--group', 'golden', '--device', device], { cwd: folder, node });
}

/** A processor of this model. */
function onProcessor(model, expects) {
  return {
    name: `on ${model}, under QEMU`,
    run(context) {
      needAddon(context, 'linux-x64');
      const node = emulatedNode(context, model, ['qemu-x86_64', '-cpu', model], process.execPath);
      // QEMU says what of a model it cannot do.
      const { stdout } = context.run(['consumer.mjs'], { cwd: context.installed, node });
      expects(JSON.parse(stdout));
    },
  };
}

const picks = (name) => (report) =>
  ensure(report.instructionSet === name, `it is ${report.device} with ${report.instructionSet}`);

function hasNone(report) {
  ensure(report.device === 'wasm', `the device is ${report.device}`);
  ensureReason(report, 'cpu', 'NO_INSTRUCTION_SET', /this processor has none of them: use wasm/);
}

function survivesDamage(context) {
  needAddon(context, here);
  const folder = context.copyInstalled('damaged');
  const prebuilds = join(prebuildsOf(folder), here);
  for (const file of readdirSync(prebuilds)) write(join(prebuilds, file), 'not an addon');
  const report = context.tryIn(folder);
  ensure(report.device === 'wasm', `the device is ${report.device}`);
  ensureReason(report, 'cpu', 'LOAD_FAILED', /damaged or for another platform: install flashattn again/);
  const { stdout } = context.run([cli(folder), 'doctor', '--json'], { cwd: folder });
  ensure(JSON.parse(stdout).cpuAddon.problem === 'WRONG_BINARY', 'doctor says something else');
}

function survivesWithoutLoader(context) {
  const folder = context.copyInstalled('no loader');
  const modules = join(folder, 'node_modules');
  for (const parent of [modules, join(modules, 'flashattn', 'node_modules')])
    rmSync(join(parent, 'node-gyp-build'), { recursive: true, force: true });
  const report = context.tryIn(folder);
  ensure(report.device === 'wasm', `the device is ${report.device}`);
  for (const device of ['cuda', 'cpu']) ensureReason(report, device, 'NO_ADDON', /node-gyp-build/);
}

const wrongBinary = /damaged or for another platform/;

export const platformChecks = [
  { name: 'native threads', run: computes },
  fallsBack('like musl', { platform: 'linux', arch: 'x64', libc: 'musl' }, /does not load: .*libc\.so/),
  fallsBack('like macOS', { platform: 'darwin', arch: 'arm64' }, wrongBinary),
  fallsBack('like Windows', { platform: 'win32', arch: 'x64' }, wrongBinary),
  fallsBack('like FreeBSD', { platform: 'freebsd', arch: 'x64' }),
  { name: 'linux-arm64, under QEMU', run: runsOnArm },
  onProcessor('Haswell', picks('avx2')),
  onProcessor('SandyBridge', hasNone),
  onProcessor('Nehalem', hasNone),
  { name: 'a damaged addon', run: survivesDamage },
  { name: 'without node-gyp-build', run: survivesWithoutLoader },
];
