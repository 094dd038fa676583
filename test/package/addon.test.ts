/** Why there is no addon, what was tried, and what helps on this machine. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, afterEach, describe, expect, it, vi } from 'vitest';
import { threadsAddon } from '../../lib/backends/cpu/threads/search.js';
import { cudaAddon } from '../../lib/backends/cuda/search.js';
import { describeSearch, explainLoadError, listPrebuilds } from '../../lib/backends/shared/addon/search.js';
import { describeSystem, nameSystem } from '../../lib/backends/shared/addon/system.js';
import { architectureName } from '../../lib/cli/devices.js';
import { inspectHardware, stepFor } from '../../lib/cli/hardware.js';
import { runScript } from '../support/child.js';

const folder = mkdtempSync(join(tmpdir(), 'flashattn-'));
afterAll(() => rmSync(folder, { recursive: true }));
afterEach(() => vi.unstubAllEnvs());

/** A folder with these files. */
function make(name: string, files: Record<string, string>): string {
  const root = join(folder, name);
  mkdirSync(root, { recursive: true });
  for (const [path, content] of Object.entries(files)) {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), content);
  }
  return root;
}

describe('an addon that does not load', () => {
  const root = make('addons', { 'a.node': '' });
  const path = join(root, 'a.node');
  const explain = (message: string, given = false) => explainLoadError(cudaAddon, path, given, new Error(message));

  it.each([
    [`/lib/libc.so.6: version \`GLIBC_2.38' not found (required by ${path})`, 'GLIBC_TOO_OLD', 'glibc 2.38 or later'],
    [`Error relocating ${path}: __memcpy_chk: symbol not found`, 'MUSL', 'node:22-slim'],
    ['Error loading shared library ld-linux-x86-64.so.2: No such file or directory', 'MUSL', 'node:22-slim'],
    [`${path}: invalid ELF header`, 'WRONG_BINARY', 'install flashattn again'],
    [`${path}: wrong ELF class: ELFCLASS32`, 'WRONG_BINARY', 'damaged or for another platform'],
    [`${path}: file too short`, 'WRONG_BINARY', 'damaged'],
    [`dlopen(${path}, 0x0001): tried: '${path}' (slice is not valid mach-o file)`, 'WRONG_BINARY', 'damaged'],
    [`\\\\?\\${path} is not a valid Win32 application.`, 'WRONG_BINARY', 'damaged'],
    ['something else', 'LOAD_FAILED', 'install flashattn again'],
  ])('%s', (message, problem, step) => {
    const found = explain(`${message}\nand more`);
    expect(found).toEqual({ problem, missing: expect.stringContaining(step), tried: [{ path, result: message }] });
    expect(found.missing).toContain(`the addon ${path} does not load: ${message}: `);
  });

  it('may have been named by the user', () => {
    expect(explain('invalid ELF header', true).missing).toContain('correct or unset FLASHATTN_ADDON');
    const missing = explainLoadError(cudaAddon, join(root, 'b.node'), true, new Error('anything'));
    expect(missing).toMatchObject({ problem: 'NO_FILE', missing: expect.stringContaining('there is no such file') });
  });

  it('may be the one for native threads, which has another variable and other steps', () => {
    const explain = (message: string) => explainLoadError(threadsAddon, path, true, new Error(message)).missing;
    expect(explain('file too short')).toContain('correct or unset FLASHATTN_CPU_ADDON');
    expect(explain(`Error relocating ${path}: fcntl64: symbol not found`)).toContain('set LIBC=musl');
  });

  it('is reported with what was tried and found', async () => {
    const script = 'try { fa.zeros([1], { device: "cuda" }); } catch (error) { console.log(error.message); }';
    const { stdout } = await runScript(script, { FLASHATTN_ADDON: path });
    const lines = stdout.trim().split('\n');
    expect(lines[0]).toMatch(/^device "cuda" cannot be used: cuda \(NO_ADDON\): the addon .* does not load: /);
    expect(lines.slice(1).map((line) => line.split(':')[0])).toEqual(['  tried', '  found', '  system']);
    expect(lines[3]).toContain(`${process.platform}-${process.arch}`);
  });
});

describe('what was found', () => {
  it('lists the addons of a package', () => {
    const root = make('package', {
      'prebuilds/linux-x64/flashattn.glibc.node': '',
      'prebuilds/linux-x64/notes.txt': '',
      'prebuilds/linux-arm64/flashattn.glibc.node': '',
    });
    expect(listPrebuilds(root)).toEqual(['linux-arm64/flashattn.glibc.node', 'linux-x64/flashattn.glibc.node']);
    expect(listPrebuilds(join(root, 'dist'))).toEqual([]);
    expect(listPrebuilds(undefined)).toEqual([]);
  });

  it('names the system as node-gyp-build sees it', () => {
    expect(describeSystem()).toMatchObject({ platform: `${process.platform}-${process.arch}` });
    vi.stubEnv('npm_config_platform', 'linux');
    vi.stubEnv('npm_config_arch', 'arm64');
    vi.stubEnv('LIBC', 'musl');
    expect(nameSystem(describeSystem())).toBe('linux-arm64 with musl');
    vi.stubEnv('npm_config_platform', 'darwin');
    expect(nameSystem(describeSystem())).toBe('darwin-arm64');
    const tried = [{ path: '/x', result: 'is not there' }];
    const root = make('nothing', {});
    expect(describeSearch(tried, root).slice(0, 2)).toEqual([
      'tried: /x: is not there',
      `found: no addons in ${join(root, 'prebuilds')}`,
    ]);
    expect(describeSearch(tried, undefined)[1]).toBe('found: no package flashattn');
  });

  it.skipIf(process.platform !== 'linux')('knows the version of glibc', () => {
    const { libc, glibc } = describeSystem();
    if (libc === 'glibc') expect(glibc).toMatch(/^2\.\d+$/);
  });
});

describe('hardware', () => {
  const gpu = { 'sys/bus/pci/devices/0/vendor': '0x10de\n', 'sys/bus/pci/devices/0/class': '0x030200\n' };
  const bridge = { 'sys/bus/pci/devices/1/vendor': '0x10de\n', 'sys/bus/pci/devices/1/class': '0x068000\n' };
  const other = { 'sys/bus/pci/devices/2/vendor': '0x8086\n', 'sys/bus/pci/devices/2/class': '0x030000\n' };
  const version = 'NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n';
  const driver = { 'proc/driver/nvidia/version': version };

  it('is read from the file system', () => {
    expect(inspectHardware(make('none', { ...other }))).toEqual({ gpus: 0, container: false, wsl: false });
    expect(inspectHardware(make('gpu', { ...gpu, ...bridge, ...other, ...driver }))).toEqual({
      gpus: 1,
      driver: '580.65.06',
      container: false,
      wsl: false,
    });
    expect(inspectHardware(make('container', { '.dockerenv': '', 'dev/dxg': '' }))).toEqual({
      container: true,
      wsl: true,
    });
    const older = {
      'proc/driver/nvidia/version': 'NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue Jun\n',
    };
    expect(inspectHardware(make('older', older)).driver).toBe('535.54.03');
  });

  it('decides what helps', () => {
    const machine = { container: false, wsl: false };
    expect(stepFor('NO_DRIVER', { ...machine, gpus: 0 })).toContain('no NVIDIA GPU: nothing has to be done');
    expect(stepFor('NO_DRIVER', { ...machine, gpus: 2 })).toBe(
      'the PCI bus has 2 NVIDIA GPUs: install the NVIDIA driver',
    );
    expect(stepFor('NO_DRIVER', { gpus: 1, container: true, wsl: false, driver: '580.65.06' })).toContain('--gpus all');
    expect(stepFor('NO_DRIVER', { ...machine, wsl: true })).toContain('Windows');
    expect(stepFor('NO_DRIVER', machine)).toBeUndefined();
    expect(stepFor('DRIVER_TOO_OLD', { ...machine, gpus: 1 })).toBeUndefined();
  });

  it('has names for its architectures', () => {
    const names = ['7.5', '8.0', '8.6', '8.9', '9.0', '10.3', '12.0', '1.3'].map(architectureName);
    expect(names).toEqual([
      'Turing',
      'Ampere',
      'Ampere',
      'Ada Lovelace',
      'Hopper',
      'Blackwell',
      'Blackwell',
      'unknown',
    ]);
  });
});
