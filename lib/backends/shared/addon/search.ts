// Finds the file of an addon, and where there is none or it does not load says why and what to do.
import { existsSync, readdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { packageFolder } from '../../../base/package.js';
import { describeSystem, nameSystem, platformName } from './system.js';

/** Stable identifiers of why there is no addon. */
export type AddonProblem =
  | 'NOT_BUILT' // a checkout in which the addon has not been built
  | 'NO_PACKAGE' // a bundle that runs where the package is not installed
  | 'NOT_INSTALLED' // the package that brings the addon for this platform is missing
  | 'NO_LOADER' // node-gyp-build is missing
  | 'NO_PREBUILD' // no package brings an addon for this platform
  | 'NO_FILE' // the environment names a file that does not exist
  | 'GLIBC_TOO_OLD'
  | 'MUSL'
  | 'WRONG_BINARY' // a file for another platform, or a damaged one
  | 'OTHER_VERSION' // an addon of another version of this package
  | 'LOAD_FAILED'; // anything else that the system's loader says

/** A file or folder, and what came of it. */
export interface Attempt {
  readonly path: string;
  readonly result: string;
}

export interface AddonFailure {
  readonly problem: AddonProblem;
  /** Why there is no addon and the one step that would change it. */
  readonly missing: string;
  readonly tried: readonly Attempt[];
}

/** One of the addons: what messages say of it. */
export interface AddonKind {
  /** Such as 'the CUDA addon'. */
  readonly name: string;
  /** The environment variable that names another file. */
  readonly variable: string;
  /** How to build it in a checkout. */
  readonly build: string;
  /** What helps where an addon for glibc meets musl. */
  readonly onMusl: string;
}

/** Whether this is a checkout, where addons can be built, and not an installed package. */
export const isCheckout = (root: string) => existsSync(join(root, 'CMakeLists.txt'));

const list = (folder: string): string[] => (existsSync(folder) ? readdirSync(folder).sort() : []);

/** Addons that a folder brings, such as 'linux-x64/flashattn.glibc.node'. */
export function listPrebuilds(folder: string | undefined): string[] {
  if (folder === undefined) return [];
  const prebuilds = join(folder, 'prebuilds');
  return list(prebuilds).flatMap((platform) =>
    list(join(prebuilds, platform))
      .filter((file) => file.endsWith('.node'))
      .map((file) => `${platform}/${file}`),
  );
}

/** What was tried and found, a line each. */
export function describeSearch(tried: readonly Attempt[], folder: string | undefined): string[] {
  const system = describeSystem();
  return [
    ...tried.map(({ path, result }) => `tried: ${path}: ${result}`),
    folder === undefined
      ? 'found: no package flashattn'
      : `found: ${listPrebuilds(folder).join(', ') || 'no addons'} in ${join(folder, 'prebuilds')}`,
    `system: ${nameSystem(system)}, node ${system.node}`,
  ];
}

/** Looks for an addon in `folders`, each with its own build/ and prebuilds/; undefined where none has one. */
export type Lookup = (folders: readonly string[]) => string | undefined;

interface Loader {
  resolve(folder: string): string;
}

/** The folder of this package and what looks for addons, or why there is no looking. */
export function startSearch(kind: AddonKind): { readonly root: string; readonly lookup: Lookup } | AddonFailure {
  const root = packageFolder();
  if (root === undefined) {
    const missing =
      `this code was bundled and the package flashattn, which brings ${kind.name}, is not installed for it: ` +
      'tell the bundler that flashattn is external and install it there';
    return { problem: 'NO_PACKAGE', missing, tried: [] };
  }
  const require = createRequire(join(root, 'package.json'));
  let loader: Loader;
  try {
    loader = require('node-gyp-build');
  } catch {
    const missing = `the package node-gyp-build, which finds ${kind.name}, is not installed: run npm install`;
    return { problem: 'NO_LOADER', missing, tried: [{ path: root, result: 'node-gyp-build is not found from here' }] };
  }
  const lookup: Lookup = ([folder, ...others]) => {
    if (folder === undefined) return undefined;
    try {
      return loader.resolve(folder);
    } catch {
      return lookup(others);
    }
  };
  return { root, lookup };
}

/** What `lookup` has looked at in vain. */
export const describeFolders = (folders: readonly string[]): Attempt[] =>
  folders
    .flatMap((folder) => [join(folder, 'build', 'Release'), join(folder, 'prebuilds', platformName())])
    .map((path) => ({ path, result: existsSync(path) ? 'has no addon for this system' : 'is not there' }));

const firstLine = (error: unknown) => String((error as Error).message).split('\n')[0];

/** Why a file could not be loaded, and what to do about it. `given`: the user named the file. */
export function explainLoadError(kind: AddonKind, path: string, given: boolean, error: unknown): AddonFailure {
  const again = given ? `correct or unset ${kind.variable}` : 'install flashattn again';
  const fail = (problem: AddonProblem, result: string, step: string): AddonFailure => ({
    problem,
    missing: `the addon ${path} does not load: ${result}: ${step}`,
    tried: [{ path, result }],
  });
  if (!existsSync(path)) return fail('NO_FILE', 'there is no such file', again);
  const said = firstLine(error) ?? '';
  const glibc = /version [`'"]GLIBC_([\d.]+)/.exec(said)?.[1];
  if (glibc !== undefined) {
    const step = `use a newer version of the operating system, one with glibc ${glibc} or later`;
    return fail('GLIBC_TOO_OLD', said, step);
  }
  if (/Error relocating|ld-linux-[\w-]+\.so/.test(said)) return fail('MUSL', said, kind.onMusl);
  if (/invalid ELF header|wrong ELF class|file too short|mach-o|not a valid Win32/i.test(said))
    return fail('WRONG_BINARY', said, `the file is damaged or for another platform: ${again}`);
  return fail('LOAD_FAILED', said, again);
}
