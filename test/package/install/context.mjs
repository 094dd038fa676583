// Folders, commands and expectations of the install matrix.
import { spawnSync } from 'node:child_process';
import { chmodSync, cpSync, existsSync, mkdirSync, mkdtempSync, realpathSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { nodeBinary } from '../../../scripts/node-binary.mjs';
import { packAll } from '../../../scripts/pack.mjs';

export const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..', '..');
const programs = join(root, 'test', 'package', 'install', 'programs');

/** The emulated addon: stands in for the CUDA addon, on any machine. */
export const emulatedAddon = join(root, 'build', 'emulator', 'Release', 'flashattn_emulator.node');

/** A check that cannot be made here, and why. */
export class Skipped extends Error {}

/** Another Node, where it can be had. */
export function otherNode(version, arch) {
  try {
    return nodeBinary(version, arch);
  } catch (error) {
    throw new Skipped(error.message);
  }
}

/** The folder of a package of the npm registry, installed for all checks without running its scripts. */
export function installTool(context, name, version) {
  const prefix = join(context.work, `tool-${name.replaceAll(/\W+/g, '-')}`);
  const flags = ['--no-audit', '--no-fund', '--ignore-scripts', '--prefer-offline'];
  try {
    context.npm(['install', '--prefix', prefix, ...flags, `${name}@${version}`], { cwd: context.work });
  } catch (error) {
    throw new Skipped(`${name} cannot be installed: ${error.message}`);
  }
  return join(prefix, 'node_modules', name);
}

export function ensure(condition, message) {
  if (!condition) throw new Error(message);
}

/** How to run npm with any version of Node. */
function findNpm() {
  if (process.env.npm_execpath?.endsWith('npm-cli.js')) return process.env.npm_execpath;
  for (const folder of (process.env.PATH ?? '').split(delimiter))
    for (const path of [join(folder, 'npm'), join(folder, 'node_modules', 'npm', 'bin', 'npm-cli.js')])
      if (existsSync(path) && realpathSync(path).endsWith('npm-cli.js')) return realpathSync(path);
  throw new Error('npm is not on the PATH');
}

const npmCli = findNpm();

// Where npm may look for packages and whom it trusts there; everything else that it set for this process is not for the
// ones that are tried.
const keptSettings = new Set([
  ...['registry', 'cache', 'cafile', 'userconfig', 'globalconfig'].map((x) => `npm_config_${x}`),
  'node_extra_ca_certs',
]);

/** The environment of a stranger's shell. */
function cleanEnvironment(more) {
  const dropped = (name) =>
    /^(npm_|FLASHATTN_|VITEST|NODE_|LIBC$|PREBUILDS_ONLY$)/i.test(name) && !keptSettings.has(name.toLowerCase());
  const kept = Object.entries(process.env).filter(([name]) => !dropped(name));
  return { ...Object.fromEntries(kept), ...more };
}

export class Context {
  /** Removed at the end. */
  work = mkdtempSync(join(realpathSync(tmpdir()), 'flashattn-install-'));
  /** An npm cache that only these checks fill. */
  cache = join(this.work, 'cache');
  #installed;

  constructor(tarball) {
    chmodSync(this.work, 0o755); // for the check that runs as another user
    this.tarball = tarball ?? packAll(this.work).tarballs[0];
  }

  dispose() {
    rmSync(this.work, { recursive: true, force: true });
  }

  /** A new folder with the programs in it. */
  folder(name) {
    const path = join(this.work, name.replaceAll(/[^\w.]+/g, '-'));
    mkdirSync(path);
    cpSync(programs, path, { recursive: true });
    return path;
  }

  /** Runs node. @throws when it fails, with what it printed */
  run(args, { cwd, env = {}, node = process.execPath, expected = 0, ...options } = {}) {
    const { status, signal, error, stdout, stderr } = spawnSync(node, args, {
      cwd,
      encoding: 'utf8',
      env: cleanEnvironment(env),
      timeout: 120_000,
      ...options,
    });
    if (error) throw error;
    const lines = `${stdout}${stderr}`.trim().split('\n').slice(-6).join(' | ');
    ensure(status === expected, `${args.slice(0, 3).join(' ')} ended with ${signal ?? status}: ${lines}`);
    return { stdout, stderr };
  }

  npm(args, options) {
    return this.run([npmCli, ...args], { env: { npm_config_update_notifier: 'false' }, ...options });
  }

  install(cwd, { flags = [], ...options } = {}) {
    const quiet = ['--no-audit', '--no-fund', '--prefer-offline'];
    return this.npm(['install', ...quiet, '--cache', this.cache, ...flags, this.tarball], { cwd, ...options });
  }

  /** A folder with the package that checks may share as long as they leave it as it is. */
  get installed() {
    if (!this.#installed) {
      const folder = this.folder('shared');
      this.install(folder);
      this.#installed = folder;
    }
    return this.#installed;
  }

  /** A copy of it to change. */
  copyInstalled(name) {
    const path = join(this.work, name.replaceAll(/[^\w.]+/g, '-'));
    cpSync(this.installed, path, { recursive: true });
    return path;
  }

  /** What a program printed, as JSON. */
  ask(folder, program, options) {
    const { stdout, stderr } = this.run([program], { cwd: folder, ...options });
    ensure(stderr === '', `${program} printed to stderr: ${stderr.trim().split('\n')[0]}`);
    return stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line));
  }

  /** The package computes, at least on WebAssembly. */
  tryIn(folder, { program = 'consumer.mjs', ...options } = {}) {
    const [report] = this.ask(folder, program, options);
    ensure(String(report.out) === '1,2.5', `${program} gave ${JSON.stringify(report)}`);
    return report;
  }
}

export function write(path, content) {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, content);
}
