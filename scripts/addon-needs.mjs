// What an addon for Linux needs of the system that loads it, read from the file by readelf of binutils.
import { spawnSync } from 'node:child_process';

/** The oldest glibc that releases run on: that of RHEL 8 and Debian 10, and what Node's own binaries need. */
export const releaseFloor = '2.28';

// Every glibc has them; a CUDA library, libcuda included, would keep the addon from loading where there is no CUDA.
const allowedLibraries = [
  /^libc\.so\.6$/,
  /^libm\.so\.6$/,
  /^libdl\.so\.2$/,
  /^libpthread\.so\.0$/,
  /^librt\.so\.1$/,
  /^ld-linux-[a-z0-9-]+\.so\.\d$/,
];

const numbers = (version) => version.split('.').map(Number);

/** Negative when `a` is older than `b`. */
export function compareVersions(a, b) {
  const [left, right] = [numbers(a), numbers(b)];
  for (let i = 0; i < Math.max(left.length, right.length); i++) {
    const difference = (left[i] ?? 0) - (right[i] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
}

function readelf(flags, path) {
  // Its messages are translated otherwise.
  const env = { ...process.env, LC_ALL: 'C' };
  const { status, error, stdout, stderr } = spawnSync('readelf', ['--wide', ...flags, path], { encoding: 'utf8', env });
  if (error) throw new Error(`readelf of binutils is needed: ${error.message}`);
  if (status !== 0 || /Error:/.test(stderr)) throw new Error(`${path} cannot be read: ${stderr.trim().split('\n')[0]}`);
  return stdout;
}

const matches = (text, pattern) => [...text.matchAll(pattern)];

/**
 * What `readelf` prints of an addon, taken apart. `glibc` maps a version to the symbols that need it; a few features of
 * glibc, all later than 2.28, have a name such as ABI_DT_RELR for a version. `plain`: symbols that need no version.
 */
export function parseNeeds(text) {
  const libraries = matches(text, /\(NEEDED\)\s+Shared library: \[([^\]]+)\]/g).map(([, name]) => name);
  const glibc = new Map();
  const need = (version) => {
    if (!glibc.has(version)) glibc.set(version, new Set());
    return glibc.get(version);
  };
  for (const [, version] of matches(text, /Name: GLIBC_(\S+)/g)) need(version);
  for (const [, symbol, version] of matches(text, /\bUND (\w+)@GLIBC_(\S+)/g)) need(version).add(symbol);
  const plain = matches(text, / GLOBAL .* UND (\w+)$/gm).map(([, symbol]) => symbol);
  return { libraries, glibc, plain };
}

export const readNeeds = (path) => parseNeeds(readelf(['--dynamic', '--version-info', '--dyn-syms'], path));

const nameSome = (names) =>
  names.length > 5 ? `${names.slice(0, 4).join(', ')} and ${names.length - 4} more` : names.join(', ');

/**
 * What keeps an addon from being released: `faults` always, `newer` where it needs a glibc newer than `floor`. `newest`
 * is the version of glibc that it needs.
 */
export function judgeNeeds({ libraries, glibc }, floor = releaseFloor) {
  const faults = libraries
    .filter((name) => !allowedLibraries.some((allowed) => allowed.test(name)))
    .map((name) => `it needs the shared library ${name}, which not every system has`);
  const isNumber = (version) => /^[\d.]+$/.test(version);
  const versions = [...glibc.keys()].filter(isNumber).sort(compareVersions);
  const newer = [...versions, ...[...glibc.keys()].filter((version) => !isNumber(version))]
    .filter((version) => !isNumber(version) || compareVersions(version, floor) > 0)
    .map((version) => {
      const because = nameSome([...glibc.get(version)]) || 'the way it is linked';
      return `it needs glibc ${version} (${because}); a release may need ${floor} at most`;
    });
  return { faults, newer, newest: versions.at(-1) };
}
