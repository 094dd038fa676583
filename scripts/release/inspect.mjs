// What kind of file an addon is and what it needs of the system and the program that load it, for systems that are not at
// hand: Mach-O and PE are read here, ELF by readelf.
import { readFileSync, statSync } from 'node:fs';
import { symbols } from 'node-api-headers';
import { judgeNeeds, readNeeds } from '../addon-needs.mjs';

const mostBytes = 2_000_000;
const cString = (bytes, at) => bytes.toString('latin1', at, bytes.indexOf(0, at));

function readElf(bytes, path) {
  const arch = { 62: 'x64', 183: 'arm64' }[bytes.readUInt16LE(18)];
  const needs = readNeeds(path);
  return { format: 'ELF', arch, libraries: needs.libraries, fromProgram: needs.plain, needs };
}

/** Symbols that no library is named for are looked up in the program. */
function readMachO(bytes) {
  const arch = { 16777223: 'x64', 16777228: 'arm64' }[bytes.readUInt32LE(4)];
  const found = { format: 'Mach-O', arch, libraries: [], fromProgram: [], signed: false };
  const commands = bytes.readUInt32LE(16);
  for (let i = 0, at = 32; i < commands; i++, at += bytes.readUInt32LE(at + 4)) {
    const command = bytes.readUInt32LE(at);
    if (command === 0xc) found.libraries.push(cString(bytes, at + bytes.readUInt32LE(at + 8)));
    if (command === 0x1d) found.signed = true;
    if (command === 0x32) found.system = `${bytes.readUInt16LE(at + 14)}.${bytes[at + 13]}`;
    if (command !== 0x2) continue;
    const [table, count, strings] = [8, 12, 16].map((offset) => bytes.readUInt32LE(at + offset));
    for (let entry = table; entry < table + 16 * count; entry += 16) {
      const isUndefined = (bytes[entry + 4] & 0x0f) === 1;
      if (isUndefined && bytes[entry + 7] === 0xfe)
        found.fromProgram.push(cString(bytes, strings + bytes.readUInt32LE(entry)).slice(1));
    }
  }
  return found;
}

function readPe(bytes) {
  const header = bytes.readUInt32LE(60);
  const arch = { 34404: 'x64', 43620: 'arm64' }[bytes.readUInt16LE(header + 4)];
  const sections = header + 24 + bytes.readUInt16LE(header + 20);
  const offsetOf = (address) => {
    for (let i = 0, at = sections; i < bytes.readUInt16LE(header + 6); i++, at += 40) {
      const [size, begin, , offset] = [8, 12, 16, 20].map((field) => bytes.readUInt32LE(at + field));
      if (address >= begin && address < begin + size) return address - begin + offset;
    }
    throw new Error('an address lies in no section');
  };
  const found = { format: 'PE', arch, libraries: [], fromProgram: [] };
  const imports = offsetOf(bytes.readUInt32LE(header + 24 + 120));
  for (let at = imports; bytes.readUInt32LE(at + 12) !== 0; at += 20) {
    const library = cString(bytes, offsetOf(bytes.readUInt32LE(at + 12)));
    if (library.toLowerCase() !== 'node.exe') {
      found.libraries.push(library);
      continue;
    }
    for (let name = offsetOf(bytes.readUInt32LE(at)); bytes.readUInt32LE(name) !== 0; name += 8)
      found.fromProgram.push(cString(bytes, offsetOf(bytes.readUInt32LE(name)) + 2));
  }
  return found;
}

export function inspect(path) {
  const bytes = readFileSync(path);
  const magic = bytes.readUInt32BE(0);
  if (magic === 0x7f454c46) return readElf(bytes, path);
  if (magic === 0xcffaedfe) return readMachO(bytes);
  if (magic >>> 16 === 0x4d5a) return readPe(bytes);
  throw new Error(`${path} is no addon for any system`);
}

/** What every system of a kind has. */
const systems = {
  glibc: { format: 'ELF', library: /^lib(c|m|dl|pthread|rt)\.so\.\d$|^ld-linux-[a-z0-9-]+\.so\.\d$/ },
  musl: { format: 'ELF', library: /^libc\.so$/ },
  darwin: { format: 'Mach-O', library: /^\/usr\/lib\/libSystem\.B\.dylib$/ },
  win32: { format: 'PE', library: /^(kernel32|msvcrt|api-ms-win-core-synch-l1-2-0)\.dll$/i },
};

/** Those that every Node has that the package supports; musl has functions without versions, like Node. */
const nodeApi = new Set([...symbols.v8.js_native_api_symbols, ...symbols.v8.node_api_symbols]);

/** What keeps an addon from being released for a target; see targets.mjs. */
export function findFaults(path, { platform, arch, libc }) {
  const found = inspect(path);
  const wanted = systems[libc ?? platform];
  const faults = [];
  const expect = (holds, fault) => holds || faults.push(fault);
  const { size } = statSync(path);
  expect(size < mostBytes, `it has ${size} bytes, more than ${mostBytes}`);
  expect(found.format === wanted.format && found.arch === arch, `it is ${found.format} for ${found.arch}`);
  for (const library of found.libraries)
    expect(wanted.library.test(library), `it needs ${library}, which not every system has`);
  const calls = found.fromProgram.filter((name) => /^(napi|node_api)_/.test(name));
  expect(calls.length > 0, 'it calls nothing of Node-API');
  for (const name of libc === 'musl' ? calls : found.fromProgram)
    expect(nodeApi.has(name), `it calls ${name}, which is not in version 8 of Node-API`);
  if (libc === 'glibc') faults.push(...judgeNeeds(found.needs).newer);
  if (platform === 'darwin') {
    expect(Number.parseInt(found.system, 10) <= 11, `it is for macOS ${found.system}`);
    expect(found.signed || arch === 'x64', 'it is not signed, and 64-bit Arm runs nothing unsigned');
  }
  return faults;
}
