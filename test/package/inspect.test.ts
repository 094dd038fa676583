/** What an addon for another system is and needs, read from its file. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';

interface Target {
  readonly platform: string;
  readonly arch: string;
  readonly libc?: string;
}

interface Script {
  inspect(path: string): {
    readonly format: string;
    readonly arch: string;
    readonly libraries: readonly string[];
    readonly fromProgram: readonly string[];
  };
  findFaults(path: string, target: Target): readonly string[];
}

const script = new URL('../../scripts/release/inspect.mjs', import.meta.url).href;
const { inspect, findFaults } = (await import(script)) as Script;

const folder = mkdtempSync(join(tmpdir(), 'flashattn-inspect-'));
afterAll(() => rmSync(folder, { recursive: true }));

function save(name: string, bytes: Buffer): string {
  const path = join(folder, name);
  writeFileSync(path, bytes);
  return path;
}

const words = (...values: number[]) => Buffer.from(Uint32Array.from(values).buffer);
const padded = (text: string, size: number) => Buffer.concat([Buffer.from(text), Buffer.alloc(size - text.length)]);

interface MachO {
  readonly cpu?: number;
  readonly library?: string;
  readonly symbol?: string;
  readonly signed?: boolean;
  readonly system?: number;
}

/** A library for macOS with one symbol that it looks up in the program. */
function machO({ cpu = 0x0100000c, library, symbol = '_napi_wrap', signed = true, system = 11 }: MachO): Buffer {
  const name = padded(library ?? '/usr/lib/libSystem.B.dylib', 40);
  const load = Buffer.concat([words(0xc, 64, 24, 0, 0, 0), name]);
  const version = words(0x32, 24, 1, system << 16, system << 16, 0);
  const signature = signed ? words(0x1d, 16, 0, 0) : Buffer.alloc(0);
  const count = signed ? 4 : 3;
  const table = 32 + load.length + version.length + signature.length + 24;
  const symbols = words(0x2, 24, table, 1, table + 16, 64);
  const entry = Buffer.concat([words(1), Buffer.from([0x01, 0, 0, 0xfe]), words(0, 0)]);
  const header = words(0xfeedfacf, cpu, 0, 6, count, 0, 0, 0);
  return Buffer.concat([header, load, version, signature, symbols, entry, padded(`\0${symbol}`, 64)]);
}

/** A library for Windows that imports functions of these files. */
function pe(imports: Readonly<Record<string, readonly string[]>>): Buffer {
  const bytes = Buffer.alloc(4096);
  const [header, section] = [128, 0x1000];
  bytes.write('MZ');
  bytes.writeUInt32LE(header, 60);
  bytes.write('PE', header);
  bytes.writeUInt16LE(0x8664, header + 4);
  bytes.writeUInt16LE(1, header + 6);
  bytes.writeUInt16LE(240, header + 20);
  bytes.writeUInt32LE(section, header + 24 + 120);
  // The section's addresses begin at 0x1000 and its bytes at 1024.
  const entry = header + 24 + 240;
  for (const [at, value] of Object.entries({ 8: 3072, 12: section, 16: 3072, 20: 1024 }))
    bytes.writeUInt32LE(value, entry + Number(at));
  let free = 512;
  const put = (write: (at: number) => number) => {
    const at = free;
    free += write(1024 + at);
    return section + at;
  };
  const text = (value: string, skip = 0) => put((at) => bytes.write(`${value}\0`, at + skip) + skip);
  for (const [i, [file, names]] of Object.entries(imports).entries()) {
    const addresses = names.map((name) => text(name, 2));
    const list = put((at) => {
      for (const [n, address] of addresses.entries()) bytes.writeUInt32LE(address, at + 8 * n);
      return 8 * (addresses.length + 1);
    });
    bytes.writeUInt32LE(list, 1024 + 20 * i);
    bytes.writeUInt32LE(text(file), 1024 + 20 * i + 12);
  }
  return bytes;
}

const mac = { platform: 'darwin', arch: 'arm64' };
const windows = { platform: 'win32', arch: 'x64' };

describe('an addon for macOS', () => {
  const faults = (name: string, options: MachO, target: Target = mac) => findFaults(save(name, machO(options)), target);

  it('is read', () => {
    expect(inspect(save('fine', machO({})))).toMatchObject({
      format: 'Mach-O',
      arch: 'arm64',
      libraries: ['/usr/lib/libSystem.B.dylib'],
      fromProgram: ['napi_wrap'],
    });
    expect(faults('fine', {})).toEqual([]);
  });

  it('needs what every system has, and is signed', () => {
    expect(faults('libc++', { library: '/usr/lib/libc++.1.dylib' })).toEqual([
      'it needs /usr/lib/libc++.1.dylib, which not every system has',
    ]);
    expect(faults('symbol', { symbol: '_memcpy' })).toEqual([
      'it calls nothing of Node-API',
      'it calls memcpy, which is not in version 8 of Node-API',
    ]);
    expect(faults('newer', { system: 14 })).toEqual(['it is for macOS 14.0']);
    expect(faults('unsigned', { signed: false })).toEqual(['it is not signed, and 64-bit Arm runs nothing unsigned']);
    expect(faults('x64', { cpu: 0x01000007 })).toEqual(['it is Mach-O for x64']);
    expect(faults('elsewhere', {}, { platform: 'linux', arch: 'arm64', libc: 'musl' })[0]).toBe(
      'it is Mach-O for arm64',
    );
  });
});

describe('an addon for Windows', () => {
  it('is read, and needs what every system has', () => {
    const fine = save('fine.node', pe({ 'NODE.EXE': ['napi_wrap', 'napi_throw'], 'KERNEL32.dll': ['Sleep'] }));
    expect(inspect(fine)).toEqual({
      format: 'PE',
      arch: 'x64',
      libraries: ['KERNEL32.dll'],
      fromProgram: ['napi_wrap', 'napi_throw'],
    });
    expect(findFaults(fine, windows)).toEqual([]);
    const others = save('others.node', pe({ 'node.exe': ['napi_not_yet'], 'libc++.dll': ['f'] }));
    expect(findFaults(others, windows)).toEqual([
      'it needs libc++.dll, which not every system has',
      'it calls napi_not_yet, which is not in version 8 of Node-API',
    ]);
  });
});

it('a file of no such kind is refused', () => {
  expect(() => inspect(save('text', Buffer.from('no addon at all')))).toThrow('is no addon for any system');
});
